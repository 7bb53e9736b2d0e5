"""Time: the monotonic clock, a clock for tests and lockstep, and a pacer on an absolute grid.

The only file that may sleep. Deadlines are grid points, start + n * period: relative sleep drifts (39 ms in 20 s,
measured), and catching up after an overrun fires two commands within half a period, a 2-5 fold velocity step. So a late
tick skips the grid points it missed, counts them, and keeps the phase.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


class Clock(Protocol):
    """A monotonic clock that can wait."""

    def now_ns(self) -> int: ...

    def sleep_until(self, deadline_ns: int) -> None: ...


class MonotonicClock:
    """The machine's monotonic clock, shared by all processes of one machine."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def sleep_until(self, deadline_ns: int) -> None:
        remaining_ns = deadline_ns - time.monotonic_ns()
        if remaining_ns > 0:
            time.sleep(remaining_ns / NS_PER_S)


class FakeClock:
    """A clock that moves only when told to: for tests, and for the simulator in lockstep."""

    def __init__(self, start_ns: int = NS_PER_S) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        return self._now_ns

    def advance(self, duration_ns: int) -> None:
        if duration_ns < 0:
            raise ValueError(f"a monotonic clock cannot go back, got {duration_ns} ns")
        self._now_ns += duration_ns

    def sleep_until(self, deadline_ns: int) -> None:
        self._now_ns = max(self._now_ns, deadline_ns)


class Tick(NamedTuple):
    """One grid point: `missed` counts the points skipped just before it."""

    deadline_ns: int
    lateness_ns: int
    missed: int


class Pacer:
    """Waits for the next point of a fixed grid. The first tick is one period after the first call.

    A point that is met later than a quarter of a period is given up and counted, so two ticks are never closer than
    three quarters of a period. `idle(deadline_ns)` may use the waiting time and must return before the deadline; the
    pacer sleeps the rest.
    """

    def __init__(self, clock: Clock, period_ns: int, idle: Callable[[int], None] | None = None) -> None:
        if period_ns <= 0:
            raise ValueError(f"period must be positive, got {period_ns} ns")
        self._clock = clock
        self._period_ns = period_ns
        self._tolerance_ns = period_ns // 4
        self._idle = idle
        self._next_ns: int | None = None

    def wait(self) -> Tick:
        if self._next_ns is None:
            self._next_ns = self._clock.now_ns() + self._period_ns
        missed = 0
        while True:
            now_ns = self._clock.now_ns()
            late_ns = now_ns - self._next_ns
            if late_ns > self._tolerance_ns:
                skipped = (late_ns - self._tolerance_ns - 1) // self._period_ns + 1
                missed += skipped
                self._next_ns += skipped * self._period_ns
            deadline_ns = self._next_ns
            if self._idle is not None and deadline_ns > now_ns:
                self._idle(deadline_ns)
            self._clock.sleep_until(deadline_ns)
            lateness_ns = self._clock.now_ns() - deadline_ns
            if lateness_ns <= self._tolerance_ns:
                self._next_ns = deadline_ns + self._period_ns
                return Tick(deadline_ns, lateness_ns, missed)
