"""`top`: the run that goes on, in a terminal, four times a second; one plain line a second where there is no terminal.

A client like any other: it only listens, sends nothing, and asks the controller nothing. Knows terminals and keys;
what is shown is decided in watch.py (figures) and top_view.py (characters).
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live

from control.address import BusAddress
from control.clock import NS_PER_S
from control.errors import NotRunning
from control.holders import find_processes, rss_mb, scheduling
from control.safety import Freshness
from control.top_view import panel, plain
from control.watch import Watch

_STEP_S = 0.25
_LINE_S = 1.0
_LOOK_S = 2.0  # between two looks for the processes
_FIRST_S, _ONCE_S = 3.0, 1.5  # `--once`: patience for a first cycle, and then what it looks at


class Processes:
    """Memory of the processes of the run on this machine; looked for every two seconds, measured at every call."""

    def __init__(self, bus: BusAddress) -> None:
        self._bus = bus
        self._pids: dict[str, int] = {}
        self._first_mb: dict[int, float] = {}
        self._looks_again_ns = 0

    def measure(self, now_ns: int) -> dict[str, dict[str, Any] | None]:
        """By name; None for one that is not found here. Supervisor, recorder and page only where there is one."""
        if now_ns >= self._looks_again_ns:
            self._pids = find_processes(self._bus)
            self._looks_again_ns = now_ns + round(_LOOK_S * NS_PER_S)
        found: dict[str, dict[str, Any] | None] = dict.fromkeys(("controller", "robot", "encoder"))
        for name, pid in self._pids.items():
            if (now_mb := rss_mb(pid)) is not None:
                first_mb = self._first_mb.setdefault(pid, now_mb)
                found[name] = {"pid": pid, "rss_mb": now_mb, "first_rss_mb": first_mb, "scheduling": scheduling(pid)}
        return found


class Top:
    """`run` until `stopped()` or the key q. `once`: one view after a moment, then the end."""

    def __init__(self, bus: BusAddress, freshness: Freshness, console: Console, *, as_json: bool = False) -> None:
        self._bus, self._freshness, self._console, self._as_json = bus, freshness, console, as_json
        self._watch, self._processes = Watch(bus), Processes(bus)

    def run(self, stopped: Callable[[], bool]) -> None:
        is_live = self._console.is_terminal and not self._console.is_dumb_terminal and not self._as_json
        try:
            with _keys(is_live) as quit_key:
                if is_live:
                    self._draw(lambda: stopped() or quit_key())
                else:
                    self._print(stopped)
        finally:
            self._watch.close()

    def once(self, stopped: Callable[[], bool]) -> None:
        """Raises NotRunning when no controller is heard within 3 s."""
        try:
            gives_up_s = time.monotonic() + _FIRST_S
            while not self._watch.has_run and not stopped():
                if time.monotonic() > gives_up_s:
                    raise NotRunning(
                        f"no controller is heard at {self._bus.address} within {_FIRST_S:g} s; start one with"
                        " `launch.py run`, or name its bus with --set bus.address=..."
                    )
                self._listen(0.05)
            ends_s = time.monotonic() + _ONCE_S
            while time.monotonic() < ends_s and not stopped():
                self._listen(0.05)
            snapshot = self._snapshot()
            if self._as_json:
                print(json.dumps(snapshot))
            else:
                self._console.print(panel(snapshot, self._freshness, self._bus.address, self._console.width))
        finally:
            self._watch.close()

    def _draw(self, ended: Callable[[], bool]) -> None:
        with Live(console=self._console, screen=True, auto_refresh=False) as live:
            while not ended():
                view = panel(self._snapshot(), self._freshness, self._bus.address, self._console.width, "q: end")
                live.update(view, refresh=True)
                self._listen(_STEP_S, sys.stdin.isatty())

    def _print(self, stopped: Callable[[], bool]) -> None:
        prints_s = time.monotonic() + _LINE_S
        while not stopped():
            self._listen(_STEP_S)
            if time.monotonic() < prints_s:
                continue
            prints_s += _LINE_S
            snapshot = self._snapshot()
            try:
                print(json.dumps(snapshot) if self._as_json else plain(snapshot, self._bus.address), flush=True)
            except BrokenPipeError:  # `top | head`: nobody reads any more, and the flush at exit must not complain
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return

    def _listen(self, seconds: float, keys: bool = False) -> None:
        """Wait, for a key too if there are some, then take what has come."""
        select.select([sys.stdin] if keys else [], [], [], seconds)
        self._watch.step(time.monotonic_ns())

    def _snapshot(self) -> dict[str, Any]:
        now_ns = time.monotonic_ns()
        return self._watch.snapshot(now_ns) | {"processes": self._processes.measure(now_ns)}


@contextmanager
def _keys(wanted: bool) -> Iterator[Callable[[], bool]]:
    """Whether q was pressed since; the terminal gives keys without Enter meanwhile, and is put back afterwards."""
    if not wanted or not sys.stdin.isatty():
        yield lambda: False
        return
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def pressed() -> bool:
        if not select.select([terminal], [], [], 0)[0]:
            return False
        keys = os.read(terminal, 64)
        return not keys or b"q" in keys.lower()  # nothing to read: the terminal is gone

    tty.setcbreak(terminal)
    try:
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
