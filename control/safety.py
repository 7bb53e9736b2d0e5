"""What may reach the robot: limits as small pure functions, the freshness ladder, and the mode machine.

No I/O and no clock. Letters: H horizon, A actions. Nothing is ever repaired here that should be refused: a non-finite
target is a fault, since clipping NaN yields NaN in one library and a limit in the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from control.errors import MismatchError
from control.messages import Mode, RobotSpec

OUTSIDE_TOLERANCE = 0.1  # of an action's range: how far outside its limits an arm may be found and led back
MAX_BAD_TARGETS = 3  # non-finite or mis-shaped chunks in a row before STOP


@dataclass(frozen=True, slots=True)
class Freshness:
    """How old the features may be, in ms: from `slow_after` speed falls, reaching zero at `hold_after`; then STOP."""

    slow_after_ms: float
    hold_after_ms: float
    stop_after_ms: float

    def __post_init__(self) -> None:
        if not 0 < self.slow_after_ms < self.hold_after_ms < self.stop_after_ms:
            raise ValueError(
                "freshness: expected 0 < slow_after_ms < hold_after_ms < stop_after_ms,"
                f" got {self.slow_after_ms:g}, {self.hold_after_ms:g}, {self.stop_after_ms:g}"
            )

    def speed(self, age_ms: float) -> float:
        """1 when fresh, falling linearly to 0 at `hold_after_ms`."""
        return float(np.clip((self.hold_after_ms - age_ms) / (self.hold_after_ms - self.slow_after_ms), 0.0, 1.0))


@dataclass(frozen=True, slots=True, eq=False)
class Limits:
    """Bounds of every action in its own unit: positions (A,), and the largest step of one period (A,)."""

    names: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    max_step: np.ndarray
    workspace_low: np.ndarray
    workspace_high: np.ndarray

    @classmethod
    def of(
        cls,
        spec: RobotSpec,
        period_s: float,
        workspace: dict[str, tuple[float, float]] | None = None,
        allow_unlimited: bool = False,
    ) -> Limits:
        """The robot's limits, narrowed by `workspace` (action name -> low, high). MismatchError for unbounded ones."""
        workspace = workspace or {}
        unknown = workspace.keys() - set(spec.action_names)
        if unknown:
            raise MismatchError(
                f"safety.workspace names {', '.join(sorted(unknown))};"
                f" robot '{spec.name}' has {', '.join(spec.action_names)}"
            )
        low, high = spec.action_low.copy(), spec.action_high.copy()
        unbounded = ~(np.isfinite(low) & np.isfinite(high) & np.isfinite(spec.max_velocity))
        if unbounded.any() and not allow_unlimited:
            names = [name for name, bad in zip(spec.action_names, unbounded, strict=True) if bad]
            raise MismatchError(
                f"robot '{spec.name}' gives no finite limits for {', '.join(names)}; add them to its spec,"
                " or accept the risk in plain words with safety.allow_unlimited: true"
            )
        for index, name in enumerate(spec.action_names):
            if name in workspace:
                low[index], high[index] = workspace[name]
        if not (np.maximum(low, spec.action_low) < np.minimum(high, spec.action_high)).all():
            raise MismatchError("safety.workspace leaves no room inside the robot's own limits")
        return cls(spec.action_names, spec.action_low, spec.action_high, spec.max_velocity * period_s, low, high)


class Gated(NamedTuple):
    """Targets (H, A) that may be sent, the limits they had hit, and the fault that forbids sending anything."""

    targets: np.ndarray
    hit: tuple[str, ...]
    fault: str


def find_bad_state(values: np.ndarray, spec: RobotSpec) -> str:
    """Why this measurement (S,) cannot be acted on, '' when it can."""
    names = spec.state_names
    if values.shape != (len(names),):
        return f"the state has {values.shape[0]} values, expected {len(names)}: {', '.join(names)}"
    if not np.isfinite(values).all():
        index = int(np.flatnonzero(~np.isfinite(values))[0])
        return f"the state of {names[index]} is {values[index]}: sensor or driver fault"
    measured = dict(zip(names, values, strict=True))
    for name, low, high in zip(spec.action_names, spec.action_low, spec.action_high, strict=True):
        tolerance = OUTSIDE_TOLERANCE * (high - low)
        if name in measured and not low - tolerance <= measured[name] <= high + tolerance:
            return (
                f"the state of {name} is {measured[name]:.3g}, far outside its limits {low:.3g}..{high:.3g}:"
                " wrong unit, or not calibrated?"
            )
    return ""


def find_bad_history(history: np.ndarray | None, samples: int, spec: RobotSpec) -> str:
    """Why this window of states cannot be acted on by a head that needs so many `samples`, '' when it can."""
    if not samples:
        return ""
    if history is None:
        return (
            f"no window of the last {samples} states yet: the robot host fills it after its start, where"
            f" robot.history_samples is {samples}"
        )
    if history.shape != (samples, len(spec.state_names)):
        return (
            f"the window of states has shape {history.shape}, the policy needs {(samples, len(spec.state_names))}:"
            " robot.history_samples differs from the policy's window"
        )
    if not np.isfinite(history).all():
        index = int(np.argwhere(~np.isfinite(history))[0][1])
        return f"the window of states holds NaN or infinity for {spec.state_names[index]}: sensor or driver fault"
    return ""


def find_bad_target(targets: np.ndarray, actions: int) -> str:
    """Why these targets cannot be used at all, '' when they can."""
    if not isinstance(targets, np.ndarray) or targets.ndim != 2 or targets.shape[1] != actions or not len(targets):
        shape = getattr(targets, "shape", type(targets).__name__)
        return f"the head gave targets of shape {shape}, expected (H, {actions})"
    if targets.dtype.kind != "f":
        return f"the head gave targets of type {targets.dtype}, expected floating point"
    if not np.isfinite(targets).all():
        row, column = np.argwhere(~np.isfinite(targets))[0]
        return f"the head gave {targets[row, column]} for action {column} of row {row}"
    return ""


def clip_position(targets: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Targets inside [low, high], and which columns (A,) were outside."""
    clipped = np.clip(targets, low, high)
    return clipped, (clipped != targets).any(axis=0)


def clip_velocity(
    targets: np.ndarray, last: np.ndarray, max_step: np.ndarray, speed: float
) -> tuple[np.ndarray, np.ndarray]:
    """Targets whose every step from the one before (row 0: `last`) is at most `max_step`, then scaled by `speed`."""
    result = np.empty_like(targets)
    hit = np.zeros(targets.shape[1], dtype=bool)
    previous = last
    for row, target in enumerate(targets):
        step = target - previous
        bounded = np.clip(step, -max_step, max_step)
        hit |= np.abs(step) > max_step * (1 + 1e-9)
        previous = result[row] = previous + bounded * speed
    return result, hit


def gate(targets: np.ndarray, last: np.ndarray, limits: Limits, speed: float = 1.0) -> Gated:
    """The one way to the bus: shape and finiteness, position, workspace, velocity against the last commanded target.

    A robot found outside its limits is led back at no more than its velocity limit, never thrown back.
    """
    fault = find_bad_target(targets, len(limits.names))
    if fault:
        return Gated(np.empty((0, len(limits.names))), (), fault)
    inside, out_of_position = clip_position(targets.astype(np.float64), limits.low, limits.high)
    inside, out_of_workspace = clip_position(inside, limits.workspace_low, limits.workspace_high)
    bounded, too_fast = clip_velocity(inside, last, limits.max_step, speed)
    hit = [f"position {limits.names[i]}" for i in np.flatnonzero(out_of_position)]
    hit += [f"workspace {limits.names[i]}" for i in np.flatnonzero(out_of_workspace)]
    hit += [f"velocity {limits.names[i]}" for i in np.flatnonzero(too_fast)]
    return Gated(bounded, tuple(hit), "")


def next_mode(mode: Mode, *, fault: str, stop: str, resume: bool) -> Mode:
    """The mode machine. `fault` and `stop` are reasons, '' when there is none.

    INIT ends when nothing is missing and never comes back; HOLD ends by itself; STOP is latched until `resume`, which
    does not override a cause that is still there.
    """
    if stop:
        return Mode.STOP
    if mode is Mode.STOP and not resume:
        return Mode.STOP
    if mode is Mode.INIT:
        return Mode.INIT if fault else Mode.RUN
    return Mode.HOLD if fault else Mode.RUN
