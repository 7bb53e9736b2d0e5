"""One episode in lockstep: the exact age, how it ends, and what is done to a policy to see whether it looks and
listens. Real physics; no torch, no OpenGL."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from control.clock import NS_PER_MS, FakeClock
from control.config import load_config
from control.errors import ConfigError
from control.robot import Episode, Evaluates, Robot
from control.safety import Freshness
from sim import kinematics
from sim.evaluate import Lockstep, Twist, run_episode
from sim.scene import COLOURS
from tests.sim.oracle import OracleHead, SeeingTabletop, TruthEncoder

RED = Episode(3, "touch", "touch the red block", "touch the red block", 12.0)
PICK = Episode(3, "pick", "pick up the red block", "pick up the red block", 15.0)
GREEN = Episode(3, "touch", "touch the green block", "touch the green block", 12.0)


@pytest.fixture(scope="module")
def lockstep():
    """The default config's, at 10 Hz with literal freshness limits."""
    default = load_config(Path(__file__).parents[2] / "configs" / "sim.yaml").loop_settings()
    loop = replace(default, period_ns=100 * NS_PER_MS, freshness=Freshness(500.0, 1000.0, 10000.0))
    return Lockstep(loop, 300 * NS_PER_MS)


def at(lockstep, **changes):
    return replace(lockstep, loop=replace(lockstep.loop, **changes))


def run(lockstep, episode=RED, age_ms=100.0, robot=None, **options):
    """(outcome, head, encoder, robot) of an episode with the oracle."""
    clock = FakeClock()
    robot = SeeingTabletop(clock) if robot is None else robot(clock)
    head, encoder = OracleHead(clock), TruthEncoder()
    outcome = run_episode(robot, clock, encoder, head, lockstep, episode, age_ms, **options)
    return outcome, head, encoder, robot


@pytest.mark.parametrize("age_ms", [0, 10, 100, 130, 300, 640])
def test_every_tick_acts_on_features_of_exactly_the_age_asked_for(lockstep, age_ms):
    _, head, _, _ = run(lockstep, replace(RED, text="wait", limit_s=1.0), age_ms)
    assert head.true_age_ms == head.told_age_ms == [age_ms] * 10


def test_the_age_is_exact_at_another_control_rate(lockstep):
    still = replace(RED, text="wait", limit_s=1.0)
    _, head, _, _ = run(at(lockstep, period_ns=50 * NS_PER_MS), still, 70)
    assert head.true_age_ms == [70] * 20


def test_the_named_block_touched_first_is_a_success(lockstep):
    outcome, _, _, _ = run(lockstep)
    assert outcome.success and outcome.touched == ("red",)
    assert 0.5 < outcome.time_s < 3


def test_another_block_touched_first_ends_the_episode_as_a_failure(lockstep):
    outcome, _, _, _ = run(lockstep, replace(RED, text="touch the green block"))
    assert not outcome.success and outcome.touched == ("green",) and outcome.time_s < 3


def test_the_robot_judges_what_a_sentence_means_and_the_encoder_hears_the_sentence(lockstep):
    outcome, _, encoder, _ = run(lockstep, replace(RED, meaning="touch the green block"))
    assert not outcome.success and set(encoder.heard) == {"touch the red block"}


def test_an_arm_that_stays_runs_out_of_time_with_nothing_touched(lockstep):
    outcome, _, _, _ = run(lockstep, replace(RED, text="wait", limit_s=2.0), 300)
    assert not outcome.success and outcome.touched == () and outcome.time_s == 2.0


def test_the_path_is_that_of_the_finger_tips(lockstep):
    outcome, _, _, robot = run(lockstep)
    straight = float(np.linalg.norm(robot.tip - (0.30, 0.0, 0.24)))
    assert straight <= outcome.path < 1.5 * straight


def test_the_path_of_a_robot_that_knows_no_tool_is_that_of_its_joints(lockstep):
    class Toolless:
        """The same robot, through the protocols alone."""

        def __init__(self, clock):
            self._robot = SeeingTabletop(clock)
            for name in (
                *("connect", "read_state", "read_frames", "apply", "hold", "close", "begin", "judge"),
                *("reset", "episodes"),
            ):
                setattr(self, name, getattr(self._robot, name))

        spec = property(lambda self: self._robot.spec)
        is_over = property(lambda self: self._robot.is_over)

    assert isinstance(Toolless(FakeClock()), Robot) and isinstance(Toolless(FakeClock()), Evaluates)
    outcome, head, _, _ = run(lockstep, robot=Toolless)
    way = np.abs(np.diff(np.array(head.states), axis=0)).sum()
    assert outcome.success and 0.3 * way < outcome.path < 1.2 * way and outcome.touched == ()


def test_jerk_is_that_of_the_commands_at_the_control_rate(lockstep):
    class Swinging(OracleHead):
        """One joint along a parabola, then along a cubic: the third difference of t^3 is 6."""

        def __init__(self, power):
            super().__init__()
            self.power, self.ticks = power, 0

        def act(self, tokens, state, feature_age_ms, window=None):
            start = np.array([0.0, *kinematics.tool_down(np.array([[0.30, 0.0, 0.24]]), 0.03)[0][1:]])
            times = 0.1 * np.arange(self.ticks + 1, self.ticks + 1 + self.horizon)
            self.ticks += 1
            return start + np.outer(0.1 * times**self.power, [1, 0, 0, 0, 0, 0, 0])

    def jerk(power):
        clock = FakeClock()
        robot = SeeingTabletop(clock)
        short = replace(RED, limit_s=1.2)
        return run_episode(robot, clock, TruthEncoder(), Swinging(power), lockstep, short, 0.0).jerk

    # commands lag the chunk by the steps of interpolation in a constant way, but for the first few
    assert jerk(3) == pytest.approx(0.6 / np.sqrt(7), rel=0.2)
    assert jerk(1) < 2.0


def test_an_age_just_under_hold_after_still_moves_the_arm(lockstep):
    outcome, _, _, _ = run(lockstep, replace(RED, limit_s=30.0), 900)
    assert outcome.success


def test_a_watchdog_shorter_than_the_control_period_slows_the_arm(lockstep):
    normal, _, _, _ = run(lockstep)
    interrupted, _, _, _ = run(replace(lockstep, watchdog_ns=40 * NS_PER_MS))
    assert interrupted.time_s > normal.time_s


@pytest.mark.parametrize("age_ms", [-10, 15, 100.5, float("nan"), float("inf"), float("-inf")])
def test_an_age_that_is_no_whole_step_is_refused(lockstep, age_ms):
    with pytest.raises(ConfigError, match=r"a feature age must be 0 or a positive multiple of 10 ms, got"):
        run(lockstep, age_ms=age_ms)


@pytest.mark.parametrize("age_ms", [1000, 1200])
def test_an_age_at_which_nothing_would_move_is_refused(lockstep, age_ms):
    with pytest.raises(ConfigError, match=f"{age_ms} ms nothing would move: freshness.hold_after_ms is 1000"):
        run(lockstep, age_ms=age_ms)


@pytest.mark.parametrize("rate_hz", [30, 60, 200])
def test_a_control_period_that_is_no_whole_step_is_refused(lockstep, rate_hz):
    with pytest.raises(ConfigError, match="the control period must be a multiple of them, got .*control.rate_hz like"):
        at(lockstep, period_ns=round(1e9 / rate_hz)).check(100.0)


def test_a_window_at_a_rate_that_the_steps_do_not_hold_is_refused(lockstep):
    replace(lockstep, host_hz=60.0).check(100.0)
    with pytest.raises(ConfigError, match="a window of states at robot.host_hz 60 does not fit"):
        replace(lockstep, history_samples=8, host_hz=60.0).check(100.0)


@pytest.mark.parametrize("host_hz", [100.0, 50.0])
def test_the_head_gets_the_window_of_a_robot_that_has_stood_there_and_then_of_the_last_states(lockstep, host_hz):
    _, head, _, _ = run(replace(lockstep, history_samples=30, host_hz=host_hz))
    first, *_, last = head.windows
    assert first.shape == (30, 7) and np.allclose(first, first[-1], atol=0.01)
    states = list(head.states)
    rows = round(0.1 * host_hz)
    assert np.abs(last[-1] - states[-1]).max() < 1e-9
    assert np.abs(last[-1 - rows] - states[-2]).max() < 1e-9
    assert np.abs(last[-1 - 2 * rows] - states[-3]).max() < 1e-9


def test_without_a_window_the_head_gets_none(lockstep):
    assert set(run(lockstep)[1].windows) == {None}


def test_an_empty_instruction_reaches_the_encoder_alone(lockstep):
    outcome, _, encoder, robot = run(lockstep, replace(RED, limit_s=1.5), twist=Twist(heard="."))
    assert not outcome.success and set(encoder.heard) == {"."} and robot.task.colour == "red"


def test_a_frozen_image_is_that_of_another_scene_with_new_stamps(lockstep):
    elsewhere = SeeingTabletop(FakeClock())
    elsewhere.reset(77)
    outcome, head, encoder, robot = run(lockstep, replace(RED, limit_s=3.0), twist=Twist(frozen_seed=77))
    assert all(np.array_equal(poses, elsewhere.block_poses) for poses in encoder.poses)
    assert set(head.true_age_ms) == {100.0}
    robot.reset(RED.seed)
    assert not outcome.success and not np.allclose(robot.block_poses, elsewhere.block_poses)


def test_a_policy_that_sees_its_first_image_for_ever_touches_a_block_that_stands_still_and_picks_none_up(lockstep):
    frozen = Twist(frozen_first=True)
    outcome, _, encoder, _ = run(lockstep, twist=frozen)
    assert outcome.success and all(np.array_equal(poses, encoder.poses[0]) for poses in encoder.poses)
    assert not run(lockstep, replace(PICK, limit_s=4.0), twist=frozen)[0].success


def test_no_frame_is_taken_for_a_head_that_looks_at_none(lockstep):
    class Blind(TruthEncoder):
        def encode(self, frames, instruction):
            assert frames.images == {}
            return super().encode(replace(frames, images={"truth": np.zeros((4, 4))}), instruction)

    clock = FakeClock()
    robot = SeeingTabletop(clock)
    still = replace(RED, limit_s=0.5)
    run_episode(robot, clock, Blind(), OracleHead(clock), lockstep, still, 0.0, twist=Twist(blind=True))
    assert robot.looks == 0


def test_after_a_swap_the_new_task_is_done_and_the_old_one_is_not(lockstep):
    outcome, _, encoder, _ = run(lockstep, PICK, twist=Twist(then=GREEN, swap_s=0.8))
    assert outcome.success and not outcome.did_old and not outcome.too_soon
    assert encoder.heard[0] == PICK.text and encoder.heard[-1] == GREEN.text
    assert len(set(encoder.instructions)) == 2


def test_an_arm_that_does_the_old_task_after_a_swap_is_told(lockstep):
    deaf = replace(GREEN, text=PICK.text)  # hears the old task again
    outcome, _, _, _ = run(lockstep, PICK, twist=Twist(then=deaf, swap_s=0.8))
    assert not outcome.success and outcome.did_old


def test_a_touch_of_the_old_block_after_a_swap_counts_as_the_old_task(lockstep):
    deaf = replace(GREEN, text=RED.text)
    outcome, _, _, _ = run(lockstep, RED, twist=Twist(then=deaf, swap_s=0.3))
    assert not outcome.success and outcome.did_old and outcome.touched == ("red",)


def test_a_swap_after_the_old_task_says_nothing(lockstep):
    outcome, _, _, _ = run(lockstep, twist=Twist(then=GREEN, swap_s=5.0))
    assert outcome.too_soon and not outcome.success and not outcome.did_old


def test_each_capture_is_shown_to_who_asks(lockstep):
    seen = []
    _, _, encoder, _ = run(lockstep, see=seen.append)
    assert len(seen) == len(encoder.poses) and np.array_equal(seen[2]["truth"], encoder.poses[2])


def test_every_colour_is_found(lockstep):
    for colour in COLOURS:
        text = f"touch the {colour} block"
        assert run(lockstep, replace(RED, text=text, meaning=text))[0].touched == (colour,)
