"""What the table-top adds so that policies can be evaluated on it: trials, swaps, the expert, and words for failures.

A part of TabletopRobot that asks it only for what it shows to anybody; kept apart from physics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from control.errors import ConfigError
from control.messages import Instruction
from control.robot import Episode
from sim import episodes, expert
from sim.explain import explained
from sim.judging import TaskJudge
from sim.situation import Situation
from sim.tasks import Task


class BothJudges(TaskJudge):
    """Two judges that see the same; what it says itself is the new one's."""

    def __init__(self, new: TaskJudge, old: TaskJudge) -> None:
        self._new, self._old = new, old

    @property
    def task(self) -> Task | None:  # pyright: ignore[reportIncompatibleVariableOverride] - read only
        return self._new.task

    @property
    def verdict(self) -> bool | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._new.verdict

    @property
    def touched(self) -> list[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._new.touched

    @property
    def is_over(self) -> bool:
        return self._new.is_over

    def watch(self, touching: Sequence[str]) -> None:
        self._new.watch(touching)
        self._old.watch(touching)

    def look(self, blocks: Mapping[str, np.ndarray], touching: Sequence[str], passed_s: float) -> None:
        self._new.look(blocks, touching, passed_s)
        self._old.look(blocks, touching, passed_s)


class Evaluated(ABC):
    """See control.robot: Evaluates, ReadsWordings, Swaps, Demonstrates, Explains."""

    _judge: TaskJudge
    _reset_on_instruction: bool

    @abstractmethod
    def begin(self, instruction: Instruction) -> None: ...

    @abstractmethod
    def read_state(self) -> np.ndarray: ...

    @property
    @abstractmethod
    def block_poses(self) -> np.ndarray: ...

    def episodes(self, seed: int, count: int, tasks: str, wordings: str) -> list[Episode]:
        self._check_scene_stays()
        return episodes.drawn(seed, count, tasks, wordings)

    def wordings_of(self, file: Path, seed: int, count: int, tasks: str | None) -> list[Episode]:
        self._check_scene_stays()
        return episodes.given(file, seed, count, tasks)

    def another(self, episode: Episode, tasks: str, wordings: str) -> Episode:
        return episodes.another(episode, tasks, wordings)

    def begin_beside(self, instruction: Instruction) -> Callable[[], bool | None]:
        old = self._judge
        self.begin(instruction)
        self._judge = BothJudges(self._judge, old)
        return lambda: old.verdict

    def demonstrate(self, horizon: int) -> np.ndarray:
        q, task = self.read_state(), self._judge.task
        if task is None:
            return np.tile(q, (horizon, 1))
        poses = self.block_poses
        return expert.targets(Situation.of(q[None], poses[None], [task]), horizon)[0]

    def explain(self, before: dict[str, Any] | None = None) -> dict[str, Any]:
        q, poses = self.read_state(), self.block_poses
        return explained(q, poses, self._judge.task, tuple(self._judge.touched), before)

    def chance(self, task: str) -> dict[str, float]:
        return episodes.chance(task)

    def _check_scene_stays(self) -> None:
        if self._reset_on_instruction:
            raise ConfigError("eval places the blocks by itself: leave out robot.options.reset_on_instruction")
