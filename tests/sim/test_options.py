"""Options that cannot be used are refused where they enter, by name."""

import re

import pytest

from control.clock import FakeClock
from control.discovery import make_robot
from control.errors import ConfigError, RobotError
from sim import tasks
from sim.demonstrations import sample_batches
from sim.tabletop import TabletopRobot

WRONG_SEEDS = [-1, 1.0, "7", None, True]


@pytest.mark.parametrize("seed", WRONG_SEEDS)
@pytest.mark.parametrize(
    "use",
    [
        lambda seed: TabletopRobot(FakeClock(), seed=seed),
        lambda seed: TabletopRobot(FakeClock()).reset(seed),
        lambda seed: sample_batches(seed, 4),
        lambda seed: tasks.episodes(seed, 4),
    ],
)
def test_a_seed_that_is_no_whole_number_from_zero_is_refused(use, seed):
    with pytest.raises(ConfigError, match=re.escape(f"a seed must be a whole number, 0 or more, got {seed!r}")):
        use(seed)


@pytest.mark.parametrize("size", [112, [112], [112.9, 112], [112, 112, 3], "112", ["112", "112"], [True, 112], None])
def test_an_image_size_that_is_no_pair_of_whole_numbers_is_refused(size):
    said = re.escape(f"must be [height, width], two whole numbers of pixels in 1..2048, got {size!r}")
    with pytest.raises(ConfigError, match=f"image_size {said}"):
        TabletopRobot(FakeClock(), image_size=size)
    with pytest.raises(ConfigError, match=f"the size of camera 'top' {said}"):
        TabletopRobot(FakeClock(), cameras={"top": size})


@pytest.mark.parametrize("size", [[0, 112], [112, 2049], [-5, 112]])
def test_an_image_without_pixels_or_with_too_many_is_refused(size):
    with pytest.raises(ConfigError, match=re.escape(f"in 1..2048, got {size}")):
        TabletopRobot(FakeClock(), image_size=size)


@pytest.mark.parametrize("cameras", ["top", 3])
def test_cameras_that_are_no_list_or_mapping_are_refused(cameras):
    with pytest.raises(ConfigError, match="cameras must be a list of names or a mapping .* has front, left, right"):
        TabletopRobot(FakeClock(), cameras=cameras)


def test_every_camera_may_have_a_size_of_its_own():
    robot = TabletopRobot(FakeClock(), cameras={"top": [64, 96], "wrist": (32, 32)})
    assert robot.spec.cameras == {"top": (64, 96), "wrist": (32, 32)}


def test_wrong_options_of_a_config_file_are_one_clear_line():
    with pytest.raises(RobotError, match=r"'tabletop' does not take these robot.options .*image_size must be \[height"):
        make_robot("tabletop", FakeClock(), {"image_size": 112})
