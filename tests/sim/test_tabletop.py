"""The simulated robot: its physics, its clock, its judgement."""

import subprocess
import sys

import numpy as np
import pytest

from control.clock import FakeClock
from control.messages import Instruction
from control.robot import Judge, Robot
from sim import kinematics
from sim.scene import BLOCK_SIZE, COLOURS
from sim.tabletop import HOME, TabletopRobot

Z = BLOCK_SIZE / 2
ROW = np.array([(0.36, y, Z, 0.0) for y in (-0.18, -0.06, 0.06, 0.18)])  # red, green, blue, yellow


def go(bench, tip, gripper: float = 0.008, seconds: float = 1.0) -> None:
    """Straight servo to a tip position, in steps the servos can follow."""
    goal = kinematics.tool_down(np.array([tip]), gripper)[0]
    start = bench.robot.read_state()
    ticks = round(seconds / 0.1)
    for i in range(ticks):
        bench.robot.apply(start + (goal - start) * (i + 1) / ticks)
        bench.wait(0.1)
    bench.wait(0.2)


def over(colour: str, height: float) -> np.ndarray:
    x, y, _, _ = ROW[COLOURS.index(colour)]
    return np.array([x, y, height])


def poke(bench, colour: str) -> None:
    go(bench, over(colour, 0.12))
    go(bench, over(colour, BLOCK_SIZE - 0.004), seconds=0.6)
    go(bench, over(colour, 0.12), seconds=0.6)


def test_it_is_a_robot_and_a_judge():
    robot = TabletopRobot(FakeClock())
    assert isinstance(robot, Robot) and isinstance(robot, Judge)


def test_the_spec_is_known_without_mujoco():
    code = (
        "import sys; from control.clock import FakeClock; from sim.tabletop import TabletopRobot;"
        "spec = TabletopRobot(FakeClock(), cameras=['top']).spec;"
        "assert spec.cameras == {'top': (112, 112)} and 'mujoco' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_camera_is_refused_with_the_ones_there_are():
    with pytest.raises(ValueError, match="no camera 'back'; it has front, left, right, top, wrist"):
        TabletopRobot(FakeClock(), cameras=["back"])


def test_physics_follows_the_clock(bench):
    robot = bench.robot
    target = HOME + (0.3, 0, 0, 0, 0, 0, 0)
    robot.apply(target)
    assert np.array_equal(robot.read_state(), robot.read_state())  # no time passed, nothing moves
    bench.wait(0.1)
    part = robot.read_state()[0]
    bench.wait(0.9)
    assert 0.1 < part < 0.295
    np.testing.assert_allclose(robot.read_state(), target, atol=0.003)


def test_a_stall_is_not_caught_up_but_counted(bench):
    bench.robot.read_state()
    bench.clock.advance(1_000_000_000)
    bench.robot.read_state()
    assert bench.robot.dropped_ns == 750_000_000


def test_dropped_physics_is_told_at_most_once_a_second(bench, caplog):
    bench.robot.read_state()
    for _ in range(5):
        bench.clock.advance(500_000_000)
        bench.robot.read_state()
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("robot", "WARNING", f"dropped {newly} ms of physics ({total} ms in all): the machine is overloaded")
        for newly, total in ((250, 250), (500, 750), (500, 1250))
    ]


def test_the_same_seed_and_calls_give_the_same_bits():
    def run(seed: int) -> bytes:
        clock = FakeClock()
        robot = TabletopRobot(clock, seed=seed)
        trace = []
        for i in range(20):
            robot.apply(HOME + 0.4 * np.sin(0.3 * i))
            clock.advance(100_000_000)
            trace += [robot.read_state(), *robot.blocks.values()]
        return np.concatenate(trace).tobytes()

    assert run(4) == run(4) != run(5)


def test_targets_are_clipped_to_the_limits_and_the_truth_is_returned(bench):
    commanded = bench.robot.apply(np.full(7, 99.0))
    assert np.array_equal(commanded, bench.robot.spec.action_high)


@pytest.mark.parametrize("targets", [np.zeros(6), np.full(7, np.nan), np.zeros((2, 7))])
def test_targets_that_are_no_seven_finite_numbers_are_refused(bench, targets):
    with pytest.raises(ValueError, match=r"apply wants 7 finite targets \(waist, .*, gripper\), got shape"):
        bench.robot.apply(targets)


def test_hold_keeps_the_last_commanded_target(bench):
    target = HOME + (0.3, 0, 0, 0, 0, 0, 0)
    bench.robot.apply(target)
    for _ in range(15):
        bench.clock.advance(100_000_000)
        bench.robot.hold()
    np.testing.assert_allclose(bench.robot.read_state(), target, atol=0.003)


def test_touching_the_named_block_first_is_success_and_stays_so(bench):
    bench.robot.pose(HOME, ROW)
    bench.say("touch the green block")
    assert bench.robot.judge() is False
    poke(bench, "green")
    assert bench.robot.judge() is True
    poke(bench, "blue")
    assert bench.robot.judge() is True and bench.robot.touched == ("green", "blue")


def test_touching_another_block_first_is_failure_and_stays_so(bench):
    bench.robot.pose(HOME, ROW)
    bench.say("touch the green block")
    poke(bench, "blue")
    poke(bench, "green")
    assert bench.robot.judge() is False and bench.robot.touched == ("blue", "green")


def test_a_touch_between_two_reads_is_seen(bench):
    """A fast sweep knocks the block away: by the next read the finger no longer touches it."""
    start = kinematics.tool_down(np.array([(0.36, 0.0, 0.03)]), 0.008)[0]
    bench.robot.pose(start, ROW)
    bench.say("touch the blue block")
    bench.robot.apply(start + (0.14, 0, 0, 0, 0, 0, 0))
    bench.clock.advance(240_000_000)
    assert bench.robot.judge() is True
    assert bench.robot.deepest_arm_contact() == 0.0


def test_text_that_is_no_task_is_judged_none(bench):
    bench.robot.pose(HOME, ROW)
    bench.say("sing a song about the red block")
    poke(bench, "red")
    assert bench.robot.judge() is None


def test_a_block_under_the_finger_at_the_start_is_no_wrong_touch(bench):
    bench.robot.pose(HOME, ROW)
    go(bench, over("red", 0.12))
    go(bench, over("red", BLOCK_SIZE - 0.004), seconds=0.6)
    bench.say("touch the green block")
    go(bench, over("red", 0.12), seconds=0.6)
    poke(bench, "green")
    assert bench.robot.judge() is True


def test_the_named_block_under_the_finger_at_the_start_is_touched(bench):
    bench.robot.pose(HOME, ROW)
    go(bench, over("red", 0.12))
    go(bench, over("red", BLOCK_SIZE - 0.004), seconds=0.6)
    bench.say("tap the red block")
    assert bench.robot.judge() is True


def test_every_instruction_finds_the_blocks_in_new_seeded_places():
    def places(seed: int) -> list[np.ndarray]:
        robot = TabletopRobot(FakeClock(), seed=seed, reset_on_instruction=True)
        found = []
        for i in (1, 2, 3):
            state = robot.read_state()
            robot.begin(Instruction(0, 0, 1, i, "touch the red block"))
            assert np.array_equal(robot.read_state(), state)  # the arm stays
            blocks = np.array(list(robot.blocks.values()))
            gap = np.linalg.norm(blocks[:, None, :2] - blocks[None, :, :2], axis=-1) + np.eye(4)
            assert gap.min() >= 0.08
            assert np.linalg.norm(blocks[:, :2] - robot.tip[:2], axis=1).min() >= 0.10
            found.append(blocks)
        return found

    first, again, other = places(1), places(1), places(2)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])


def test_poses_of_the_blocks_are_told_with_their_yaw_even_when_they_lie_on_another_side(bench):
    blocks = ROW.copy()
    blocks[:, 3] = (0.3, -0.4, 1.2, 2.9)
    bench.robot.pose(HOME, blocks)
    np.testing.assert_allclose(bench.robot.block_poses, blocks, atol=1e-9)
    rolled = bench.robot._data.qpos[bench.robot._block_address[0] :][:7]
    half = np.array([np.cos(0.15), 0, 0, np.sin(0.15)]) * np.sqrt(0.5)  # 0.3 rad of yaw
    rolled[3:] = (half[0], -half[3], half[0], half[3])  # after a quarter turn about y: what was ahead is down
    bench.robot.pose(HOME)
    x, y, _, yaw = bench.robot.block_poses[0]
    assert (x, y) == pytest.approx((0.36, -0.18)) and yaw % (np.pi / 2) == pytest.approx(0.3)


def test_an_episode_is_judged_the_same_whatever_was_before():
    def verdicts(steps_before: int) -> list[bool | None]:
        clock = FakeClock()
        robot = TabletopRobot(clock)
        robot.begin(Instruction(0, 0, 1, 1, "push the red block left"))
        clock.advance(2_000_000 * steps_before)
        robot.read_state()
        blocks = ROW.copy()
        robot.pose(HOME, blocks)
        robot.begin(Instruction(0, 0, 1, 2, "push the red block left"))
        blocks[0, 1] += 0.09
        robot.pose(HOME, blocks)
        found = []
        for _ in range(10):
            clock.advance(2_000_000)
            found.append(robot.judge())
        return found

    assert verdicts(0) == verdicts(3) == [False] * 4 + [True] * 6


def test_every_reset_has_its_own_light_and_mounts_and_jitter_gives_others(bench):
    def look() -> np.ndarray:
        model = bench.robot._model
        return np.concatenate([model.cam_pos.ravel(), model.light_diffuse.ravel()])

    bench.robot.reset(1)
    first = look()
    bench.robot.reset(2)
    assert not np.array_equal(look(), first)
    bench.robot.reset(1)
    assert np.array_equal(look(), first)
    bench.robot.jitter(np.random.default_rng(0))
    assert not np.array_equal(look(), first)


def test_nothing_changes_the_verdict_of_a_touch_that_was_wrong(bench):
    bench.robot.pose(HOME, ROW)
    bench.say("touch the green block")
    assert not bench.robot.is_over
    poke(bench, "blue")
    assert bench.robot.is_over and bench.robot.judge() is False


def test_a_block_can_be_gripped_and_lifted(bench):
    blocks = ROW.copy()
    blocks[1, 1] = 0.0
    bench.robot.pose(HOME, blocks)
    go(bench, (0.36, 0.0, 0.14), gripper=0.075)
    go(bench, (0.36, 0.0, 0.015), gripper=0.075)
    go(bench, (0.36, 0.0, 0.015), gripper=0.030)
    go(bench, (0.36, 0.0, 0.20), gripper=0.030)
    bench.wait(1.0)
    assert bench.robot.blocks["green"][2] > 0.17


def test_a_block_can_be_pushed(bench):
    bench.robot.pose(HOME, ROW)
    go(bench, (0.36, 0.0, 0.10))
    go(bench, (0.36, 0.0, 0.02))
    go(bench, (0.36, 0.05, 0.02))
    assert bench.robot.blocks["blue"][1] > ROW[2, 1] + 0.01


def test_pressing_on_a_block_is_soft(bench):
    """Aimed 12 mm under the top face, the servos give way: the tip stays on the face and the block where it is."""
    bench.robot.pose(HOME, ROW)
    go(bench, over("red", 0.12))
    go(bench, over("red", BLOCK_SIZE - 0.012), seconds=0.6)
    assert bench.robot.tip[2] > BLOCK_SIZE - 0.002
    np.testing.assert_allclose(bench.robot.blocks["red"], ROW[0, :3], atol=0.005)


@pytest.mark.parametrize("camera", ["front", "left", "right", "top"])
def test_every_fixed_view_frames_the_whole_work_area(bench, camera):
    for x in (0.24, 0.50):
        for y in (-0.22, 0.22):
            uv = bench.robot.cameras.pixel(camera, np.array([x, y, Z]))
            assert (uv > 0.02).all() and (uv < 0.98).all()


def test_a_reset_places_the_blocks_apart_and_the_arm_at_home(bench):
    for seed in range(30):
        bench.robot.reset(seed)
        blocks = np.array(list(bench.robot.blocks.values()))
        gap = np.linalg.norm(blocks[:, None] - blocks[None, :], axis=-1) + np.eye(4)
        assert gap.min() >= 0.08
        np.testing.assert_array_equal(bench.robot.read_state(), HOME)


def test_closing_twice_is_harmless(bench):
    bench.robot.read_state()
    bench.robot.close()
    bench.robot.close()
