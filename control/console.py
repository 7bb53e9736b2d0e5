"""What `run` shows a person: one live status line on a terminal, plain lines elsewhere, a table at the end."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from control.plain_text import printable, printable_lines
from control.report import summary, table


def log_to_stderr() -> None:
    """What a process logs, a line each; the libraries' own chatter only from warnings up."""
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(_Plain("%(levelname).1s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[to_stderr])
    for chatty in ("httpx", "OpenGL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


class _Plain(logging.Formatter):
    """Names, reasons and instructions come from others; a terminal must not act on them."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def text_console() -> Console:
    """A console for figures and for lines that others have a part in: no highlighting, no emoji codes, no wrapping."""
    return Console(soft_wrap=True, highlight=False, emoji=False)


class RunConsole:
    """Safe to call from the threads that forward the processes' output."""

    def __init__(self) -> None:
        self._console = text_console()
        self._lock = threading.Lock()
        self._status: Status | None = None
        self.is_terminal = self._console.is_terminal

    def line(self, text: str) -> None:
        text = printable_lines(text)
        with self._lock:
            self._console.print(escape(text), style="dim" if self.is_terminal else None)

    def status(self, text: str) -> None:
        text = printable(text)
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
                self._console.print(escape(printable(text)))
