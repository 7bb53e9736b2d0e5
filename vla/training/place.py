"""Where a training keeps what it needs to go on, that no other one is at work there, and what becomes of a full disk.

Loads no torch.

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

from safetensors import SafetensorError

from vla.errors import TrainingFault

_LOCK = "lock"  # holds the process ids, a line each


def beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def work_folder(folder: Path) -> Path:
    """Where a training of the policy in `folder` keeps what it needs to go on: beside it, and yours to delete."""
    return beside(folder.resolve(), "training")


@contextlib.contextmanager
def written(place: Path) -> Iterator[None]:
    """What is written inside, at `place` where nothing says better. Raises TrainingFault where the disk refuses it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        file = error.filename if isinstance(error, OSError) and error.filename else place
        raise TrainingFault(
            f"{file} cannot be written ({_reason(error)}): likely a full disk; make room there. What was saved before"
            " is whole: the same command goes on from it"
        ) from error


def write_text(file: Path, text: str) -> None:
    """The whole file or, where the disk refuses it, the one that was there."""
    new = file.with_name(f"{file.name}.part")
    with written(file):
        new.write_text(text, encoding="utf-8")
        new.replace(file)


def _reason(error: Exception) -> str:
    if isinstance(error, shutil.Error):  # of a copied folder: (from, to, why) for each file
        return str(error.args[0][0][-1])
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


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
        with written(file):
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
