"""The Robot protocol: what a simulator and an arm on the desk have in common."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from control.captures import Captures
from control.messages import Instruction, RobotSpec


@runtime_checkable
class Robot(Protocol):
    """A robot that the host process drives. One thread calls it; every call returns within a few milliseconds.

    The host calls `connect` once, then in turn `read_state`, `apply` and `read_frames` at its own rates, and at the end
    `hold` and `close`. Errors are raised, never hidden: the host holds the robot and ends the run.
    """

    @property
    def spec(self) -> RobotSpec:
        """Known before `connect`, and never changes."""
        ...

    def connect(self) -> None: ...

    def read_state(self) -> np.ndarray:
        """Newest measurement, (S,) float64 in the order of `spec.state_names`."""
        ...

    def read_frames(self) -> dict[str, np.ndarray]:
        """Newest image of every camera, (height, width, 3) uint8 RGB, sizes as in `spec.cameras`."""
        ...

    def apply(self, targets: np.ndarray) -> np.ndarray:
        """Command (A,) targets now; returns what was really commanded, which may be clipped by the driver.

        Raises ValueError for targets of another shape, and for NaN or infinity.
        """
        ...

    def hold(self) -> None:
        """Keep the last commanded target, with power on. Safe to call at any time after `connect`."""
        ...

    def close(self) -> None:
        """Release the device without dropping the arm. Safe to call twice."""
        ...


@runtime_checkable
class Draws(Protocol):
    """What a simulated robot adds when it can draw scenes as its policy meets them, without being driven there."""

    def draw(self, seed: int, count: int) -> Captures:
        """Scenes, states and instructions, the same for the same seed."""
        ...


@runtime_checkable
class Judge(Protocol):
    """What a robot adds when it can tell by itself whether a task is done: simulators, and rigs with sensors."""

    def begin(self, instruction: Instruction) -> None:
        """A new instruction was given; the arm goes on with the old one until its first features are in."""
        ...

    def judge(self) -> bool | None:
        """Whether the last instruction is done, None when it is no task this robot knows."""
        ...
