"""What every Robot must keep, whoever wrote it. Add yours to ROBOTS."""

import numpy as np
import pytest

from control.clock import FakeClock
from control.discovery import installed_robots, make_robot
from control.messages import Instruction, RobotSpec
from control.robot import Evaluates, Robot

ROBOTS = [name for name in installed_robots() if name in ("tabletop",)]


@pytest.fixture(params=ROBOTS)
def connected(request):
    clock = FakeClock()
    robot = make_robot(request.param, clock, {})
    robot.connect()
    yield robot, clock
    robot.close()


def test_at_least_the_simulator_is_installed():
    assert "tabletop" in ROBOTS


@pytest.mark.parametrize("name", ROBOTS)
def test_the_spec_is_known_before_connect(name):
    robot = make_robot(name, FakeClock(), {})
    assert isinstance(robot, Robot) and isinstance(robot.spec, RobotSpec)


def test_state_has_a_finite_value_for_every_name(connected):
    robot, _ = connected
    state = robot.read_state()
    assert state.shape == (len(robot.spec.state_names),) and state.dtype == np.float64
    assert np.isfinite(state).all()


def test_frames_have_every_camera_at_its_size(connected):
    robot, _ = connected
    frames = robot.read_frames()
    assert {name: image.shape for name, image in frames.items()} == {
        name: (*size, 3) for name, size in robot.spec.cameras.items()
    }
    assert all(image.dtype == np.uint8 for image in frames.values())


def test_apply_returns_what_was_commanded_inside_the_limits(connected):
    robot, _ = connected
    commanded = robot.apply(robot.spec.action_high + 100)
    assert np.allclose(commanded, robot.spec.action_high)


def test_apply_refuses_targets_that_are_no_targets(connected):
    robot, _ = connected
    for bad in (np.full(len(robot.spec.action_names), np.nan), np.zeros(1)):
        with pytest.raises(ValueError, match="finite targets"):
            robot.apply(bad)


def test_hold_keeps_the_arm_where_it_was_commanded(connected):
    robot, clock = connected
    start = robot.read_state()
    target = robot.apply(start + 0.05 * (robot.spec.action_high - robot.spec.action_low))
    for _ in range(20):
        clock.advance(100_000_000)
        robot.read_state()
    robot.hold()
    for _ in range(10):
        clock.advance(100_000_000)
        robot.hold()
    assert np.abs(robot.read_state() - target).max() < 0.02


def test_close_twice_is_fine(connected):
    robot, _ = connected
    robot.close()
    robot.close()


def test_a_robot_that_can_be_evaluated_does_the_same_in_the_same_scene(connected):
    """`launch.py eval` runs episodes in any order and in several processes."""
    robot, clock = connected
    if not isinstance(robot, Evaluates):
        pytest.skip("it does not reset and judge itself")
    first, second = robot.episodes(3, 2, "all", "unseen")[:2]
    assert robot.episodes(3, 2, "all", "unseen")[:2] == [first, second] and first.seed != second.seed

    def seen(episode):
        robot.reset(episode.seed)
        robot.begin(Instruction(0, clock.now_ns(), 1, 1, episode.meaning))
        assert robot.judge() is False and not robot.is_over
        states = []
        for _ in range(10):
            robot.apply(robot.spec.action_low * 0.1 + robot.read_state() * 0.9)
            clock.advance(10_000_000)
            states.append(robot.read_state())
        return np.array(states), robot.read_frames()

    states, frames = seen(first)
    seen(second)
    again, frames_again = seen(first)
    np.testing.assert_array_equal(states, again)
    for name, image in frames.items():
        np.testing.assert_array_equal(image, frames_again[name])
