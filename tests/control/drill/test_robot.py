"""The robot of a drill: its journal, and its lies."""

import numpy as np
import pytest
from rig import two_joint_spec

from control.clock import FakeClock
from control.drill import robot as drilled
from control.drill.robot import DrillRobot, read_journal, tell
from control.errors import RobotError


class Inner:
    """Two joints and two cameras whose images count up."""

    def __init__(self, clock, size=28):
        self.spec = two_joint_spec(cameras={"front": (28, 28), "side": (28, 28)})
        self.calls, self.shots = [], 0

    def connect(self):
        self.calls.append("connect")

    def read_state(self):
        self.shots += 1
        return np.array([0.1 * self.shots, 0.2])

    def read_frames(self):
        self.shots += 1
        return {name: np.full((28, 28, 3), self.shots, np.uint8) for name in self.spec.cameras}

    def apply(self, targets):
        self.calls.append(targets.tolist())
        return targets

    def hold(self):
        self.calls.append("hold")

    def close(self):
        self.calls.append("close")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def robot(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(drilled, "make_robot", lambda name, clock, options: Inner(clock, **options))
    return DrillRobot(clock, "inner", {}, str(tmp_path / "journal"), str(tmp_path / "faults.json"))


def lie(robot, clock, **fault):
    tell(robot._faults, fault)
    clock.advance(20_000_000)


def test_every_command_is_in_the_journal_with_its_time(robot, clock, tmp_path):
    robot.connect()
    for step in range(3):
        clock.advance(10)
        robot.apply(np.array([0.1 * step, -1.0]))
    robot.hold()
    rows, end = read_journal(tmp_path / "journal")
    assert [row.is_start for row in rows] == [True, False, False, False, False]
    assert [None if row.targets is None else row.targets.tolist() for row in rows] == [
        None, [0.0, -1.0], [0.1, -1.0], [0.2, -1.0], None,
    ]  # fmt: skip
    assert np.diff([row.at_ns for row in rows]).tolist() == [10, 10, 10, 0]
    robot.apply(np.array([0.9, 0.9]))
    rows, _ = read_journal(tmp_path / "journal", end)
    assert len(rows) == 1 and rows[0].targets.tolist() == [0.9, 0.9]


def test_a_row_that_is_being_written_is_left_for_later(robot, tmp_path):
    robot.apply(np.array([0.1, 0.2]))
    whole = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(whole + whole[:-3])
    rows, end = read_journal(tmp_path / "journal")
    assert len(rows) == 1 and end == len(whole)


def test_the_state_lies_as_told_and_is_honest_again(robot, clock):
    assert np.isfinite(robot.read_state()).all()
    lie(robot, clock, state="nan", index=1)
    assert np.isnan(robot.read_state()[1])
    lie(robot, clock, state="outside", index=0)
    assert robot.read_state()[0] == 1000.0
    lie(robot, clock, state="frozen")
    assert np.array_equal(robot.read_state(), robot.read_state())
    lie(robot, clock, state="noisy", sigma=0.1)
    assert robot.read_state()[1] != 0.2
    lie(robot, clock)
    assert robot.read_state()[1] == 0.2


def test_a_camera_fails_as_told_and_the_other_one_does_not(robot, clock):
    before = robot.read_frames()
    lie(robot, clock, cameras="frozen", camera="side")
    robot.read_state()
    frozen = robot.read_frames()
    assert np.array_equal(frozen["side"], before["side"]) and not np.array_equal(frozen["front"], before["front"])
    for kind, seen in (("missing", None), ("black", 0), ("misshapen", (14, 28, 3))):
        lie(robot, clock, cameras=kind, camera="side")
        robot.read_state()
        image = robot.read_frames().get("side")
        assert (image is None) if seen is None else image.max() == 0 if seen == 0 else image.shape == seen


def test_a_drill_of_a_drill_is_refused(clock, tmp_path):
    with pytest.raises(RobotError, match="cannot stand around itself"):
        DrillRobot(clock, "drill", {}, str(tmp_path / "a"), str(tmp_path / "b"))
