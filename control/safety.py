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
    """Bounds of every action in its own unit: positions (A,), the largest step of one period (A,), and by how much a
    step may be larger than the one before it (A,); infinite where the robot gives no acceleration.
    """

    names: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    max_step: np.ndarray
    max_speeding_up: np.ndarray
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
        acceleration = np.inf if spec.max_acceleration is None else spec.max_acceleration
        speeding_up = np.broadcast_to(acceleration * period_s**2, low.shape)
        max_step = spec.max_velocity * period_s
        return cls(spec.action_names, spec.action_low, spec.action_high, max_step, speeding_up, low, high)


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
    return ""


def find_outside(values: np.ndarray, spec: RobotSpec) -> str:
    """Which measured action lies so far outside its limits that nothing may move, '' when none does."""
    measured = dict(zip(spec.state_names, values, strict=True))
    for name, low, high in zip(spec.action_names, spec.action_low, spec.action_high, strict=True):
        tolerance = OUTSIDE_TOLERANCE * (high - low)
        if name in measured and not low - tolerance <= measured[name] <= high + tolerance:
            return (
                f"the state of {name} is {measured[name]:.3g}, far outside its limits {low:.3g}..{high:.3g}:"
                " wrong unit, or not calibrated?"
            )
    return ""


def find_following_error(values: np.ndarray, commanded: np.ndarray, spec: RobotSpec, most_s: float) -> str:
    """Which action is measured further from its command (A,) than it moves in `most_s` at its velocity limit, ''
    when none is.
    """
    measured = dict(zip(spec.state_names, values, strict=True))
    for name, wanted, velocity in zip(spec.action_names, commanded, spec.max_velocity, strict=True):
        off = abs(measured.get(name, wanted) - wanted)
        if off > velocity * most_s:
            return (
                f"{name} is measured at {measured[name]:.3g} and commanded to {wanted:.3g}: further than the"
                f" {velocity * most_s:.3g} of safety.max_following_s ({most_s:g} s at its velocity limit);"
                " blocked, pushed, without power, or its sensor stands still"
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


def clip_steps(
    targets: np.ndarray, last: np.ndarray, last_step: np.ndarray, limits: Limits, speed: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets (H, A) whose every step from the one before (row 0: `last`, which came by `last_step`) is at most
    `max_step`, then scaled by `speed`, then at most `max_speeding_up` faster than the step before. With them the
    columns (A,) that were too fast, and those that sped up too suddenly.

    Slowing down is never limited: HOLD has to stop an arm, and one that may not brake would run past its position
    limits. So a step is only ever made shorter here.
    """
    result = np.empty_like(targets)
    too_fast, too_sudden = np.zeros((2, targets.shape[1]), dtype=bool)
    previous, before = last, last_step
    for row, target in enumerate(targets):
        step = target - previous
        too_fast |= np.abs(step) > limits.max_step * (1 + 1e-9)
        bounded = np.clip(step, -limits.max_step, limits.max_step) * speed
        slowest = np.minimum(before, 0.0) - limits.max_speeding_up
        fastest = np.maximum(before, 0.0) + limits.max_speeding_up
        before = np.clip(bounded, slowest, fastest)
        too_sudden |= np.abs(bounded - before) > 1e-9 * limits.max_step
        previous = result[row] = previous + before
    return result, too_fast, too_sudden


def gate(
    targets: np.ndarray, last: np.ndarray, limits: Limits, speed: float = 1.0, last_step: np.ndarray | None = None
) -> Gated:
    """The one way to the bus: shape and finiteness, position, workspace, velocity against the last commanded target,
    acceleration against the step (A,) by which that was reached, None where the arm stands.

    A robot found outside its limits is led back at no more than its velocity limit, never thrown back.
    """
    fault = find_bad_target(targets, len(limits.names))
    if fault:
        return Gated(np.empty((0, len(limits.names))), (), fault)
    inside, out_of_position = clip_position(targets.astype(np.float64), limits.low, limits.high)
    inside, out_of_workspace = clip_position(inside, limits.workspace_low, limits.workspace_high)
    standing = np.zeros(len(limits.names))
    last_step = standing if last_step is None else last_step
    bounded, too_fast, too_sudden = clip_steps(inside, last, last_step, limits, speed)
    hit = [f"position {limits.names[i]}" for i in np.flatnonzero(out_of_position)]
    hit += [f"workspace {limits.names[i]}" for i in np.flatnonzero(out_of_workspace)]
    hit += [f"velocity {limits.names[i]}" for i in np.flatnonzero(too_fast)]
    hit += [f"acceleration {limits.names[i]}" for i in np.flatnonzero(too_sudden)]
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
