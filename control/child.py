"""A subprocess of a run: in a group of its own, its output forwarded, memory and time measured, ended for sure."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from control.holders import cpu_s, rss_mb
from control.memory import RETURNS_MEMORY

log = logging.getLogger("run")

_PR_SET_PDEATHSIG = 1
_LAST_LINES_S = 0.1  # for the lines of a process that has ended
_KILLED_S = 0.5  # much memory takes a moment to give back


def piped(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """A process whose output is to be read, in a group of its own: Ctrl-C reaches it once, through this process.

    It has this process' variables, and those of `environment`.
    """
    return subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


@dataclass(slots=True)
class Child:
    """One subprocess in a process group of its own, so that Ctrl-C in the terminal reaches only the supervisor.

    A run goes on without a child that is not `is_vital`: one that only listens.
    """

    name: str
    command: Sequence[str]
    is_vital: bool = True
    process: subprocess.Popen[str] = field(init=False)
    forwarder: threading.Thread = field(init=False)
    started_s: float = 0.0
    rss_mb: list[float] = field(default_factory=list)  # first, newest, largest
    core_share: float | None = None  # of one core, since the first measurement of this process
    last_line: str = ""  # of its output
    _asked_to_end: int | None = None  # the process id
    _measured: tuple[int, float, float] | None = None  # process id, and its first time and processor time in s

    def start(self, show: Callable[[str], None]) -> None:
        self.started_s = time.monotonic()
        environment = {} if self.is_vital else RETURNS_MEMORY
        self.process = piped([*self.command, "--parent", str(os.getpid())], environment)
        self.forwarder = threading.Thread(target=self._forward, args=(self.process, show), daemon=True)
        self.forwarder.start()

    def _forward(self, process: subprocess.Popen[str], show: Callable[[str], None]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.last_line = line.strip() or self.last_line
            show(f"{self.name:>10} | {line.rstrip()}")

    def is_running(self) -> bool:
        process = getattr(self, "process", None)  # unset until the first start
        return process is not None and process.poll() is None

    def how_it_ended(self) -> str:
        """In words, for the message about a process that has ended."""
        code = self.process.returncode
        if code is None:
            return "does not end"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def ask_to_end(self) -> None:
        """SIGTERM, once: Python takes its handler away as it exits, and a second one would kill it there."""
        if self.is_running() and self._asked_to_end != self.process.pid:
            self._asked_to_end = self.process.pid
            self.process.terminate()

    def end(self, patience_s: float, last_lines_s: float = _LAST_LINES_S) -> None:
        """SIGTERM, then SIGKILL to the whole group; its last lines are shown if they come within `last_lines_s`."""
        if not hasattr(self, "process"):
            return
        if self.is_running():
            self.ask_to_end()
            try:
                self.process.wait(patience_s)
            except subprocess.TimeoutExpired:
                log.warning("%s did not end within %g s: killed", self.name, patience_s)
                self.kill()
        self.forwarder.join(last_lines_s)

    def kill(self) -> None:
        """SIGKILL to the whole group, also where it is stopped or hangs."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(_KILLED_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:  # hung in the kernel, a driver most often: nothing more can be done from here
            log.error("%s (process %d) still there %g s after it was killed", self.name, self.process.pid, _KILLED_S)

    def measure(self) -> None:
        """Its memory and processor time now; both are counted from the first time that this process was measured."""
        now_mb, spent_s, now_s = rss_mb(self.process.pid), cpu_s(self.process.pid), time.monotonic()
        if now_mb is None or spent_s is None:
            return  # it has just ended, or this system has no /proc
        first, largest = (self.rss_mb[0], self.rss_mb[2]) if self.rss_mb else (now_mb, now_mb)
        self.rss_mb = [first, now_mb, max(now_mb, largest)]
        if self._measured is None or self._measured[0] != self.process.pid:
            self._measured = (self.process.pid, now_s, spent_s)
        elif now_s > self._measured[1]:
            self.core_share = (spent_s - self._measured[2]) / (now_s - self._measured[1])


def die_with_parent() -> None:
    """From now on the kernel kills this process when the thread that started it ends, even where it hangs or is
    stopped, and could not find out by itself. For one that holds nothing which has to be laid down; Linux only.
    """
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def python_command(launcher: Path, subcommand: str, arguments: Sequence[str]) -> list[str]:
    return [sys.executable, str(launcher), subcommand, *arguments]
