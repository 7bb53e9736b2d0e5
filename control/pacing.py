"""Rules that pace a loop, run beside each other, and the figures that tell them apart.

Knows four rules and what they are judged by; refuses to know processes, tables and what the loop does between two ticks
(it is given `work`). Ours is `control.clock.Pacer`; the other three are what runtimes of the field do, written as
shortly as they stand there. All of them sleep with the same call of the same clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from control.clock import NS_PER_MS, Clock, Pacer
from control.report import percentiles


class Wake(NamedTuple):
    """One tick: when it ran, when this rule meant it to run, and the grid points the rule gave up just before it."""

    woke_ns: int
    due_ns: int
    missed: int


class Rule(Protocol):
    def wait(self) -> Wake: ...


class GridWithSkip:
    """Ours: points of an absolute grid; a point that cannot be met is given up."""

    def __init__(self, clock: Clock, period_ns: int) -> None:
        self._pacer = Pacer(clock, period_ns)

    def wait(self) -> Wake:
        tick = self._pacer.wait()
        return Wake(tick.deadline_ns + tick.lateness_ns, tick.deadline_ns, tick.missed)


class RelativeSleep:
    """`work(); sleep(period)`. A tick is meant one period after the one before; the work comes on top."""

    def __init__(self, clock: Clock, period_ns: int) -> None:
        self._clock, self._period_ns = clock, period_ns
        self._due_ns: int | None = None

    def wait(self) -> Wake:
        wake_ns = self._clock.now_ns() + self._period_ns
        due_ns = wake_ns if self._due_ns is None else self._due_ns
        self._clock.sleep_until(wake_ns)
        woke_ns = self._clock.now_ns()
        self._due_ns = woke_ns + self._period_ns
        return Wake(woke_ns, due_ns, 0)


class RebasedSleep:
    """`began = now(); work(); sleep(period - (now() - began))`: the work is taken off, the error of the wake-up adds
    up."""

    def __init__(self, clock: Clock, period_ns: int) -> None:
        self._clock, self._period_ns = clock, period_ns
        self._due_ns: int | None = None

    def wait(self) -> Wake:
        due_ns = self._clock.now_ns() + self._period_ns if self._due_ns is None else self._due_ns
        self._clock.sleep_until(due_ns)
        woke_ns = self._clock.now_ns()
        self._due_ns = woke_ns + self._period_ns
        return Wake(woke_ns, due_ns, 0)


class CatchUp:
    """`deadline += period; sleep(deadline - now())`: an absolute grid on which missed points are made up for."""

    def __init__(self, clock: Clock, period_ns: int) -> None:
        self._clock, self._period_ns = clock, period_ns
        self._due_ns: int | None = None

    def wait(self) -> Wake:
        due_ns = (self._clock.now_ns() if self._due_ns is None else self._due_ns) + self._period_ns
        self._clock.sleep_until(due_ns)
        self._due_ns = due_ns
        return Wake(self._clock.now_ns(), due_ns, 0)


RULES: dict[str, Callable[[Clock, int], Rule]] = {
    "grid with skip": GridWithSkip,
    "relative sleep": RelativeSleep,
    "re-based sleep": RebasedSleep,
    "catch-up": CatchUp,
}


@dataclass(slots=True)
class Trace:
    """What one rule did. `overslept_ns`: how long after the asked time each sleep ended, whatever the rule."""

    period_ns: int
    woke_ns: list[int] = field(default_factory=list)
    due_ns: list[int] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)
    overslept_ns: list[int] = field(default_factory=list)
    overruns_ns: list[tuple[int, int]] = field(default_factory=list)  # the tick that overran, the end of its work


class _Watched:
    """A clock that writes down by how much each sleep was too long."""

    def __init__(self, clock: Clock, overslept_ns: list[int]) -> None:
        self._clock, self._overslept_ns = clock, overslept_ns
        self.now_ns = clock.now_ns

    def sleep_until(self, deadline_ns: int) -> None:
        if self._clock.now_ns() >= deadline_ns:
            return
        self._clock.sleep_until(deadline_ns)
        self._overslept_ns.append(self._clock.now_ns() - deadline_ns)


def pace(
    rule: str,
    clock: Clock,
    period_ns: int,
    ends_ns: int,
    work: Callable[[], None],
    *,
    overruns_at_ns: Iterable[int] = (),
    overrun_ns: int = 0,
    going: Callable[[], bool] = lambda: True,
) -> Trace:
    """Ticks of `rule` up to `ends_ns`. The first tick after each of `overruns_at_ns` is held up for `overrun_ns`
    instead of working: asleep, as in a call that blocks, so that no core is taken from the other rules."""
    trace = Trace(period_ns)
    paced = RULES[rule](_Watched(clock, trace.overslept_ns), period_ns)
    held_up = deque(overruns_at_ns)
    while True:
        wake = paced.wait()
        trace.woke_ns.append(wake.woke_ns)
        trace.due_ns.append(wake.due_ns)
        trace.missed.append(wake.missed)
        if wake.woke_ns >= ends_ns or not going():
            return trace
        if held_up and wake.woke_ns >= held_up[0]:
            held_up.popleft()
            clock.sleep_until(clock.now_ns() + overrun_ns)
            trace.overruns_ns.append((wake.woke_ns, clock.now_ns()))
        else:
            work()


def figures(trace: Trace, keeps_grid: bool) -> dict[str, Any]:
    """The figures of one trace, times in ms. `keeps_grid`: whether the rule's deadlines are points of one grid.

    `lateness_ms` is against the rule's own deadline: the grid point for the two absolute rules, one period after the
    tick before for the two others. Ticks that an injected overrun delayed are left out of it, and stand in
    `after_overrun_ms`. `wakeup_ms` is the part that the sleep call itself was late, under every rule.

    `drift_ms` is how far the last tick stands from the ideal grid that begins with the first deadline, and
    `drift_of_overruns_ms` what the injected overruns have to do with it. `missed` counts the periods of that grid
    without a tick, apart from `missed_in_overruns`; `bursts` the intervals under half a period. Our rule's lateness
    ends at a quarter of a period, since it gives up what comes later: read it together with `missed`.
    """
    woke, due, missed = (np.asarray(values, np.int64) for values in (trace.woke_ns, trace.due_ns, trace.missed))
    late_ms = (woke - due) / NS_PER_MS
    delayed = _delayed(trace, woke, due)
    intervals_ms = np.diff(woke) / NS_PER_MS
    period_ms = trace.period_ns / NS_PER_MS
    first_ns = due[0] - missed[0] * trace.period_ns
    grid_ns = first_ns + (len(woke) - 1 + missed.sum()) * trace.period_ns
    places = (woke - first_ns + trace.period_ns // 2) // trace.period_ns
    empty = np.maximum(np.diff(places, prepend=-1) - 1, 0)  # before each tick
    return {
        "ticks": len(woke),
        "duration_s": float(woke[-1] - woke[0]) / 1e9,
        "overruns": len(trace.overruns_ns),
        "lateness_ms": percentiles(late_ms[~delayed]),
        "after_overrun_ms": percentiles(late_ms[delayed]),
        "wakeup_ms": percentiles(np.asarray(trace.overslept_ns) / NS_PER_MS),
        "drift_ms": float(woke[-1] - grid_ns) / NS_PER_MS,
        "drift_of_overruns_ms": 0.0 if keeps_grid else float(late_ms[delayed].sum()),
        "smallest_interval_ms": float(intervals_ms.min()) if len(intervals_ms) else None,
        "bursts": int((intervals_ms < period_ms / 2).sum()),
        "missed": int(empty[~delayed].sum()),
        "missed_in_overruns": int(empty[delayed].sum()),
    }


def _delayed(trace: Trace, woke: np.ndarray, due: np.ndarray) -> np.ndarray:
    """(N,) whether a tick is the first after an injected overrun, or was due before that overrun had ended."""
    delayed = np.zeros(len(woke), bool)
    for began_ns, ended_ns in trace.overruns_ns:
        first = int(np.searchsorted(woke, began_ns, side="right"))
        delayed[first : first + 1] = True
        delayed[first:] |= due[first:] < ended_ns
    return delayed
