"""Closed-loop episodes in lockstep: the exact age, how they end, and the figures made of them. No torch, no OpenGL."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from control.clock import NS_PER_MS, FakeClock
from control.config import load_config
from control.errors import ConfigError
from control.messages import Features
from control.safety import Freshness
from sim import expert, kinematics
from sim.evaluate import Outcome, check_lockstep, run_episode, run_episodes, summarise, wilson_interval
from sim.scene import COLOURS
from sim.tabletop import TabletopRobot
from sim.tasks import Task

WATCHDOG_NS = 300 * NS_PER_MS
NO_CAMERAS = {}


class StampEncoder:
    """Features that carry only when they were seen, in ms."""

    def encode(self, frames, instruction):
        stamp_ns, tokens = frames.stamp_ns, np.array([[frames.stamp_ns / NS_PER_MS]], dtype=np.float32)
        ids = (instruction.session, instruction.id, 1, "stand-in")
        return Features(frames.seq, stamp_ns, frames.seq, stamp_ns, *ids, tokens, {}, encode_ms=500.0)


class KnowingHead:
    """The expert, told where the block of `colour` lies; without a colour it stays. Records the age it acted on."""

    policy_id = "stand-in"
    state_names = action_names = kinematics.STATE_NAMES
    horizon, period_s, window_samples = 8, 0.1, 0

    def __init__(self, clock=None, robot=None, colour=None):
        self.clock, self.robot, self.colour = clock, robot, colour
        self.true_age_ms, self.told_age_ms = [], []

    def act(self, tokens, state, feature_age_ms, window=None):
        if self.clock is not None:
            self.true_age_ms.append(self.clock.now_ns() / NS_PER_MS - float(tokens[0, 0]))
        self.told_age_ms.append(feature_age_ms)
        if self.colour is None:
            return np.tile(state, (self.horizon, 1))
        return expert.targets(state[None], self.robot.blocks[self.colour][None], self.horizon)[0]


@pytest.fixture(scope="module")
def settings():
    """The default config's, at 10 Hz with literal freshness limits."""
    default = load_config(Path(__file__).parents[2] / "configs" / "sim.yaml").loop_settings()
    return replace(default, period_ns=100 * NS_PER_MS, freshness=Freshness(500.0, 1000.0, 10000.0))


def episode(settings, toward=None, **options):
    """An episode of touching the red block, with a head that goes to the block `toward`."""
    clock = FakeClock()
    robot = TabletopRobot(clock, cameras=NO_CAMERAS)
    head = KnowingHead(clock, robot, toward)
    asked = {"seed": 3, "task": Task("touch", "red"), "text": "touch the red block", "watchdog_ns": WATCHDOG_NS}
    return run_episode(robot, clock, StampEncoder(), head, settings, **asked | options), head


@pytest.mark.parametrize("age_ms", [0, 10, 100, 130, 300, 640])
def test_every_tick_acts_on_features_of_exactly_the_age_asked_for(settings, age_ms):
    _, head = episode(settings, feature_age_ms=age_ms, limit_s=1.0)
    assert head.true_age_ms == head.told_age_ms == [age_ms] * 10


def test_the_age_is_exact_at_another_control_rate(settings):
    _, head = episode(replace(settings, period_ns=50 * NS_PER_MS), feature_age_ms=70, limit_s=1.0)
    assert head.true_age_ms == [70] * 20


def test_the_named_block_touched_first_is_a_success(settings):
    outcome, _ = episode(settings, toward="red")
    assert outcome.success and outcome.touched == ("red",) and outcome.colour == "red" and outcome.seed == 3
    assert 0.5 < outcome.time_s < 6 and outcome.miss_m < 0.04


def test_another_block_touched_first_ends_the_episode_as_a_failure(settings):
    outcome, _ = episode(settings, toward="green")
    assert not outcome.success and outcome.touched == ("green",)
    assert outcome.time_s < 6 and outcome.miss_m > 0.04


def test_an_arm_that_stays_runs_out_of_time_with_nothing_touched(settings):
    outcome, _ = episode(settings, feature_age_ms=300, limit_s=2.0)
    assert not outcome.success and outcome.touched == ()
    assert outcome.time_s == 2.0 and outcome.miss_m > 0.1


def test_an_age_just_under_hold_after_still_moves_the_arm(settings):
    outcome, _ = episode(settings, toward="red", feature_age_ms=900, limit_s=30.0)
    assert outcome.success


def test_a_watchdog_shorter_than_the_control_period_slows_the_arm(settings):
    normal, _ = episode(settings, toward="red")
    interrupted, _ = episode(settings, toward="red", watchdog_ns=40 * NS_PER_MS)
    assert interrupted.time_s > normal.time_s


@pytest.mark.parametrize("age_ms", [-10, 15, 100.5, float("nan"), float("inf"), float("-inf")])
def test_an_age_that_is_no_whole_step_is_refused(settings, age_ms):
    with pytest.raises(ConfigError, match=r"a feature age must be 0 or a positive multiple of 10 ms, got"):
        episode(settings, feature_age_ms=age_ms)


@pytest.mark.parametrize("age_ms", [1000, 1200])
def test_an_age_at_which_nothing_would_move_is_refused(settings, age_ms):
    with pytest.raises(ConfigError, match=f"{age_ms} ms nothing would move: freshness.hold_after_ms is 1000"):
        episode(settings, feature_age_ms=age_ms)


@pytest.mark.parametrize("rate_hz", [30, 60, 200])
def test_a_control_period_that_is_no_whole_step_is_refused(settings, rate_hz):
    with pytest.raises(ConfigError, match="the control period must be a multiple of them, got .*control.rate_hz like"):
        check_lockstep(replace(settings, period_ns=round(1e9 / rate_hz)), 100.0)


def test_episodes_run_in_order_on_one_robot(settings):
    drawn = [(seed, Task("touch", colour), f"touch the {colour} block") for seed, colour in enumerate(COLOURS)]
    options = {"cameras": NO_CAMERAS}
    outcomes = list(run_episodes(StampEncoder(), KnowingHead(), settings, options, drawn, 100.0, WATCHDOG_NS))
    assert [(outcome.seed, outcome.colour, outcome.text) for outcome in outcomes] == [
        (seed, task.colour, text) for seed, task, text in drawn
    ]


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (38, 40, 0.8350, 0.9862), (40, 40, 0.9124, 1.0)],
)
def test_the_interval_is_wilsons(successes, episodes, low, high):
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=1e-4)


def test_without_episodes_the_rate_may_be_anything():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert summarise([])["rate"] is None and summarise([])["time_s"] is None


def test_a_summary_counts_successes_and_tells_wrong_blocks_from_timeouts():
    def ended(success, time_s, touched, miss_m):
        return Outcome(0, "touch the red block", "red", success, time_s, touched, miss_m)

    rows = [
        ended(True, 1.0, ("red",), 0.02),
        ended(True, 3.0, ("red",), 0.02),
        ended(False, 2.0, ("blue",), 0.1234),
        ended(False, 12.0, (), 0.3),
    ]
    assert summarise(rows) == {
        "episodes": 4,
        "successes": 2,
        "rate": 0.5,
        "ci95": wilson_interval(2, 4),
        "time_s": 2.0,
        "wrong_block_first": 1,
        "miss_m": [0.123, 0.3],
    }
