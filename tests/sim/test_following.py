"""What a robot is commanded in training is what the loop and the host would command."""

from __future__ import annotations

import numpy as np
import pytest

from control.clock import FakeClock
from control.loop import LoopSettings
from control.robot import Episode
from control.safety import Freshness
from sim.evaluate import Lockstep, Twist, run_episode
from sim.evaluation import _Nothing
from sim.following import Following
from sim.tabletop import HOME, TabletopRobot

LOCKSTEP = Lockstep(
    LoopSettings(100_000_000, Freshness(1000, 1100, 10000), 200, 3000, 3, 40.0, {}), watchdog_ns=300_000_000
)


class Noted(TabletopRobot):
    """Keeps every command."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.commands: list[np.ndarray] = []

    def apply(self, targets: np.ndarray) -> np.ndarray:
        self.commands.append(np.array(targets))
        return super().apply(targets)


class Wild:
    """Wants to be somewhere else every tick, further than the limits allow; the same for the same seed."""

    policy_id, horizon, period_s, window_samples = "expert", 1, 0.1, 0

    def __init__(self, robot: TabletopRobot) -> None:
        self.state_names, self.action_names = robot.spec.state_names, robot.spec.action_names
        self._rng = np.random.default_rng(3)
        self.asked: list[np.ndarray] = []

    def act(self, tokens: np.ndarray, state: np.ndarray, age_ms: float, window: object = None) -> np.ndarray:
        step = self._rng.normal(0.0, 0.3, 7) * (1, 0.3, 0.3, 1, 0.3, 1, 0.1)
        self.asked.append(HOME + step)
        return self.asked[-1][np.newaxis]


def test_the_commands_are_those_of_the_live_loop_and_host_for_the_same_targets() -> None:
    clock = FakeClock()
    live = Noted(clock)
    head = Wild(live)
    episode = Episode(5, "pick", "pick up the red block", "pick up the red block", 2.0)
    run_episode(live, clock, _Nothing(), head, LOCKSTEP, episode, 0.0, twist=Twist(blind=True))
    clock = FakeClock()
    trained = Noted(clock)
    trained.reset(5)
    arm = Following(trained, clock, 0.1)
    for target in head.asked:
        arm.aim(target, trained.read_state())
        arm.advance(50_000_000)
        arm.advance(50_000_000)
    assert len(head.asked) == 20 and len(live.commands) == len(trained.commands) == 200
    np.testing.assert_allclose(trained.commands, live.commands, atol=1e-12)


def test_after_a_restart_the_way_begins_where_the_arm_is() -> None:
    clock = FakeClock()
    robot = Noted(clock)
    arm = Following(robot, clock, 0.1)
    arm.aim(HOME + 0.05, robot.read_state())
    arm.advance(100_000_000)
    robot.reset(1)
    arm.restart()
    arm.aim(HOME, robot.read_state())
    arm.advance(10_000_000)
    np.testing.assert_allclose(robot.commands[-1], robot.read_state(), atol=1e-3)


def test_a_target_that_is_no_number_is_refused() -> None:
    clock = FakeClock()
    robot = TabletopRobot(clock)
    with pytest.raises(ValueError, match="the head gave nan for action 0"):
        Following(robot, clock, 0.1).aim(np.full(7, np.nan), robot.read_state())
