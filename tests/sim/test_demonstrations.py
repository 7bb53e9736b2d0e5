"""Labelled samples: repeatable, and their labels true to their images."""

import itertools

import numpy as np
import pytest

from sim import expert, facts, tasks
from sim.demonstrations import PERIOD_S, TICK_S, Batch, looks, sample_batches
from sim.scene import CAMERAS, COLOURS
from sim.situation import Situation
from sim.tabletop import TabletopRobot

pytestmark = pytest.mark.usefixtures("can_render")
# Hue of each block as (strongest channels, weakest channels), whatever the light.
CHANNELS = {"red": ((0,), (1, 2)), "green": ((1,), (0, 2)), "blue": ((2,), (0, 1)), "yellow": ((0, 1), (2,))}
FRAMES, PER_FRAME, ACTING = 48, 3, 4
M = FRAMES * PER_FRAME


def one_batch(seed: int, **options) -> Batch:
    arguments = {"per_frame": PER_FRAME, "acting": ACTING, "pool": 80, "source": None} | options
    return next(sample_batches(seed, FRAMES, **arguments))


@pytest.fixture(scope="module")
def taken():
    """Frames of three episodes."""
    return list(itertools.islice(looks(11), 150))


@pytest.fixture(scope="module")
def batch(taken):
    return one_batch(11, source=lambda: iter(taken))


def test_shapes_and_types_are_the_promised_ones(batch):
    assert set(batch.images) == set(batch.truth.uv) == set(batch.truth.visible) == set(CAMERAS)
    for name in CAMERAS:
        assert batch.images[name].shape == (FRAMES, 112, 112, 3) and batch.images[name].dtype == np.uint8
        assert batch.truth.uv[name].shape == (M, 2, 2) and batch.truth.uv[name].dtype == np.float32
        assert batch.truth.visible[name].shape == (M, 2) and batch.truth.visible[name].dtype == bool
        assert (batch.truth.uv[name] >= 0).all() and (batch.truth.uv[name] < 1).all()
    assert batch.image_index.tolist() == [i for i in range(FRAMES) for _ in range(PER_FRAME)]
    assert batch.states.shape == (M, ACTING, 7) and batch.states.dtype == np.float32
    assert batch.feature_age_ms.shape == (M, ACTING) and batch.feature_age_ms.dtype == np.float32
    assert batch.targets.shape == (M, ACTING, 8, 7) and batch.targets.dtype == np.float32
    assert batch.truth.facts.shape == (M, len(facts.NAMES)) and batch.truth.facts.dtype == np.float32
    assert len(batch.instructions) == M and batch.rehearsal is None


def seen(images: dict[str, np.ndarray]) -> bytes:
    """Of all cameras: the arm may be out of sight of one of them."""
    return b"".join(images[name].tobytes() for name in CAMERAS)


def flat(batch: Batch) -> list[np.ndarray]:
    parts = [batch.image_index, batch.states, batch.feature_age_ms, batch.targets, batch.truth.facts]
    for name in batch.images:
        parts += [batch.images[name], batch.truth.uv[name], batch.truth.visible[name]]
    return parts


def test_the_same_arguments_give_the_same_bits_and_another_seed_gives_others():
    small = {"cameras": ("top", "wrist"), "image_size": (32, 48), "pool": 20}
    first, again, other = one_batch(3, **small), one_batch(3, **small), one_batch(4, **small)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(flat(first), flat(again), strict=True))
    assert first.instructions == again.instructions != other.instructions
    assert not np.array_equal(first.images["top"], other.images["top"])


def test_ages_cover_the_whole_range_and_no_more(batch):
    assert batch.feature_age_ms.min() == 0 and batch.feature_age_ms.max() == 1000
    assert set((batch.feature_age_ms % (TICK_S * 1000)).ravel()) == {0.0}
    assert np.percentile(batch.feature_age_ms, 25) < 350 and np.percentile(batch.feature_age_ms, 75) > 600


def test_the_chunk_is_the_experts_for_the_instruction_from_where_the_arm_was_that_long_after_the_frame(taken):
    """Against the track that a frame was taken from; of a scene at rest there may be several frames alike."""
    sampled = one_batch(5, source=lambda: iter(taken), pool=len(taken) - FRAMES, per_frame=1)
    for i in range(FRAMES):
        image = seen({name: images[i] for name, images in sampled.images.items()})
        task = tasks.parse(sampled.instructions[i])
        ticks = np.round(sampled.feature_age_ms[i] / 1000 / TICK_S).astype(int)
        alike = [
            look for look in taken if seen(look.images) == image and look.tick + ticks.max() < len(look.track.states)
        ]
        off = [np.abs(sampled.states[i] - look.track.states[look.tick + ticks]).max() for look in alike]
        assert min(off) < 0.012  # the measurement noise has a deviation of 0.002
        look = alike[int(np.argmin(off))]
        q, blocks = sampled.states[i].astype(np.float64), look.track.blocks[look.tick + ticks]
        wanted = expert.targets(Situation.of(q, blocks, [task] * ACTING), 8, PERIOD_S)
        wrong = np.abs(sampled.targets[i] - wanted).max(axis=(1, 2))
        assert np.median(wrong) < 1e-4  # a state kept as float32 may fall on the other side of one of the law's edges


def coloured(image: np.ndarray, uv: np.ndarray, colour: str, reach: int) -> bool:
    """Whether a pixel of that colour lies within `reach` pixels of uv."""
    strong, weak = CHANNELS[colour]
    u, v = (uv * 112).astype(int)
    patch = image[max(v - reach, 0) : v + reach + 1, max(u - reach, 0) : u + reach + 1].astype(int)
    return bool((patch[..., strong].min(-1) > patch[..., weak].max(-1) + 50).any())


def test_the_truth_points_at_pixels_of_the_named_colours(batch):
    exact, close = [], []
    for i, text in enumerate(batch.instructions):
        task = tasks.parse(text)
        for name in CAMERAS:
            image = batch.images[name][batch.image_index[i]]
            for q, colour in enumerate((task.colour, task.on)):
                if colour is not None and batch.truth.visible[name][i, q]:
                    exact.append(coloured(image, batch.truth.uv[name][i, q], colour, 2))
                    close.append(coloured(image, batch.truth.uv[name][i, q], colour, 7))
    assert len(exact) > 300
    assert np.mean(exact) > 0.95  # the rest: the centre is behind the hand, an edge of the block is not
    assert np.mean(close) > 0.99


def test_facts_are_those_of_the_frame_and_of_the_instruction(taken):
    sampled = one_batch(5, source=lambda: iter(taken), pool=len(taken) - FRAMES, per_frame=1)
    for i, text in enumerate(sampled.instructions):
        image = seen({name: images[i] for name, images in sampled.images.items()})
        look = next(look for look in taken if seen(look.images) == image)
        states, blocks = look.track.states[look.tick], look.track.blocks[look.tick]
        wanted = facts.of(Situation.of(states[None], blocks[None], [tasks.parse(text)]))
        np.testing.assert_allclose(sampled.truth.facts[i], wanted[0], atol=0.02)  # alike frames differ by less


def test_a_frame_serves_under_the_task_that_was_driven_and_under_others(batch):
    by_frame = np.array([tasks.parse(text) for text in batch.instructions], dtype=object).reshape(FRAMES, PER_FRAME)
    assert np.mean([len(set(row)) > 1 for row in by_frame]) > 0.9


def test_the_fixed_views_nearly_always_show_the_named_block(batch):
    shown = np.mean([batch.truth.visible[name][:, 0] for name in ("front", "left", "right")], axis=1)
    assert (shown > 0.8).all()
    assert np.any([batch.truth.visible[name][:, 0] for name in CAMERAS], axis=0).mean() > 0.95


def test_every_kind_and_colour_is_named(batch):
    named = [tasks.parse(text) for text in batch.instructions]
    assert {task.kind for task in named} == set(tasks.KINDS) and {task.colour for task in named} == set(COLOURS)


def test_chosen_kinds_and_the_unseen_split_are_kept_to():
    sampled = one_batch(0, split="unseen", kinds=("push-left", "stack"), cameras=("top",), image_size=(16, 16), pool=2)
    assert set(sampled.instructions) <= set(tasks.all_wordings("unseen", ("push-left", "stack")))


def test_episodes_go_where_a_policy_may_come_to(taken):
    """High and low, open and closed, blocks in the hand and pushed: not the expert's own path alone."""
    states = np.concatenate([look.track.states for look in {id(look.track): look for look in taken}.values()])
    assert states[:, 6].min() < 0.02 and states[:, 6].max() > 0.07
    assert np.ptp(states[:, 0]) > 0.8 and np.ptp(states[:, 5]) > 1.0


def test_the_robot_draws_scenes_for_those_who_need_captures():
    from control.clock import FakeClock

    robot = TabletopRobot(FakeClock(), cameras=["top"], image_size=(24, 32))
    captures = robot.draw(1, 5)
    assert len(captures) == 5 and captures.images["top"].shape == (5, 24, 32, 3)
    assert captures.states.shape == (5, 7) and captures.states.dtype == np.float64
    assert all(tasks.parse(text) for text in captures.instructions)
    again = robot.draw(1, 5)
    assert np.array_equal(captures.images["top"], again.images["top"]) and captures.instructions == again.instructions
