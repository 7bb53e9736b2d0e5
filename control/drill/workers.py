"""A drill in several processes at once, each with a rig and buses of its own; their outcomes come back in one list."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from control.child import piped
from control.drill.campaign import Outcome
from control.errors import ConfigError, NotRunning

_POLL_S = 0.2
_ENDS_S = 30.0  # a worker that was asked to end


@dataclass(frozen=True, slots=True)
class Part:
    """Every `of_all`th fault, from number `number` on; written as 0/2 and 1/2."""

    number: int
    of_all: int

    @classmethod
    def parse(cls, text: str) -> Part:
        number, _, of_all = text.partition("/")
        if not (number.isdigit() and of_all.isdigit() and int(number) < int(of_all)):
            raise ConfigError(f"--part {text}: expected K/N with K from 0 to N-1")
        return cls(int(number), int(of_all))

    def of(self, seeds: range) -> range:
        return seeds[self.number :: self.of_all]


def run_parts(
    launcher: Path, words: Sequence[str], workers: int, stopped: Callable[[], bool], show: Callable[[str], None]
) -> list[Outcome]:
    """The outcomes of all, in the order of their seeds. Raises NotRunning where a worker could do nothing at all."""
    outcomes: list[Outcome] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="saccade-drill-") as folder:
        files = [Path(folder) / f"{number}.json" for number in range(workers)]
        command = [sys.executable, str(launcher), "drill", *words]
        processes = [
            piped([*command, "--part", f"{number}/{workers}", "--report", str(file)])
            for number, file in enumerate(files)
        ]
        readers = [threading.Thread(target=_forward, args=(each, show), daemon=True) for each in processes]
        for reader in readers:
            reader.start()
        try:
            while any(each.poll() is None for each in processes) and not stopped():
                threading.Event().wait(_POLL_S)
        finally:
            _end(processes)
        for reader in readers:
            reader.join()
        for number, (file, process) in enumerate(zip(files, processes, strict=True)):
            if not file.exists() or not file.stat().st_size:
                failed.append(f"worker {number} ended with code {process.returncode} and reported nothing")
                continue
            outcomes += map(Outcome.of_row, json.loads(file.read_text())["faults"])
    if failed and not stopped():
        raise NotRunning("; ".join(failed) + ": see what it wrote above")
    return sorted(outcomes, key=lambda outcome: outcome.seed)


def _forward(process: subprocess.Popen[str], show: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        show(line.rstrip())


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGINT)
    for process in running:
        try:
            process.wait(_ENDS_S)
        except subprocess.TimeoutExpired:  # its children end by themselves when it is gone
            process.kill()
            process.wait()
