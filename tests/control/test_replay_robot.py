"""A recording as the robot, on a fake clock; tests/test_run_record.py runs one in real processes."""

from __future__ import annotations

import numpy as np
import pytest
from recordings import START_NS, TWO_CAMERAS, frames, instruction
from rig import two_joint_spec

from control.clock import NS_PER_MS, NS_PER_S, FakeClock
from control.discovery import make_robot
from control.errors import RobotError, RobotFailure
from control.messages import State
from control.recording import RecordingWriter
from control.recording_images import ImageCodec
from control.replay_robot import ReplayRobot
from control.robot import Robot


@pytest.fixture
def spec():
    return two_joint_spec(cameras=TWO_CAMERAS)


def record(file, spec, states_ms=range(0, 1000, 20), frames_ms=range(100, 1000, 100)):
    """Values and images that tell their own time."""
    with RecordingWriter(file, spec, images=ImageCodec("webp")) as writer:
        for at_ms in sorted({*states_ms, *frames_ms}):
            now_ns = START_NS + at_ms * NS_PER_MS
            if at_ms in states_ms:
                writer.write(State(at_ms, now_ns, np.array([at_ms / 1000, -1.0])))
            if at_ms in frames_ms:
                writer.write(frames(spec, at_ms // 100, now_ns))
        writer.write(instruction(3, START_NS + 300 * NS_PER_MS, "touch the red block"))
    return file


@pytest.fixture
def played(tmp_path, spec):
    clock = FakeClock()
    robot = ReplayRobot(clock, str(record(tmp_path / "a.mcap", spec)))
    clock.advance(NS_PER_S)  # whoever builds it may take its time: the recording begins with `connect`
    robot.connect()
    return robot, clock


def test_it_is_the_recorded_robot_under_a_name_that_says_so(played, spec):
    robot, _ = played
    assert isinstance(robot, Robot) and robot.spec.name == "replay of two-joint"
    assert robot.spec.cameras == spec.cameras and robot.spec.state_names == spec.state_names
    np.testing.assert_array_equal(robot.spec.max_velocity, spec.max_velocity)


def test_states_and_images_come_with_the_recorded_spacing(played, spec):
    robot, clock = played
    for at_ms, state_ms, capture in ((0, 100, 1), (15, 100, 1), (5, 120, 1), (79, 180, 1), (1, 200, 2), (640, 840, 8)):
        clock.advance(at_ms * NS_PER_MS)
        np.testing.assert_array_equal(robot.read_state(), [state_ms / 1000, -1.0])
        images = robot.read_frames()
        for name, image in frames(spec, capture, 0).images.items():
            np.testing.assert_array_equal(images[name], image)
    assert images.keys() == TWO_CAMERAS.keys()


def test_at_its_end_it_holds_what_was_last(played, caplog):
    robot, clock = played
    caplog.set_level("INFO")
    for _ in range(3):
        clock.advance(NS_PER_S)
        np.testing.assert_array_equal(robot.read_state(), [0.98, -1.0])
        assert robot.read_frames()
    assert caplog.text.count("the recording has come to its end") == 1


def test_it_can_end_the_run_instead(tmp_path, spec):
    clock = FakeClock()
    robot = ReplayRobot(clock, str(record(tmp_path / "a.mcap", spec)), at_end="fail")
    robot.connect()
    clock.advance(800 * NS_PER_MS)
    robot.read_state()
    clock.advance(100 * NS_PER_MS)
    with pytest.raises(RobotFailure, match="a.mcap has come to its end"):
        robot.read_state()


def test_a_stall_of_the_recorded_host_stalls_this_one_as_long(tmp_path, spec):
    states_ms = [at for at in range(0, 1000, 20) if not 400 < at < 760]
    clock = FakeClock()
    robot = ReplayRobot(clock, str(record(tmp_path / "a.mcap", spec, states_ms=states_ms)))
    robot.connect()
    began_ns = clock.now_ns()
    read_ms = []
    while clock.now_ns() - began_ns < 800 * NS_PER_MS:
        state_ms = round(robot.read_state()[0] * 1000)
        now_ms = 100 + (clock.now_ns() - began_ns) // NS_PER_MS
        read_ms.append(now_ms)
        assert 0 <= now_ms - state_ms < 20
        clock.advance(20 * NS_PER_MS)
    assert not [at for at in read_ms if 400 < at < 760]


def test_it_says_what_was_asked_for_and_when(tmp_path, spec, caplog):
    caplog.set_level("INFO")
    robot = ReplayRobot(FakeClock(), str(record(tmp_path / "a.mcap", spec)))
    robot.connect()
    assert "0.9 s of robot 'two-joint'" in caplog.text
    assert "recorded at 0.2 s: say 'touch the red block'" in caplog.text


def test_it_bounds_what_it_is_told_and_does_nothing_else(played):
    robot, clock = played
    np.testing.assert_array_equal(robot.apply(np.array([5.0, -0.5])), [1.0, -0.5])
    for bad in (np.array([np.nan, 0.0]), np.zeros(1)):
        with pytest.raises(ValueError, match="apply wants 2 finite targets"):
            robot.apply(bad)
    robot.hold()
    np.testing.assert_array_equal(robot.read_state(), [0.1, -1.0])
    robot.close()
    robot.close()


def test_it_is_not_read_before_it_is_connected(tmp_path, spec):
    robot = ReplayRobot(FakeClock(), str(record(tmp_path / "a.mcap", spec)))
    with pytest.raises(RobotFailure, match="before it was connected"):
        robot.read_state()


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 0xFF
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "does not exist"),
        (lambda file: file.write_bytes(b"PK\x03\x04 something else"), "expected an MCAP file"),
        (lambda file: file.write_bytes(b""), "cut before anything was recorded"),
        (flip, "is damaged"),
        (cut, "holds no frames and no state, which a replay needs; it has nothing"),
    ],
)
def test_what_is_no_recording_is_refused_by_its_own_reason(tmp_path, spec, damage, message):
    file = record(tmp_path / "a.mcap", spec)
    damage(file)
    with pytest.raises(RobotError, match=message):
        make_robot("replay", FakeClock(), {"recording": str(file)})


def test_a_recording_without_images_is_refused_by_name(tmp_path, spec):
    file = record(tmp_path / "a.mcap", spec, frames_ms=())
    with pytest.raises(RobotError, match="holds no frames, which a replay needs; it has 50 state"):
        make_robot("replay", FakeClock(), {"recording": str(file)})


@pytest.mark.parametrize("options", [{}, {"recording": "a.mcap", "at_end": "loop"}, {"file": "a.mcap"}])
def test_options_that_it_does_not_take_are_refused(options):
    with pytest.raises(RobotError, match="robot 'replay' does not take these robot.options"):
        make_robot("replay", FakeClock(), options)
