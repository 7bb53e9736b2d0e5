"""The table-top as a place to train: what it looks like, how people ask for things, and data without end."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from control.clock import FakeClock
from control.messages import RobotSpec
from sim import facts, tasks
from sim.demonstrations import PERIOD_S, Batch, Look, looks, sample_batches
from sim.own_episodes import TABLES, OwnEpisodes
from sim.practice import rehearsals
from sim.rehearsal import Rehearsal
from sim.rollouts import Collector, Policy, Rollouts, labelled
from sim.tabletop import TabletopRobot

HELD_OUT_SEED = 1_000_000
REHEARSED = 1024  # situations a batch


class TabletopSource:
    """Demonstrations and labels for these tasks. `frames` of a batch come under two tasks each."""

    period_s = PERIOD_S
    objects = 2  # that an instruction is about
    facts = facts.NAMES

    def __init__(self, kinds: Sequence[str] = tasks.KINDS, frames: int = 16, max_age_ms: float = 1000.0) -> None:
        self.kinds, self._frames, self._max_age_ms = tuple(kinds), frames, max_age_ms
        self._drawn = (*self.kinds, *(kind for kind in self.kinds if kind == "stack"))  # the hardest, twice as often

    @property
    def robot(self) -> RobotSpec:
        return TabletopRobot(FakeClock()).spec

    @property
    def wordings(self) -> list[str]:
        """Every sentence that training may use."""
        return tasks.all_wordings("seen", self.kinds)

    def batches(
        self,
        seed: int,
        horizon: int,
        current: Callable[[], Policy | None] = lambda: None,
        log: Callable[[str], None] = lambda line: None,
    ) -> Iterator[Batch]:
        """Demonstrations; once there is a `current` policy, half of the frames come from its own episodes.

        `log` is told now and then how often the policy alone did what was asked.
        """
        return sample_batches(
            seed,
            self._frames,
            horizon=horizon,
            max_age_ms=self._max_age_ms,
            kinds=self._drawn,
            source=lambda: self._mixture(seed, current, log),
            rehearsed=REHEARSED,
        )

    def practice(
        self,
        seed: int,
        horizon: int,
        current: Callable[[], Policy | None] = lambda: None,
        log: Callable[[str], None] = lambda line: None,
    ) -> Iterator[Rehearsal]:
        """Situations without pictures, also from the episodes of the `current` policy, which acts on facts."""
        return rehearsals(seed, self._drawn, REHEARSED, horizon, self._max_age_ms, current, log)

    def _mixture(self, seed: int, current: Callable[[], Policy | None], log: Callable[[str], None]) -> Iterator[Look]:
        demonstrated = looks(seed, self._drawn)
        own = OwnEpisodes(seed, self._drawn, self._max_age_ms, log, "own episodes")
        while True:
            policy = current()
            if policy is None:
                yield next(demonstrated)
                continue
            seen = own.scene(policy).looks()
            yield from seen
            yield from itertools.islice(demonstrated, len(seen))

    def held_out(self, horizon: int, count: int = 3) -> list[Batch]:
        """Batches from scenes that training never meets."""
        endless = sample_batches(
            HELD_OUT_SEED, 32, horizon=horizon, max_age_ms=self._max_age_ms, kinds=self.kinds, pool=256
        )
        return list(itertools.islice(endless, count))

    def collect(self, policy: Policy, seed: int, frames: int, horizon: int, expert_share: float) -> Rollouts:
        """Episodes of the policy, labelled."""
        tables = min(TABLES, max(1, frames // 100))
        collector = Collector(policy, seed, tables, self._drawn, self._max_age_ms, expert_share)
        scenes, count = [], 0
        for scene in collector.scenes():
            scenes.append(scene)
            count += len(scene.frames)
            if count >= frames:
                break
        return labelled(scenes, horizon)
