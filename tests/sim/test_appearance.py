"""Light and camera mounts: seeded, bounded, and always drawn from how the scene was built."""

import numpy as np
import pytest

from sim.appearance import MOUNT_M, MOUNT_RAD, Appearance
from sim.gl import load_mujoco
from sim.scene import table_top_xml

mujoco = load_mujoco()


@pytest.fixture(scope="module")
def built():
    return mujoco.MjModel.from_xml_string(table_top_xml())


@pytest.fixture
def model():
    return mujoco.MjModel.from_xml_string(table_top_xml())


def look(model) -> np.ndarray:
    light = model.vis.headlight
    parts = (model.cam_pos, model.cam_quat, model.light_dir, model.light_diffuse, light.ambient, light.diffuse)
    return np.concatenate([np.asarray(part).ravel() for part in parts])


def test_the_same_seed_gives_the_same_day_whatever_was_before(model):
    appearance = Appearance(model)
    appearance.draw(model, np.random.default_rng(1))
    first = look(model)
    for _ in range(20):
        appearance.draw(model, np.random.default_rng(2))
    assert not np.array_equal(look(model), first)
    appearance.draw(model, np.random.default_rng(1))
    assert np.array_equal(look(model), first)


def test_cameras_stay_within_their_mounts_and_light_within_its_range(model, built):
    appearance, rng = Appearance(model), np.random.default_rng(0)
    turned, brightness = [], []
    for _ in range(300):
        appearance.draw(model, rng)
        assert np.abs(model.cam_pos - built.cam_pos).max() <= MOUNT_M
        np.testing.assert_allclose(np.linalg.norm(model.cam_quat, axis=1), 1.0, atol=1e-12)
        turned.append(2 * np.arccos(np.clip(np.abs((model.cam_quat * built.cam_quat).sum(axis=1)), 0, 1)).max())
        np.testing.assert_allclose(np.linalg.norm(model.light_dir, axis=1), 1.0, atol=1e-12)
        brightness += (model.vis.headlight.diffuse / built.vis.headlight.diffuse).tolist()
        lamp = model.light_diffuse / built.light_diffuse
        assert lamp.min() > 0.75 and lamp.max() < 1.25
    assert MOUNT_RAD < max(turned) <= np.sqrt(3) * MOUNT_RAD + 1e-6  # up to MOUNT_RAD about each axis
    assert 0.8 < min(brightness) < 0.85 and 1.1 < max(brightness) < 1.15


def test_a_draw_takes_the_same_count_from_the_generator(model):
    appearance = Appearance(model)
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    appearance.draw(model, one)
    appearance.draw(model, other)
    assert one.bit_generator.state == other.bit_generator.state
