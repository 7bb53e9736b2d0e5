"""The table-top as a place to train: what it looks like, how people ask for things, and data without end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from control.clock import FakeClock
from control.messages import RobotSpec
from sim import tasks
from sim.demonstrations import PERIOD_S, Batch, sample_batches
from sim.rollouts import Collector, Policy, Rollouts
from sim.tabletop import TabletopRobot

HELD_OUT_SEED = 1_000_000
TABLES = 8  # side by side in a collecting process


class TabletopSource:
    """Demonstrations and labels for these tasks. `frames` of a batch come under two tasks each."""

    period_s = PERIOD_S
    objects = 2  # that an instruction is about

    def __init__(self, kinds: Sequence[str] = tasks.KINDS, frames: int = 16, max_age_ms: float = 1000.0) -> None:
        self._kinds, self._frames, self._max_age_ms = tuple(kinds), frames, max_age_ms

    @property
    def robot(self) -> RobotSpec:
        return TabletopRobot(FakeClock()).spec

    @property
    def wordings(self) -> list[str]:
        """Every sentence that training may use."""
        return tasks.all_wordings("seen", self._kinds)

    def batches(self, seed: int, horizon: int) -> Iterator[Batch]:
        return sample_batches(seed, self._frames, horizon=horizon, max_age_ms=self._max_age_ms, kinds=self._kinds)

    def held_out(self, horizon: int, count: int = 3) -> list[Batch]:
        """Batches from scenes that training never meets."""
        endless = sample_batches(
            HELD_OUT_SEED, 32, horizon=horizon, max_age_ms=self._max_age_ms, kinds=self._kinds, pool=256
        )
        return list(itertools.islice(endless, count))

    def collect(self, policy: Policy, seed: int, frames: int, horizon: int, expert_share: float) -> Rollouts:
        """Episodes of the policy, labelled."""
        tables = min(TABLES, max(1, frames // 100))
        return Collector(policy, seed, tables, self._kinds, self._max_age_ms, expert_share).run(frames, horizon)
