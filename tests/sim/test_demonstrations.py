"""Labelled samples: repeatable, and their labels true to their images."""

import numpy as np
import pytest

from sim import expert, kinematics, tasks
from sim.demonstrations import sample_batches
from sim.scene import CAMERAS, COLOURS
from sim.tabletop import TabletopRobot

pytestmark = pytest.mark.usefixtures("can_render")
# Hue of each block as (strongest channels, weakest channels), whatever the light.
CHANNELS = {"red": ((0,), (1, 2)), "green": ((1,), (0, 2)), "blue": ((2,), (0, 1)), "yellow": ((0, 1), (2,))}


@pytest.fixture(scope="module")
def batch():
    return next(sample_batches(11, 64))


def test_shapes_and_types_are_the_promised_ones(batch):
    assert set(batch.images) == set(batch.target_uv) == set(batch.target_visible) == set(CAMERAS)
    for name in CAMERAS:
        assert batch.images[name].shape == (64, 112, 112, 3) and batch.images[name].dtype == np.uint8
        assert batch.target_uv[name].shape == (64, 2) and batch.target_uv[name].dtype == np.float32
        assert batch.target_visible[name].dtype == bool
        assert (batch.target_uv[name] >= 0).all() and (batch.target_uv[name] < 1).all()
    assert batch.states.shape == (64, 7) and batch.states.dtype == np.float32
    assert batch.targets.shape == (64, 8, 7) and batch.targets.dtype == np.float32
    assert batch.target_position.shape == (64, 3) and len(batch.instructions) == 64


def test_the_same_seed_gives_the_same_images(batch):
    again, other = next(sample_batches(11, 64)), next(sample_batches(12, 64))
    for name in CAMERAS:
        assert np.array_equal(batch.images[name], again.images[name])
    assert np.array_equal(batch.targets, again.targets) and batch.instructions == again.instructions
    assert not np.array_equal(batch.images["top"], other.images["top"])


def test_ages_cover_the_whole_range_and_no_more(batch):
    assert batch.feature_age_ms.min() >= 0 and batch.feature_age_ms.max() <= 600
    assert batch.feature_age_ms.max() - batch.feature_age_ms.min() > 500


def test_the_arm_has_moved_on_from_the_rendered_pose_the_more_the_older_the_features(monkeypatch):
    posed, pose = [], TabletopRobot.pose

    def recorded(robot, joints, blocks=None):
        posed.append(joints)
        pose(robot, joints, blocks)

    monkeypatch.setattr(TabletopRobot, "pose", recorded)
    median_rad = {}
    for max_age_ms in (0.0, 600.0):
        sampled = next(sample_batches(5, 256, max_age_ms=max_age_ms, cameras=("top",), image_size=(16, 16)))
        moved = np.abs(sampled.states - np.array(posed[-256:]))[:, :6].max(axis=1)
        for low, high in ((0, 0), (50, 200), (250, 400), (450, 600)):
            these = (sampled.feature_age_ms >= low) & (sampled.feature_age_ms <= high)
            if these.sum() > 20:
                median_rad[low] = float(np.median(moved[these]))
    assert median_rad[0] < 0.006  # the measurement noise has a deviation of 0.002
    assert 0.02 < median_rad[50] < median_rad[250] < median_rad[450]
    assert median_rad[450] > 0.1


def coloured(image: np.ndarray, uv: np.ndarray, colour: str, reach: int) -> bool:
    """Whether a pixel of that colour lies within `reach` pixels of uv."""
    strong, weak = CHANNELS[colour]
    u, v = (uv * 112).astype(int)
    patch = image[max(v - reach, 0) : v + reach + 1, max(u - reach, 0) : u + reach + 1].astype(int)
    return bool((patch[..., strong].min(-1) > patch[..., weak].max(-1) + 50).any())


def test_the_label_points_at_pixels_of_the_named_colour(batch):
    exact, close = [], []
    for i, text in enumerate(batch.instructions):
        colour = tasks.parse(text).colour
        for name in CAMERAS:
            if batch.target_visible[name][i]:
                exact.append(coloured(batch.images[name][i], batch.target_uv[name][i], colour, 2))
                close.append(coloured(batch.images[name][i], batch.target_uv[name][i], colour, 7))
    assert len(exact) > 250
    assert np.mean(exact) > 0.95  # the rest: the centre is behind the hand, an edge of the block is not
    assert np.mean(close) > 0.99


def test_the_fixed_views_nearly_always_show_the_named_block(batch):
    shown = np.mean([batch.target_visible[name] for name in ("front", "left", "right")], axis=1)
    assert (shown > 0.85).all()
    assert np.any([batch.target_visible[name] for name in CAMERAS], axis=0).mean() > 0.98


def test_the_chunk_is_the_expert_from_the_acting_state(batch):
    expected = expert.targets(batch.states, batch.target_position, 8, 0.1)
    np.testing.assert_allclose(batch.targets, expected, atol=2e-4)


def test_states_lie_within_limits_and_the_tip_above_the_table(batch):
    assert (batch.states >= kinematics.LOW - 1e-6).all() and (batch.states <= kinematics.HIGH + 1e-6).all()
    assert kinematics.tip_position(batch.states)[:, 2].min() > -0.005


def test_every_colour_is_named(batch):
    assert {tasks.parse(text).colour for text in batch.instructions} == set(COLOURS)


def test_the_unseen_split_uses_only_unseen_wordings():
    unseen = {text for colour in COLOURS for text in tasks.wordings(colour, "unseen")}
    assert set(next(sample_batches(0, 16, split="unseen", cameras=("top",))).instructions) <= unseen
