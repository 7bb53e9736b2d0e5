"""The Robot protocol: what a simulator and an arm on the desk have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

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
class StampsImages(Protocol):
    """What a robot adds when its driver knows when each image was taken: a late or frozen camera is then found by it,
    and features are as old as their oldest image.
    """

    @property
    def captured_ns(self) -> dict[str, int]:
        """Camera -> monotonic ns of the image that `read_frames` returned last."""
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


@dataclass(frozen=True, slots=True)
class Episode:
    """One trial of a policy: a scene, what is said in it, and how long it may take."""

    seed: int  # of the scene
    task: str  # what its success is counted under, like `touch`
    text: str  # what the encoder is told
    meaning: str  # the same in words that the robot understands, by which it judges
    limit_s: float


@runtime_checkable
class Evaluates(Judge, Protocol):
    """What a robot adds so that `launch.py eval` can measure a policy on it: seeded trials that it judges by itself.

    It is driven on a simulated clock: what it does must follow from its seed, its calls and `clock.now_ns()` alone.
    """

    @property
    def is_over(self) -> bool:
        """Whether nothing can change the verdict on the last instruction any more."""
        ...

    def reset(self, seed: int) -> None:
        """A fresh scene, the same for the same seed, with the robot where every episode starts."""
        ...

    def episodes(self, seed: int, count: int, tasks: str, wordings: str) -> list[Episode]:
        """`count` episodes of each task, the same for the same arguments.

        `tasks` is a list with commas of the robot's own names, or `all`; `wordings` is `seen` (in training) or
        `unseen`. Raises ConfigError naming what is known.
        """
        ...


@runtime_checkable
class ReadsWordings(Protocol):
    """What a robot adds that can be evaluated on a user's own sentences."""

    def wordings_of(self, file: Path, seed: int, count: int, tasks: str | None) -> list[Episode]:
        """`count` episodes of each task in a file of `task: sentence` lines. Raises ConfigError naming the line."""
        ...


@runtime_checkable
class Swaps(Protocol):
    """What a robot adds so that another instruction in mid-task can be judged: the new one, and the old one too."""

    def another(self, episode: Episode, tasks: str, wordings: str) -> Episode:
        """Something else to do in the same scene, the same for the same arguments."""
        ...

    def begin_beside(self, instruction: Instruction) -> Callable[[], bool | None]:
        """`begin`, and the verdict on the instruction before, which is judged on."""
        ...


@runtime_checkable
class Demonstrates(Protocol):
    """What a robot adds that knows by a script how its tasks are done, from the truth and with no camera."""

    def demonstrate(self, horizon: int) -> np.ndarray:
        """(H, A) targets for the last instruction from where everything stands, `spec.action_period_s` apart."""
        ...


@runtime_checkable
class Explains(Protocol):
    """What a robot adds that can say how things stand when an episode has failed."""

    def explain(self, before: dict[str, Any] | None = None) -> dict[str, Any]:
        """Values for JSON; `ended` is a few words to count failures by. `before` is what it said at the start."""
        ...

    def chance(self, task: str) -> dict[str, float]:
        """The success rate of a policy that does not look (`frozen_image`), and that does not listen (`empty`)."""
        ...


@runtime_checkable
class HasTip(Protocol):
    """What a robot adds that knows where its tool is."""

    @property
    def tip(self) -> np.ndarray:
        """(3,) m."""
        ...
