"""What is kept of a failed episode: words for how things stood, and a strip of what was seen."""

import json
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from control.clock import FakeClock
from control.errors import ConfigError, ReportError
from control.messages import Instruction
from control.robot import Episode
from sim import failures
from sim.evaluate import Outcome
from sim.evaluation import Job
from sim.explain import phase
from sim.kinematics import tool_down
from sim.scene import BIN_CENTRE, COLOURS
from sim.tabletop import TabletopRobot
from sim.tasks import Task

FAR = {"red": (0.40, 0.0), "green": (0.30, -0.18), "blue": (0.30, 0.18), "yellow": (0.48, -0.18)}


def scene(**moved):
    """(4, 4) poses: `red=(x, y, z)` and so on, the others on the table."""
    places = {colour: (*xy, 0.024) for colour, xy in FAR.items()} | moved
    return np.array([(*places[colour], 0.0) for colour in COLOURS])


def at(x, y, z, opening, roll=0.0):
    joints = tool_down(np.array([[x, y, z]]), opening)[0]
    joints[5] = roll
    return joints


@pytest.mark.parametrize(
    ("task", "joints", "blocks", "expected"),
    [
        (Task("touch", "red"), at(0.30, 0.0, 0.20, 0.0), scene(), "approach"),
        (Task("touch", "red"), at(0.40, 0.0, 0.08, 0.0), scene(), "press"),
        (Task("pick", "red"), at(0.30, 0.0, 0.20, 0.08), scene(), "approach"),
        (Task("pick", "red"), at(0.40, 0.0, 0.014, 0.08), scene(), "grip"),
        (Task("pick", "red"), at(0.40, 0.0, 0.014, 0.066), scene(), "grip"),
        (Task("pick", "red"), at(0.40, 0.0, 0.014, 0.066, 0.40), scene(), "turn"),
        (Task("pick", "red"), at(0.40, 0.0, 0.014, 0.048), scene(), "lift"),
        (Task("pick", "red"), at(0.30, 0.18, 0.014, 0.048), scene(), "put down"),
        (Task("bin", "red"), at(0.40, 0.0, 0.09, 0.048), scene(red=(0.40, 0.0, 0.10)), "carry"),
        (Task("bin", "red"), at(*BIN_CENTRE, 0.105, 0.048), scene(red=(*BIN_CENTRE, 0.115)), "release"),
        (Task("bin", "red"), at(*BIN_CENTRE, 0.105, 0.08), scene(red=(*BIN_CENTRE, 0.03)), "retreat"),
        (Task("stack", "red", "blue"), at(0.30, 0.18, 0.08, 0.08), scene(red=(0.30, 0.18, 0.072)), "retreat"),
        (Task("push-left", "red"), at(0.30, 0.0, 0.20, 0.03), scene(), "approach"),
        (Task("push-left", "red"), at(0.40, -0.04, 0.016, 0.028), scene(), "push"),
        (Task("push-right", "red"), at(0.40, 0.04, 0.016, 0.028), scene(), "push"),
        (Task("push-right", "red"), at(0.40, -0.04, 0.016, 0.028), scene(), "approach"),
        (Task("push-left", "red"), at(0.40, 0.26, 0.016, 0.028), scene(red=(0.40, 0.31, 0.024)), "retreat"),
    ],
)
def test_the_phase_is_what_the_expert_would_do_next(task, joints, blocks, expected):
    assert phase(joints, blocks, task) == expected


def told(text, joints, blocks, moved=None):
    """What the robot explains with the arm at `joints`; `moved` are the blocks later on."""
    robot = TabletopRobot(FakeClock(), cameras={})
    robot.pose(joints, blocks)
    robot.begin(Instruction(0, 0, 1, 1, text))
    before = robot.explain()
    if moved is not None:
        robot.pose(joints, moved)
    return robot.explain(before)


def test_distances_and_the_holding_hand_are_named():
    start, end = scene(red=(0.40, 0.02, 0.024)), scene(red=(0.40, 0.07, 0.024))
    said = told("push the red block to the left", at(0.30, 0.0, 0.20, 0.03), start, end)
    assert said["task"] == "push-left red" and said["phase"] == "approach" and said["ended"] == "time up: approach"
    assert said["block_to_goal_m"] == pytest.approx(0.03, abs=1e-3)
    assert said["tip_to_block_m"] == pytest.approx(np.linalg.norm([0.10, 0.07, 0.176]), abs=2e-3)
    assert said["holds"] is None and said["touched"] == []
    held = told("pick up the red block", at(0.40, 0.0, 0.014, 0.048), scene())
    assert held["holds"] == "red" and held["block_to_goal_m"] == pytest.approx(0.10, abs=1e-3)


def test_text_that_is_no_task_is_said_to_be_none():
    assert told("dance", at(0.30, 0.0, 0.20, 0.03), scene())["ended"] == "the instruction is no task"


JOB = Job("", 100.0, Episode(7, "pick", "lift red", "pick up the red block", 15.0))


def image(grey, size=(16, 20)):
    return np.full((*size, 3), grey, dtype=np.uint8)


@pytest.mark.parametrize("captures", [1, 3, 8, 16, 17, 100, 250])
def test_a_failed_episode_is_a_json_and_a_strip_from_its_first_to_its_last_moment(tmp_path, captures):
    image_module = pytest.importorskip("PIL.Image")
    failed = failures.FailedEpisode(tmp_path, JOB)
    for number in range(captures):
        failed.see({"top": image(9), "front": image(number), "wrist": image(number, (10, 12))})
        assert len(failed._moments) <= 2 * failures.MOMENTS + 1
    last = {"top": image(9), "front": image(255), "wrist": image(255, (10, 12))}
    failed.ended(Outcome(False, 15.0, 0.2, 3.0, ended="time up: grip"), last, {"at_end": {"phase": "grip"}})
    values = json.loads((tmp_path / "pick-100ms-7.json").read_text())
    assert values["episode"]["text"] == "lift red" and values["at_end"]["phase"] == "grip"
    assert values["outcome"]["ended"] == "time up: grip"
    strip = np.asarray(image_module.open(tmp_path / "pick-100ms-7.png"))
    shown = strip[8, 10::22, 0]
    assert len(shown) == min(captures, failures.MOMENTS - 1) + 1
    assert shown[0] == 0 and shown[-1] == 255 and (np.diff(shown.astype(int)) > 0).all()
    assert strip.shape[0] == 16 + 10 + 4


def test_a_full_disk_in_mid_run_is_said(tmp_path):
    pytest.importorskip("PIL.Image")
    failed = failures.FailedEpisode(tmp_path, JOB)
    failed.see({"front": image(1)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # no file may grow beyond 100 bytes
    try:
        with pytest.raises(
            ReportError, match=r"--failures .* cannot be written \(File too large\): likely a full disk"
        ):
            failed.ended(Outcome(False, 1.0, 0.0, None), {"front": image(2)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_cameras_of_other_names_are_shown_too(tmp_path):
    pytest.importorskip("PIL.Image")
    failed = failures.FailedEpisode(tmp_path, JOB)
    failed.see({"a": image(1), "b": image(2), "c": image(3)})
    failed.ended(Outcome(False, 1.0, 0.0, None), {"a": image(1), "b": image(2), "c": image(3)}, {})
    assert (tmp_path / "pick-100ms-7.png").exists()


def test_workers_that_look_at_the_folder_at_the_same_time_do_not_disturb_each_other(tmp_path, monkeypatch):
    touch = Path.touch

    def touched_and_taken_away(file):
        touch(file)
        file.unlink()

    monkeypatch.setattr(Path, "touch", touched_and_taken_away)
    failures.check_folder(tmp_path / "failed")
    assert not list((tmp_path / "failed").iterdir())


def test_a_folder_that_cannot_be_written_or_pillow_missing_is_told_before_the_work(tmp_path, monkeypatch):
    failures.check_folder(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").is_dir() and not list((tmp_path / "new" / "folder").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--failures .*file cannot be written"):
        failures.check_folder(tmp_path / "file")
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ConfigError, match=r"--failures needs pillow, .* pip install 'saccade\[record\]'"):
        failures.check_folder(tmp_path)
