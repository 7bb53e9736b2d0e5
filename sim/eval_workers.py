"""Episodes in several processes: the same command with `--shard i/n`, and what each says line by line as JSON.

Knows processes and lines; refuses to know what an episode is. Whatever ends the parent's waiting ends every child.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import IO

from control.child import piped
from control.errors import ConfigError, SaccadeError
from sim.evaluate import Outcome

_PATIENCE_S = 5.0
_MARK = "outcome "  # a line that begins otherwise is a message for the person


class WorkerFailed(SaccadeError, RuntimeError):
    """A worker process ended before its episodes were done."""

    exit_code = 1


def shard_of(text: str) -> tuple[int, int]:
    """(i, n) of `i/n`: the jobs i, i + n, i + 2n and so on. Raises ConfigError."""
    first, _, second = text.partition("/")
    if not (first.isdigit() and second.isdigit() and int(first) < int(second)):
        raise ConfigError(f"--shard takes i/n with i < n, got '{text}'")
    return int(first), int(second)


def tell(number: int, outcome: Outcome) -> None:
    """One line on stdout, for `outcomes_of` in the parent."""
    print(_MARK + json.dumps([number, asdict(outcome)]), flush=True)


def heard(line: str) -> tuple[int, Outcome] | None:
    """What `tell` said; None for any other line."""
    if not line.startswith(_MARK):
        return None
    number, values = json.loads(line[len(_MARK) :])
    return number, Outcome(**values | {"touched": tuple(values["touched"])})


def outcomes_of(commands: Sequence[Sequence[str]], show: Callable[[str], None]) -> Iterator[tuple[int, Outcome]]:
    """What all the children say, in the order it comes. Raises WorkerFailed with the last words of one that failed."""
    children: list[subprocess.Popen[str]] = []
    lines: queue.Queue[tuple[int, str | None]] = queue.Queue()
    readers: list[threading.Thread] = []
    shown: set[str] = set()
    last = [""] * len(commands)
    try:
        for index, command in enumerate(commands):
            child = piped(command)
            children.append(child)
            assert child.stdout is not None
            readers.append(threading.Thread(target=_read, args=(index, child.stdout, lines), daemon=True))
            readers[-1].start()
        running = len(children)
        while running:
            index, line = lines.get()
            if line is None:
                running -= 1
                if code := children[index].wait():
                    raise WorkerFailed(f"worker {index} ended with code {code}: {last[index] or 'it said nothing'}")
            elif told := heard(line):
                yield told
            elif line.strip():
                last[index] = line.strip()
                if line not in shown:  # every worker has the same to say
                    shown.add(line)
                    show(line.rstrip())
    finally:
        _end(children)


def _read(index: int, stream: IO[str], lines: queue.Queue[tuple[int, str | None]]) -> None:
    for line in stream:
        lines.put((index, line))
    lines.put((index, None))


def _end(children: Sequence[subprocess.Popen[str]]) -> None:
    for child in children:
        if child.poll() is None:
            child.terminate()
    for child in children:
        try:
            child.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def commands_for(workers: int, arguments: Sequence[str]) -> list[list[str]]:
    return [[sys.executable, *arguments, "--shard", f"{index}/{workers}"] for index in range(workers)]
