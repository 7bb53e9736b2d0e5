"""`bench watchers`: what looking on costs the loop. One run, and beside it in turn nobody, everybody, and a rough page.

A round has a block of each kind, so that a ratio compares blocks that follow each other in one and the same run; what
blocks without onlookers differ by among themselves is the noise that it is held against. The page has an open window.
In a rough block its windows reload and do not read, and the page itself is stopped for half of it and then killed.
Start and end of the onlookers lie outside the blocks.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.table import Table

from control.address import BusAddress
from control.bus import Subscriber
from control.clock import NS_PER_S
from control.errors import MeasurementError
from control.holders import cpu_s
from control.messages import Cycle, Mode
from control.report import percentiles
from control.soak import children

NOBODY, ALL, ROUGH = "nobody", "page, recorder, profiler", "rough page"
KINDS = (NOBODY, ALL, ROUGH)
_ROOT = Path(__file__).resolve().parents[1]
_START_S, _END_S = 120.0, 30.0
_SETTLE_S = 3.0  # after the page is served and the recording has begun; by then the profiler listens too
_STEP_MS = 50
_STOPPED, _KILLED = (0.25, 0.75), 0.9  # of a rough block
FIGURES = (("lateness_ms", "p50"), ("lateness_ms", "p99"), ("cycle_ms", "p50"), ("cycle_ms", "p99"))


@dataclass(slots=True)
class Block:
    """What was seen in one block: its cycles, and the share of one core that each process took."""

    kind: str
    round: int
    cycles: list[Cycle] = field(default_factory=list)
    core_share: dict[str, float] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        return {"kind": self.kind, "round": self.round} | _figures(self.cycles) | {"core_share": self.core_share}


class Watchers:
    """`words` name the config. `folder` is for recordings that nobody keeps."""

    def __init__(self, bus: BusAddress, words: Sequence[str], say: str, folder: Path) -> None:
        self._bus, self._words, self._say, self._folder = bus, list(words), say, folder
        self._cycles = Subscriber(bus, "cycle", newest_only=False)
        self._recordings = 0

    def measure(
        self, rounds: int, seconds: float, stopped: Callable[[], bool], show: Callable[[str], None]
    ) -> dict[str, Any]:
        """Raises MeasurementError where the run, or one who looks on, ends early or does not begin."""
        blocks: list[Block] = []
        try:
            with ExitStack() as processes:
                run = self._start(processes, "run", ["--no-page", "--say", self._say, *self._words])
                show("the run starts")
                self._until(lambda: any(c.mode is Mode.RUN for c in self._heard()), run, "no RUN cycle")
                for number in range(rounds):
                    for kind in KINDS if number % 2 == 0 else reversed(KINDS):
                        if stopped():
                            break
                        show(f"round {number + 1} of {rounds}: {kind}")
                        blocks.append(self._block(kind, number, seconds, run))
        finally:
            self._cycles.close()
        return report(blocks, seconds)

    def _block(self, kind: str, number: int, seconds: float, run: _Process) -> Block:
        with ExitStack() as processes:
            watching = self._look_on(kind, processes)
            self._pass(_SETTLE_S, run)
            block, acts = Block(kind, number), self._rough_acts(kind, seconds, watching)
            watched = {**children(run.pid), **{name: process.pid for name, process in watching.items()}}
            before = {name: cpu_s(pid) for name, pid in watched.items()}
            self._heard()
            began_s = time.monotonic()
            while (passed_s := time.monotonic() - began_s) < seconds:
                while acts and passed_s >= acts[0][0]:
                    acts.pop(0)[1]()
                block.cycles += self._heard(_STEP_MS)
                run.must_run()
            for name, pid in watched.items():
                now_s, then_s = cpu_s(pid), before[name]
                if now_s is not None and then_s is not None:
                    block.core_share[name] = (now_s - then_s) / passed_s
            if kind == ALL:
                for process in watching.values():
                    process.must_run()
        if not block.cycles:
            raise MeasurementError(f"no cycle was heard for {seconds:g} s beside {kind}: the controller hangs")
        return block

    def _look_on(self, kind: str, processes: ExitStack) -> dict[str, _Process]:
        """Those who look on, once they do."""
        if kind == NOBODY:
            return {}
        parent = ["--parent", str(os.getpid())]
        page = self._start(processes, "page", [*self._words, "--set", "page.port=0", *parent])
        address = self._until(lambda: page.find("the page is at "), page, "no page")
        manner = "good" if kind == ALL else "rough"
        command = [sys.executable, "-m", "control.window_worker", manner, address, str(os.getpid())]
        window = _Process(processes, "window", command)
        watching = {"page": page, "window": window}
        if kind == ALL:
            self._recordings += 1
            file = self._folder / f"{self._recordings}.mcap"
            words = ["--live", "--out", str(file), *self._words, *parent]
            watching["recorder"] = recorder = self._start(processes, "record", words)
            watching["profiler"] = self._start(processes, "profile", [*self._words, "--duration", "3600"])
            self._until(file.exists, recorder, "no recording")
        return watching

    def _rough_acts(
        self, kind: str, seconds: float, watching: dict[str, _Process]
    ) -> list[tuple[float, Callable[[], None]]]:
        """What is done to the page of a rough block, and when."""
        if kind != ROUGH:
            return []
        signals = ((_STOPPED[0], signal.SIGSTOP), (_STOPPED[1], signal.SIGCONT), (_KILLED, signal.SIGKILL))
        page = watching["page"].pid
        return [(share * seconds, lambda number=number: os.kill(page, number)) for share, number in signals]

    def _start(self, processes: ExitStack, subcommand: str, words: Sequence[str]) -> _Process:
        return _Process(processes, subcommand, [sys.executable, str(_ROOT / "launch.py"), subcommand, *words])

    def _heard(self, wait_ms: int = 0) -> list[Cycle]:
        found, cycle = [], self._cycles.poll(wait_ms)
        while cycle is not None:
            found.append(cycle)
            cycle = self._cycles.poll()
        return found

    def _until(self, found: Callable[[], Any], process: _Process, otherwise: str) -> Any:
        gives_up_s = time.monotonic() + _START_S
        while not (value := found()):
            process.must_run()
            if time.monotonic() > gives_up_s:
                raise MeasurementError(f"{otherwise} within {_START_S:g} s: {process.last_line}")
            self._pass(0.05, process)
        return value

    def _pass(self, seconds: float, process: _Process) -> None:
        """Without doing anything, unless `process` ends."""
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return
        process.must_run()


class _Process:
    """Ended when `processes` closes. What it says is kept, so that its message is at hand where it ends early."""

    def __init__(self, processes: ExitStack, name: str, command: Sequence[str]) -> None:
        self._name, self._lines = name, list[str]()
        self._process = subprocess.Popen(
            command, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.pid, self.wait = self._process.pid, self._process.wait
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        processes.callback(self._end)

    def _read(self, output: IO[str]) -> None:
        for line in output:
            self._lines.append(line.strip())

    def find(self, words: str) -> str:
        """What stands after these words in a line, '' where none has them."""
        return next((line.partition(words)[2] for line in list(self._lines) if words in line), "")

    @property
    def last_line(self) -> str:
        return next((line for line in reversed(list(self._lines)) if line), "it said nothing")

    def must_run(self) -> None:
        if (code := self._process.poll()) is not None:
            self._reader.join(1.0)
            raise MeasurementError(f"`{self._name}` ended early with code {code}: {self.last_line}")

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(1.0)


def report(blocks: Sequence[Block], seconds: float) -> dict[str, Any]:
    """Figures of every block, of each kind together, and the ratios. Raises MeasurementError without a whole round."""
    by_kind = {kind: [block for block in blocks if block.kind == kind] for kind in KINDS}
    rounds = min(len(found) for found in by_kind.values())
    if rounds == 0:
        raise MeasurementError("ended before the first round was whole: nothing to compare")
    return {
        "block_s": seconds,
        "rounds": rounds,
        "blocks": [block.figures() for block in blocks],
        "kinds": {kind: _together(found) for kind, found in by_kind.items()},
        "ratios": ratios([block.figures() for block in blocks]),
    }


def ratios(blocks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For each figure: a kind over `nobody` of the same round; and as noise `nobody` over `nobody` of the round before
    or after. Each as median, least and most. `within_noise`: the median lies between least and most of the noise.
    """
    rows = {(block["kind"], block["round"]): block for block in blocks}
    numbers = sorted({block["round"] for block in blocks})
    found = {}
    for figure, percentile in FIGURES:

        def value(kind: str, number: int, figure: str = figure, percentile: str = percentile) -> float | None:
            block = rows.get((kind, number))
            return block[figure].get(percentile) if block else None

        noise = _spread([(value(NOBODY, n + step), value(NOBODY, n)) for n in numbers for step in (-1, 1)])
        entry: dict[str, Any] = {"noise": noise}
        for kind in (ALL, ROUGH):
            ratio = _spread([(value(kind, number), value(NOBODY, number)) for number in numbers])
            known = ratio and noise
            entry[kind] = ratio | {
                "within_noise": noise["least"] <= ratio["median"] <= noise["most"] if known else None
            }
        found[f"{figure} {percentile}"] = entry
    return found


def _spread(pairs: Sequence[tuple[float | None, float | None]]) -> dict[str, float]:
    values = [above / below for above, below in pairs if above is not None and below]
    if not values:
        return {}
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _figures(cycles: Sequence[Cycle]) -> dict[str, Any]:
    """`cycle_ms` is of cycles in RUN: in every other mode the head does not work, and a cycle costs a quarter."""
    running = [cycle.cycle_ms for cycle in cycles if cycle.mode is Mode.RUN]
    return {
        "cycles": len(cycles),
        "missed_ticks": sum(cycle.missed_ticks for cycle in cycles),
        "seconds": (cycles[-1].stamp_ns - cycles[0].stamp_ns) / NS_PER_S if cycles else 0.0,
        "in_run": len(running),
        "lateness_ms": percentiles([cycle.lateness_ms for cycle in cycles]),
        "cycle_ms": percentiles(running),
    }


def _together(blocks: Sequence[Block]) -> dict[str, Any]:
    names = dict.fromkeys(name for block in blocks for name in block.core_share)
    shares = {
        name: statistics.median(block.core_share[name] for block in blocks if name in block.core_share)
        for name in names
    }
    return _figures([cycle for block in blocks for cycle in block.cycles]) | {"core_share": shares}


def table(found: dict[str, Any]) -> Table:
    grid = Table(title="the loop, beside", title_justify="left", show_edge=False, pad_edge=False)
    grid.add_column("")
    for heading in ("cycles", "in RUN", "missed", "late p50, ms", "p99", "max", "cycle p50, ms", "p99", "max"):
        grid.add_column(heading, justify="right")
    for kind, row in found["kinds"].items():
        times = [row[name].get(key) for name in ("lateness_ms", "cycle_ms") for key in ("p50", "p99", "max")]
        counts = [f"{row[name]:,}" for name in ("cycles", "in_run", "missed_ticks")]
        grid.add_row(kind, *counts, *("-" if value is None else f"{value:.3f}" for value in times))
    return grid


def ratio_table(found: dict[str, Any]) -> Table:
    grid = Table(title="over nobody in the same round", title_justify="left", show_edge=False, pad_edge=False)
    for heading in ("", ALL, ROUGH, "noise: nobody over nobody"):
        grid.add_column(heading, justify="left" if not heading else "right")
    for name, entry in found["ratios"].items():
        cells = [_ratio(entry[kind]) for kind in (ALL, ROUGH)]
        grid.add_row(name.replace("_ms", ""), *cells, _ratio(entry["noise"]))
    return grid


def _ratio(spread: dict[str, Any]) -> str:
    if "median" not in spread:
        return "-"
    mark = {True: "", False: " beyond noise", None: ""}[spread.get("within_noise")]
    return f"{spread['median']:.2f} ({spread['least']:.2f}-{spread['most']:.2f}){mark}"


def notes(found: dict[str, Any]) -> list[str]:
    """What each process takes of a core, and what the tables mean."""
    lines = [
        f"share of one core beside {kind}: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        for kind, shares in ((kind, row["core_share"]) for kind, row in found["kinds"].items())
        if shares
    ]
    return [
        *lines,
        f"{found['rounds']} rounds, {found['block_s']:g} s a block. Ratios: median (least-most) over the rounds; within"
        " noise is a median between least and most of what a block beside nobody is to that of the next round. Lateness"
        " is of all cycles, cycle of those in RUN.",
        f"{ROUGH}: windows that reload and do not read; the page itself stopped for half of the block, then killed.",
    ]
