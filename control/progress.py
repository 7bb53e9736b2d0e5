"""How far long work is: a bar on a terminal, else a line now and then, on stderr in either case."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

EVERY_S = 10.0  # a line where there is no terminal


class Progress:
    """Of `total` `things`; to be entered, and gone from a terminal once it is left."""

    def __init__(self, total: int, things: str, console: Console | None = None, every_s: float = EVERY_S) -> None:
        self._console = console or Console(stderr=True, soft_wrap=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task(things, total=total)
        self._total, self._things, self._every_s, self._told_s = total, things, every_s, time.monotonic()

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, done: int, words: str) -> None:
        self._bar.update(self._task, completed=done, description=words)
        if not self._console.is_terminal and time.monotonic() - self._told_s >= self._every_s:
            self._told_s = time.monotonic()
            self._console.print(f"{done:,} of {self._total:,} {self._things}, {words}")
