"""Episodes of a policy, as they are kept for training."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sim import expert, tasks
from sim.rollouts import Collector, Rollouts

pytestmark = pytest.mark.usefixtures("can_render")


class Stands:
    """A policy that never moves; its features are the mean of every image, so that frames can be told apart."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def features(self, images, instructions):
        self.asked.append(list(instructions))
        return np.stack([image.reshape(len(image), -1).mean(axis=1) for image in images.values()], axis=1)[:, None]

    def act(self, tokens, states, age_ms):
        return np.repeat(states[:, None], 8, axis=1)


class Knows(Stands):
    """The expert behind the interface of a policy."""

    collector: Collector

    def act(self, tokens, states, age_ms):
        tables = self.collector._tables
        poses = np.stack([table.robot.block_poses for table in tables])
        situation = expert.Situation.of(states, poses, [table.task for table in tables])
        return expert.targets(situation, 8, 0.1)


def run(policy: Stands, frames: int, share: float = 0.0, kinds: tuple[str, ...] = tasks.KINDS) -> Rollouts:
    collector = Collector(policy, 3, 2, kinds, 400.0, share)
    if isinstance(policy, Knows):
        policy.collector = collector
    return collector.run(frames, 8)


@pytest.fixture(scope="module")
def of_the_expert() -> Rollouts:
    return run(Knows(), 500)


def test_every_frame_has_its_ticks_of_50_ms_after_it(of_the_expert: Rollouts) -> None:
    kept = of_the_expert
    frames = len(kept.frame_tick)
    assert frames >= 500 and kept.tokens.shape[0] == frames and len(kept.states) == 2 * frames
    ticks_ms = kept.stamp_ms[frames:]
    np.testing.assert_array_equal(kept.stamp_ms[:frames], ticks_ms[kept.frame_tick])
    assert (kept.last_tick >= kept.frame_tick + 1).all()
    for first, last in zip(kept.frame_tick[::7], kept.last_tick[::7], strict=True):
        np.testing.assert_allclose(np.diff(ticks_ms[first : last + 1]), 50.0)


def test_the_expert_behind_the_policy_does_what_is_asked(of_the_expert: Rollouts) -> None:
    done = Counter(success for _, _, success in of_the_expert.outcomes)
    assert done[True] >= 10 and done[False] <= 1


def test_labels_are_where_the_expert_went(of_the_expert: Rollouts) -> None:
    """100 ms after a tick, lagging servos are most of the way to what its label said."""
    kept = of_the_expert
    first = kept.frame_tick[kept.last_tick >= kept.frame_tick + 2]
    asked = kept.targets[first, 0, :5] - kept.states[first, :5]
    went = kept.states[first + 2, :5] - kept.states[first, :5]
    moving = np.abs(asked).max(axis=1) > 0.05
    along = (asked * went).sum(axis=1)[moving] / (asked**2).sum(axis=1)[moving]
    assert 0.5 < np.median(along) < 1.2


def test_a_policy_that_stands_still_is_labelled_all_the_same() -> None:
    policy = Stands()
    kept = run(policy, 130, kinds=("touch",))
    assert kept.outcomes == [] or not any(done for _, _, done in kept.outcomes)
    wanted = np.abs(kept.targets[:, 0, :5] - kept.states[:, :5]).max(axis=1)
    assert np.median(wanted) > 0.05
    seen = {text for texts in policy.asked for text in texts}
    assert seen <= set(tasks.all_wordings("seen", ("touch",)))


def test_the_expert_helps_a_policy_that_stands_still() -> None:
    kept = run(Stands(), 240, share=6.0, kinds=("touch",))
    still = run(Stands(), 240, share=0.0, kinds=("touch",))
    moved, unmoved = (np.ptp(rollouts.states[:, :5], axis=0).max() for rollouts in (kept, still))
    assert moved > unmoved


def test_the_same_seed_gives_the_same_episodes() -> None:
    first, second = run(Stands(), 40, share=2.0), run(Stands(), 40, share=2.0)
    np.testing.assert_array_equal(first.states, second.states)
    np.testing.assert_array_equal(first.targets, second.targets)
