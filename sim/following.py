"""A robot that follows targets in training as it does when deployed: through the safety gate and between two of them.

Training that applied each target at once had the arm ahead of where a robot host has it by then: of a policy that was
told the truth a second late, 15 of 48 picked up when driven as live, and 17 of 17 as it had been trained. Refuses to
know who makes the targets.
"""

from __future__ import annotations

import numpy as np

from control.clock import NS_PER_MS, NS_PER_S, FakeClock
from control.host import Follower
from control.messages import ActionChunk, Mode
from control.robot import Robot
from control.safety import Limits, gate

HOST_NS = 10 * NS_PER_MS  # the robot host's period, at its default rate


class Following:
    """Commands one robot on its simulated clock, a host period at a time."""

    def __init__(self, robot: Robot, clock: FakeClock, period_s: float) -> None:
        self._robot, self._clock, self._period_s = robot, clock, period_s
        self._limits = Limits.of(robot.spec, period_s)
        self.restart()

    def restart(self) -> None:
        """The arm stands somewhere else, and nothing was commanded yet."""
        period_ns = round(self._period_s * NS_PER_S)
        self._follower = Follower(self._robot.spec, 2 * period_ns, HOST_NS)
        self._target: np.ndarray | None = None  # (A,) that was aimed at last
        self._step: np.ndarray | None = None
        self._due_ns = 0  # when the host commands next

    def aim(self, target: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Where to be one control period from now, (A,); `state` (A,) is where the arm is, and counts at first.

        Returns what the gate let through, (A,).
        """
        last = state if self._target is None else self._target
        gated = gate(target[np.newaxis], last, self._limits, last_step=self._step)
        if gated.fault:
            raise ValueError(gated.fault)
        self._target = gated.targets[0]
        self._step = self._target - last
        now_ns = self._clock.now_ns()
        until_ns = now_ns + round(self._period_s * NS_PER_S)
        chunk = ActionChunk(0, now_ns, 0, 0.0, Mode.RUN, gated.targets, self._period_s, until_ns)
        self._follower.take(chunk, state, now_ns)
        return self._target

    def advance(self, duration_ns: int) -> None:
        """On the way there for so long. The host commands every `HOST_NS`, however short the pieces of time are."""
        ends_ns = self._clock.now_ns() + duration_ns
        while (now_ns := self._clock.now_ns()) < ends_ns:
            if now_ns >= self._due_ns:
                target = self._follower.target(now_ns)
                if target is not None:
                    self._follower.commanded = self._robot.apply(target)
                self._due_ns = now_ns + HOST_NS
            self._clock.advance(min(self._due_ns, ends_ns) - now_ns)
