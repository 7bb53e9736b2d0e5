"""A folder of demonstrations made by several processes, which can be cut off at any time and taken up again.

Each worker is a process of its own that reads numbers of files from its standard input and says on its standard output
what became of them, a line of JSON each. Its input ends with its parent, so none is left over. A worker that is killed
costs the file it was writing: another one makes that again, once.

Knows processes, files and the lock; refuses to know what is in a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from control.errors import ConfigError, RecordingError, SaccadeError
from sim.demonstration_files import Demonstrator, Plan, file_of, outcomes_in

PLAN_FILE = "plan.json"
_MARK = "record "  # a line that begins otherwise is for the person
_PATIENCE_S = 10.0  # for a worker to leave its episode
_POLL_S = 0.2


class WorkerFailed(SaccadeError, RuntimeError):
    """A worker process that ended before its file was whole, twice."""

    exit_code = 1


@dataclass(slots=True)
class Made:
    """What is in the folder, and what it took."""

    outcomes: dict[int, bool]  # success of each episode by its index
    files_bytes: int
    files: int
    new_episodes: int
    seconds: float
    was_stopped: bool


@dataclass(slots=True, eq=False)
class _Worker:
    process: subprocess.Popen[str]
    number: int | None = None  # of the file that it is making
    begun: int = 0  # episodes of that file
    last: str = ""

    def give(self, number: int | None) -> None:
        """A file to make, or None for nothing more."""
        assert self.process.stdin is not None
        self.number, self.begun = number, 0
        with contextlib.suppress(BrokenPipeError):  # it has died: its end is read next
            if number is None:
                self.process.stdin.close()
            else:
                self.process.stdin.write(f"{number}\n")
                self.process.stdin.flush()


@dataclass(slots=True)
class _Crew:
    """The workers and what they say."""

    command: Sequence[str]
    lines: queue.Queue[tuple[_Worker, str | None]] = field(default_factory=queue.Queue)
    workers: list[_Worker] = field(default_factory=list)

    def start(self, number: int) -> None:
        process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches the parent alone, which ends them in order
        )
        worker = _Worker(process)
        self.workers.append(worker)
        assert process.stdout is not None
        threading.Thread(target=self._read, args=(worker, process.stdout), daemon=True).start()
        worker.give(number)

    def _read(self, worker: _Worker, stream: IO[str]) -> None:
        for line in stream:
            self.lines.put((worker, line.rstrip()))
        self.lines.put((worker, None))

    def end(self) -> None:
        for worker in self.workers:
            worker.give(None)
            worker.process.terminate()
        for worker in self.workers:
            try:
                worker.process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


def record(
    plan: Plan,
    folder: Path,
    workers: int,
    command: Sequence[str],
    show: Callable[[int, int], None],
    stopped: Callable[[], bool],
) -> Made:
    """Make what is missing of `plan` in `folder`. `show` gets episodes done and bytes, a few times a second.

    Raises ConfigError for a folder with other demonstrations or other things, RecordingError when the disk is full,
    WorkerFailed when one ends twice on the same file. What is whole stays, and the same call goes on from there.
    """
    with _locked(folder, plan):
        for left in folder.glob("*.partial"):
            left.unlink(missing_ok=True)
        outcomes: dict[int, bool] = {}
        missing: list[int] = []
        for number in range(plan.files):
            found = outcomes_in(file_of(folder, number), plan, number)
            if found is None:
                missing.append(number)
            else:
                outcomes |= dict(zip(plan.indices(number), found, strict=True))
        before, began_s = len(outcomes), time.monotonic()
        crew = _Crew(command)
        try:
            if missing and not stopped():
                _make(plan, folder, missing, min(workers, len(missing)), crew, outcomes, show, stopped)
        finally:
            crew.end()
        sizes = [file.stat().st_size for file in folder.glob("*.mcap")]
        seconds = time.monotonic() - began_s
        was_stopped = len(outcomes) < plan.episodes
        return Made(outcomes, sum(sizes), len(sizes), len(outcomes) - before, seconds, was_stopped)


def _make(
    plan: Plan,
    folder: Path,
    missing: list[int],
    workers: int,
    crew: _Crew,
    outcomes: dict[int, bool],
    show: Callable[[int, int], None],
    stopped: Callable[[], bool],
) -> None:
    waiting, tried = list(reversed(missing)), set()
    for _ in range(workers):
        crew.start(waiting.pop())
    running, written = workers, sum(file.stat().st_size for file in folder.glob("*.mcap"))
    while running and not stopped():
        begun = sum(worker.begun for worker in crew.workers if worker.number is not None)
        show(len(outcomes) + begun, written)
        try:
            worker, line = crew.lines.get(timeout=_POLL_S)
        except queue.Empty:
            continue
        if line is None:
            running -= 1
            code, number = worker.process.wait(), worker.number
            if number is None:
                continue
            worker.number = None
            _expect_one_more_try(code, number, worker.last, tried)
            tried.add(number)
            crew.start(number)
            running += 1
        elif not line.startswith(_MARK):
            worker.last = line or worker.last
        else:
            told = json.loads(line.removeprefix(_MARK))
            if "success" not in told:
                worker.begun += 1
                continue
            assert worker.number is not None
            outcomes |= dict(zip(plan.indices(worker.number), told["success"], strict=True))
            written += told["bytes"]
            worker.give(waiting.pop() if waiting else None)
    show(len(outcomes), written)


def _expect_one_more_try(code: int, number: int, last: str, tried: set[int]) -> None:
    said = last.removeprefix("error: ")
    if code > 0 and "recording" in said:
        raise RecordingError(f"{said}; all finished files are whole, the same command goes on from there")
    if code >= 0:
        raise WorkerFailed(f"a worker ended with code {code} while it made file {number}: {said or 'it said nothing'}")
    if number in tried:
        raise WorkerFailed(
            f"two workers were killed by signal {-code} while they made file {number}; was memory short?"
            " All finished files are whole, the same command goes on from there"
        )


def work(folder: Path, stopped: Callable[[], bool]) -> None:
    """What a worker does: make the files whose numbers come in, until there are no more."""
    plan_file = folder / PLAN_FILE
    demonstrator = Demonstrator(Plan.from_json(plan_file.read_text(), plan_file), folder)
    try:
        for line in sys.stdin:
            outcomes = demonstrator.make(int(line), lambda index: _tell({"episode": index}), stopped)
            if outcomes is None:
                return
            _tell({"success": outcomes, "bytes": file_of(folder, int(line)).stat().st_size})
    finally:
        demonstrator.close()


def _tell(what: dict[str, object]) -> None:
    print(_MARK + json.dumps(what), flush=True)


@contextlib.contextmanager
def _locked(folder: Path, plan: Plan) -> Iterator[None]:
    """The folder with this plan in it, and nobody else at work there."""
    file = folder / PLAN_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            others = sorted(path.name for path in folder.iterdir())
            if others:
                raise ConfigError(
                    f"{folder} holds no demonstrations, but {', '.join(others[:3])}: name a folder that is new or empty"
                )
            partial = file.with_name(f"{PLAN_FILE}.{os.getpid()}.partial")
            partial.write_text(plan.to_json())
            partial.replace(file)
        with file.open() as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"another `launch.py record` is at work in {folder}: wait for its end") from None
            differences = Plan.from_json(opened.read(), file).differences(plan)
            if differences:
                raise ConfigError(
                    f"{folder} holds demonstrations made with other arguments: {'; '.join(differences)}."
                    " Repeat those to go on, or name another folder"
                )
            yield
    except OSError as error:
        if isinstance(error, SaccadeError):
            raise
        raise RecordingError(f"{folder} cannot be written to: {error.strerror or error}; is the disk full?") from None
