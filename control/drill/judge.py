"""What must hold whatever goes wrong, checked on what was seen: pure functions of journals, actions and cycles.

A promise is broken in a sentence. Times are monotonic ns of this machine. Letters: A actions, H horizon.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from control.clock import NS_PER_MS, NS_PER_S
from control.drill.robot import Row
from control.messages import ActionChunk, Cycle, Mode, RobotSpec

_ROUNDING = 1e-6  # of a step
_MOVES = 1e-9  # of a target, less is rest


@dataclass(frozen=True, slots=True)
class Promises:
    """The limits of a run, as its config and its robot give them."""

    spec: RobotSpec
    period_ns: int  # of the loop
    host_period_ns: int
    watchdog_ns: int
    hold_after_ms: float
    state_max_age_ms: float
    longest_silence_ns: int  # between two cycles of a controller that runs


@dataclass(slots=True)
class Seen:
    """Everything that was seen, in the order of time."""

    rows: list[Row] = field(default_factory=list)
    actions: list[ActionChunk] = field(default_factory=list)  # as the controller sent them
    passed: list[ActionChunk] = field(default_factory=list)  # as the robot host got them, by their stamps
    cycles: list[Cycle] = field(default_factory=list)
    cycle_heard_ns: list[int] = field(default_factory=list)

    def since(self, from_ns: int) -> Seen:
        """What came from then on, with the row and the actions before it, which the first ones follow."""
        row = max(0, bisect_right([row.at_ns for row in self.rows], from_ns) - 1)
        action = bisect_right([action.stamp_ns for action in self.actions], from_ns)
        passed = max(0, bisect_right([action.stamp_ns for action in self.passed], from_ns) - 20)
        cycle = bisect_right(self.cycle_heard_ns, from_ns)
        heard_ns = self.cycle_heard_ns[cycle:]
        return Seen(self.rows[row:], self.actions[action:], self.passed[passed:], self.cycles[cycle:], heard_ns)


def oldest_action_ms(seen: Seen) -> float:
    """How long after the last action in RUN that had come the arm still moved, at most; 0 without motions."""
    stamps = [action.stamp_ns for action in seen.passed if action.mode is Mode.RUN]
    oldest_ns = 0
    for row in motions(seen.rows):
        index = bisect_right(stamps, row.at_ns) - 1
        oldest_ns = max(oldest_ns, row.at_ns - (stamps[index] if index >= 0 else seen.rows[0].at_ns))
    return oldest_ns / NS_PER_MS


def oldest_features_ms(cycles: Sequence[Cycle]) -> float:
    """The oldest features of any cycle in RUN, infinite for one that had none."""
    ages = [cycle.feature_age_ms for cycle in cycles if cycle.mode is Mode.RUN]
    return max((math.inf if age is None else age for age in ages), default=0.0)


def broken_promises(seen: Seen, promises: Promises) -> list[str]:
    """One sentence for each that does not hold, with the worst case."""
    found = (
        _steps_too_large(seen, promises),
        _outside_limits(seen, promises),
        _moved_without_action(seen, promises),
        _acted_on_old_data(seen, promises),
        _bad_actions(seen, promises),
    )
    return [sentence for sentence in found if sentence]


def largest_step(rows: Sequence[Row], spec: RobotSpec, host_period_ns: int) -> float:
    """The largest step between two commands of one robot host, over what its velocity limit allows; 0 for none."""
    allowed = spec.max_velocity * host_period_ns / NS_PER_S
    return max((float((np.abs(b.targets - a.targets) / allowed).max()) for a, b in _pairs(rows)), default=0.0)


def motions(rows: Sequence[Row]) -> list[Row]:
    """The commands that differ from the one before."""
    return [after for before, after in _pairs(rows) if np.abs(after.targets - before.targets).max() > _MOVES]


def _pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Each two commands that follow each other in one robot host, holds between them or not."""
    pairs, before = [], None
    for row in rows:
        if row.is_start:
            before = None
        elif row.targets is not None:
            if before is not None:
                pairs.append((before, row))
            before = row
    return pairs


def _steps_too_large(seen: Seen, promises: Promises) -> str:
    most = largest_step(seen.rows, promises.spec, promises.host_period_ns)
    return f"a command was {most:.3f} of the largest step that is allowed" if most > 1 + _ROUNDING else ""


def _outside_limits(seen: Seen, promises: Promises) -> str:
    spec = promises.spec
    for before, after in _pairs(seen.rows):
        nearer = np.abs(after.targets - np.clip(after.targets, spec.action_low, spec.action_high))
        was = np.abs(before.targets - np.clip(before.targets, spec.action_low, spec.action_high))
        if not np.isfinite(after.targets).all() or (nearer > was + _MOVES).any():  # it may be led back from outside
            return f"a command was outside the robot's limits: {after.targets.round(4).tolist()}"
    return ""


def _moved_without_action(seen: Seen, promises: Promises) -> str:
    """Every motion follows an action in RUN that had come and is younger than the watchdog."""
    oldest_ms = oldest_action_ms(seen)
    allowed_ms = (promises.watchdog_ns + promises.host_period_ns) / NS_PER_MS
    return f"the arm moved {oldest_ms:.0f} ms after the last action" if oldest_ms > allowed_ms else ""


def _acted_on_old_data(seen: Seen, promises: Promises) -> str:
    for cycle in seen.cycles:
        if cycle.mode is not Mode.RUN:
            continue
        if cycle.feature_age_ms is None or cycle.feature_age_ms >= promises.hold_after_ms:
            return f"RUN on features {cycle.feature_age_ms} ms old"
        if cycle.state_age_ms is None or cycle.state_age_ms > promises.state_max_age_ms:
            return f"RUN on a state {cycle.state_age_ms} ms old"
    return ""


def _bad_actions(seen: Seen, promises: Promises) -> str:
    """No row of a chunk is out of reach of the one before it, or outside the limits."""
    spec = promises.spec
    most = spec.max_velocity * promises.period_ns / NS_PER_S * (1 + _ROUNDING) + _MOVES
    for action in seen.actions:
        if action.mode is not Mode.RUN:
            continue
        if not np.isfinite(action.targets).all():
            return "an action held NaN or infinity"
        if (np.abs(np.diff(action.targets, axis=0)) > most).any():
            return "an action had a step beyond the velocity limit"
    return ""


def longest_silence_ms(seen: Seen) -> float:
    """Between two cycles of one controller."""
    pairs = zip(seen.cycles, seen.cycles[1:], strict=False)
    gaps = [b.stamp_ns - a.stamp_ns for a, b in pairs if b.seq > a.seq]
    return max(gaps, default=0) / NS_PER_MS
