"""Where a training keeps what it needs to go on, and that no other one is at work there. Loads no torch.

The lock is a file in that place, and the kernel gives it back with the process, however that ends. Whoever begins a
training needs it alone, and then shares it with the stages that it starts: a stage that outlives a training that was
killed keeps the next one out too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from vla.errors import TrainingFault

_LOCK = "lock"  # holds the process ids, a line each


def beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def work_folder(folder: Path) -> Path:
    """Where a training of the policy in `folder` keeps what it needs to go on: beside it, and yours to delete."""
    return beside(folder.resolve(), "training")


def clear_work(folder: Path) -> None:
    """Removes all that was kept of a training of the policy in `folder`, but for the lock that is held meanwhile."""
    work = work_folder(folder)
    for path in work.iterdir() if work.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


@contextlib.contextmanager
def trained_by_one(folder: Path, is_stage: bool = False) -> Iterator[None]:
    """A training of the policy in `folder`, or a stage that it started. Raises TrainingFault where another one is."""
    file = work_folder(folder) / _LOCK
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        opened = file.open("a+", encoding="utf-8")
    except OSError as error:
        raise TrainingFault(
            f"{file.parent} cannot be written ({error.strerror}): likely a wrong path, or a folder of another user"
        ) from error
    with opened:
        if not (is_stage or _locked(opened, fcntl.LOCK_EX)) or not _locked(opened, fcntl.LOCK_SH):
            opened.seek(0)
            holders = [word for word in opened.read().split() if word.isdigit() and _lives(int(word))]
            raise TrainingFault(
                f"{folder} is being trained already, by process {', '.join(holders) or 'unknown'}: wait for its end,"
                " stop it, or name another folder with --out"
            )
        _note(opened, is_stage)
        yield


def _locked(opened: TextIO, how: int) -> bool:
    try:
        fcntl.flock(opened, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _note(opened: TextIO, is_stage: bool) -> None:
    if not is_stage:
        opened.truncate(0)
    opened.write(f"{os.getpid()}\n")
    opened.flush()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
