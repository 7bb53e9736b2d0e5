"""Episodes of a policy, as they are kept for training."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from sim import expert, tasks
from sim.rollouts import Collector, Rollouts, Scene, labelled, successes
from sim.situation import Situation
from sim.source import TabletopSource

pytestmark = pytest.mark.usefixtures("can_render")


class Stands:
    """A policy that never moves; its features are the mean of every image, so that frames can be told apart."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.ages: list[float] = []

    def features(self, images, instructions):
        self.asked += instructions
        return np.stack([image.reshape(len(image), -1).mean(axis=1) for image in images.values()], axis=1)[:, None]

    def act(self, tokens, states, age_ms):
        self.ages += age_ms.tolist()
        return np.repeat(states[:, None], 8, axis=1)


class Knows(Stands):
    """The expert behind the interface of a policy."""

    collector: Collector

    def act(self, tokens, states, age_ms):
        self.ages += age_ms.tolist()
        tables = self.collector.tables
        poses = np.stack([table.robot.block_poses for table in tables])
        situation = Situation.of(states, poses, [table.task for table in tables])
        return expert.targets(situation, 8, 0.1)


def run(policy: Stands, scenes: int, share: float = 0.0, kinds: tuple[str, ...] = tasks.KINDS) -> list[Scene]:
    collector = Collector(policy, 3, 2, kinds, 800.0, share)
    if isinstance(policy, Knows):
        policy.collector = collector
    return list(itertools.islice(collector.scenes(), scenes))


@pytest.fixture(scope="module")
def of_the_expert() -> list[Scene]:
    return run(Knows(), 16)


@pytest.fixture(scope="module")
def kept(of_the_expert: list[Scene]) -> Rollouts:
    return labelled(of_the_expert, 8)


def test_every_frame_has_its_ticks_of_50_ms_after_it(kept: Rollouts) -> None:
    frames = len(kept.frame_tick)
    ticks_ms = kept.stamp_ms[frames:]
    assert len(kept.states) == len(kept.targets) == len(ticks_ms)
    np.testing.assert_array_equal(kept.stamp_ms[:frames], ticks_ms[kept.frame_tick])
    assert (kept.last_tick >= kept.frame_tick + 1).all()
    for first, last in zip(kept.frame_tick, kept.last_tick, strict=True):
        np.testing.assert_allclose(np.diff(ticks_ms[first : last + 1]), 50.0)


def test_features_are_of_the_frame_they_stand_beside(of_the_expert: list[Scene], kept: Rollouts) -> None:
    frames = [frame for scene in of_the_expert for frame in scene.frames]
    for made, frame in zip(kept.tokens, frames, strict=True):
        np.testing.assert_allclose(made[0], [image.mean() for image in frame.look.images.values()], rtol=1e-3)


def test_a_frame_shows_the_blocks_where_the_track_has_them(of_the_expert: list[Scene]) -> None:
    from sim.scene import COLOURS

    bright = 0
    for scene in of_the_expert:
        for look in scene.looks():
            for index in np.flatnonzero(look.visible["top"][:4]):
                u, v = (look.uv["top"][index] * 112).astype(int)
                red, green, blue = (int(value) for value in look.images["top"][v, u])
                likely = {"red": red > green + 60, "green": green > red + 60, "blue": blue > red + 60,
                          "yellow": red > blue + 60}  # fmt: skip
                bright += likely[COLOURS[index]]
    seen = sum(int(look.visible["top"][:4].sum()) for scene in of_the_expert for look in scene.looks())
    assert bright > 0.85 * seen


def test_the_expert_behind_the_policy_does_what_is_asked(of_the_expert: list[Scene], kept: Rollouts) -> None:
    done = Counter(success for _, _, success in kept.outcomes)
    assert done[True] >= 12 and done[False] <= 1
    assert " of " in successes(kept.outcomes)


def test_labels_are_where_the_expert_went(kept: Rollouts) -> None:
    """100 ms after a tick, lagging servos are most of the way to what its label said."""
    first = kept.frame_tick[kept.last_tick >= kept.frame_tick + 2]
    asked = kept.targets[first, 0, :5] - kept.states[first, :5]
    went = kept.states[first + 2, :5] - kept.states[first, :5]
    moving = np.abs(asked).max(axis=1) > 0.05
    along = (asked * went).sum(axis=1)[moving] / (asked**2).sum(axis=1)[moving]
    assert 0.5 < np.median(along) < 1.2


def test_features_grow_as_old_as_deployment_lets_them() -> None:
    policy = Stands()
    run(policy, 6, kinds=("touch",))
    assert min(policy.ages) == 0.0 and 700.0 <= max(policy.ages) <= 900.0
    assert set(policy.asked) <= set(tasks.all_wordings("seen", ("touch",)))


def test_an_arm_stands_until_the_first_features_of_its_task_are_there() -> None:
    """As it does when deployed: so the features that it sets out on are as old as those that follow."""
    scenes = run(Knows(), 8, kinds=("touch",))
    whole = [scene for scene in scenes if len(scene.outcomes) == len(set(scene.last_tick))]
    delays_ms = [scene.outcomes[0][1] for scene in whole]
    assert len(set(delays_ms)) > 2
    for scene, delay_ms in zip(whole, delays_ms, strict=True):
        moved = np.abs(np.array(scene.states)[:, :5] - scene.states[0][:5]).max(axis=1) > 0.01
        assert 0 <= moved.argmax() * 50.0 - delay_ms <= 150.0


def test_a_policy_that_stands_still_is_labelled_all_the_same() -> None:
    found = labelled(run(Stands(), 3, kinds=("touch",)), 8)
    assert not any(done for _, _, done in found.outcomes)
    wanted = np.abs(found.targets[:, 0, :5] - found.states[:, :5]).max(axis=1)
    assert np.median(wanted) > 0.05


def test_the_expert_helps_a_policy_that_stands_still() -> None:
    helped, alone = (
        np.concatenate([np.ptp(np.array(scene.states)[:, :5], axis=0) for scene in run(Stands(), 4, share, ("touch",))])
        for share in (6.0, 0.0)
    )
    assert helped.max() > 0.3 > alone.max()


def test_the_same_seed_gives_the_same_episodes() -> None:
    first, second = (labelled(run(Stands(), 2, share=2.0), 8) for _ in range(2))
    np.testing.assert_array_equal(first.states, second.states)
    np.testing.assert_array_equal(first.targets, second.targets)


def test_training_meets_demonstrations_first_and_then_the_policys_own_episodes() -> None:
    policy = Stands()
    has_begun: list[bool] = []
    source = TabletopSource(("touch",), frames=8)
    stream = source._mixture(3, lambda: policy if has_begun else None, lambda line: None)
    list(itertools.islice(stream, 30))
    assert policy.asked == []
    has_begun.append(True)
    list(itertools.islice(stream, 60))
    assert len(policy.asked) > 10
