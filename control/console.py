"""What `run` shows a person: one live status line on a terminal, plain lines elsewhere, a table at the end."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from control.report import summary, table


def log_to_stderr() -> None:
    """What a process logs, a line each; the libraries' own chatter only from warnings up."""
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(message)s", stream=sys.stderr)
    for chatty in ("httpx", "OpenGL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


class RunConsole:
    """Safe to call from the threads that forward the processes' output."""

    def __init__(self) -> None:
        self._console = Console(soft_wrap=True, highlight=False)
        self._lock = threading.Lock()
        self._status: Status | None = None
        self.is_terminal = self._console.is_terminal

    def line(self, text: str) -> None:
        with self._lock:
            self._console.print(escape(text), style="dim" if self.is_terminal else None)

    def status(self, text: str) -> None:
        with self._lock:
            if not self.is_terminal:
                self._console.print(escape(text))
                return
            if self._status is None:
                self._status = self._console.status("")
                self._status.start()
            self._status.update(escape(text))

    def summary(self, result: dict[str, Any]) -> None:
        with self._lock:
            if self._status is not None:
                self._status.stop()
            if result["lateness_ms"]:
                self._console.print(table(result))
            for text in summary(result):
                self._console.print(escape(text))
