"""The robot as the loop knows it: its spec and limits, checked once against the policy, and its newest usable state."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from control.clock import NS_PER_MS
from control.errors import MismatchError
from control.head import ActionHead
from control.messages import RobotSpec, State
from control.safety import Limits, find_bad_history, find_bad_state, find_following_error, find_outside


class MeasuredRobot:
    """`find_misfits` says in sentences why the policy cannot drive a robot; names are checked here in any case."""

    def __init__(
        self,
        head: ActionHead,
        find_misfits: Callable[[RobotSpec], list[str]],
        make_limits: Callable[[RobotSpec], Limits],
        state_max_age_ms: float,
        allow_unmeasured: bool,
        max_following_s: float,
        needed_cameras: frozenset[str] | None = None,
    ) -> None:
        """`needed_cameras`: those that the policy cannot do without, None for all."""
        self._head, self._find_misfits, self._make_limits = head, find_misfits, make_limits
        self._state_max_age_ms, self._allow_unmeasured = state_max_age_ms, allow_unmeasured
        self._max_following_s, self._needed_cameras = max_following_s, needed_cameras
        self.spec: RobotSpec | None = None
        self.limits: Limits | None = None
        self.state: State | None = None

    def take_spec(self, spec: RobotSpec | None) -> None:
        """Raises MismatchError for a robot that policy or limits do not fit, and for another one in mid-run."""
        if spec is None or (self.spec is not None and spec.equals(self.spec)):
            return
        if self.spec is not None:
            raise MismatchError(
                f"robot '{self.spec.name}' was replaced in mid-run by '{spec.name}', with other cameras or limits;"
                " restart the run"
            )
        if misfits := self._find_misfits(spec):
            raise MismatchError(f"policy {self._head.policy_id} does not fit robot '{spec.name}': {'; '.join(misfits)}")
        for label, ours, theirs in (
            ("action", self._head.action_names, spec.action_names),
            ("state", self._head.state_names, spec.state_names),
        ):
            if tuple(ours) != tuple(theirs):
                raise MismatchError(
                    f"policy {self._head.policy_id} does not fit robot '{spec.name}': the policy was trained with"
                    f" {label} names {list(ours)}, the robot has {list(theirs)}; choose a policy of this robot"
                )
        unmeasured = set(spec.action_names) - set(spec.state_names)
        if unmeasured and not self._allow_unmeasured:
            raise MismatchError(
                f"robot '{spec.name}' does not measure its actions {sorted(unmeasured)}, so no first step is bounded;"
                " add them to its state, or accept the risk with safety.allow_unlimited: true"
            )
        self.limits = self._make_limits(spec)
        self.spec = spec

    def take_state(self, state: State | None) -> bool:
        """Take the newest state; True when the robot host was started again since the one before."""
        if state is None:
            return False
        is_restarted = self.state is not None and state.seq < self.state.seq
        self.state = state
        return is_restarted

    def find_fault(self, began_ns: int, polled_ns: int, spec_refusal: str, state_refusal: str) -> str:
        """Why the newest state cannot be acted on, '' when it can. The refusals explain messages that did not decode.

        Its age is that at the beginning of the tick. One that came within the tick, before it was polled, is younger
        than that, and from no future.
        """
        if self.spec is None:
            return f"waiting for the robot host{f' ({spec_refusal})' if spec_refusal else ''}"
        because = f" ({state_refusal})" if state_refusal else ""
        if self.state is None:
            return f"no state from the robot yet{because}"
        age_ms = (began_ns - self.state.stamp_ns) / NS_PER_MS
        if age_ms > self._state_max_age_ms:
            limit_ms = self._state_max_age_ms
            return f"the state is {age_ms:.0f} ms old, limit {limit_ms:g}: robot host stalled{because}"
        ahead_ms = (self.state.stamp_ns - polled_ns) / NS_PER_MS
        if ahead_ms > 1.0:
            return (
                f"the state is stamped {ahead_ms:.0f} ms in the future: robot host and controller must share one clock"
            )
        bad = find_bad_state(self.state.values, self.spec)
        return bad or find_bad_history(self.state.history, self._head.window_samples, self.spec)

    def find_danger(self, commanded: np.ndarray | None) -> str:
        """Why this usable state is reason for STOP, '' when it is none: outside its limits, or far from the command
        (A,), which is None where the arm may stand anywhere.
        """
        if self.spec is None or self.state is None:
            return ""
        outside = find_outside(self.state.values, self.spec)
        if outside or commanded is None:
            return outside
        return find_following_error(self.state.values, commanded, self.spec, self._max_following_s)

    @property
    def camera_fault(self) -> str:
        """What the robot host says is wrong with a camera that the policy needs, '' when all is well."""
        faults = self.state.camera_faults if self.state is not None else {}
        wrong = [
            f"camera '{name}' {fault}"
            for name, fault in sorted(faults.items())
            if self._needed_cameras is None or name in self._needed_cameras
        ]
        return "; ".join(wrong)
