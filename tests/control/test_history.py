"""The window of measured states: on the host's grid, over the bus, and as far as the head."""

import time

import numpy as np
import pytest
from rig import PERIOD_NS, FixedHead, LoopRig, Queue, two_joint_spec

from control.bus import Latest
from control.clock import NS_PER_MS, MonotonicClock, Tick
from control.config import load_config
from control.errors import ConfigError
from control.history import StateHistory
from control.host import RobotHost
from control.loop import ControlLoop, Ports
from control.messages import Instruction, Mode

STEP_MS = 10


def filled(*stamps_ms, samples=4):
    """A history at 100 Hz of a value that is its own stamp in ms."""
    history = StateHistory(samples, 100.0)
    for stamp_ms in stamps_ms:
        history.add(round(stamp_ms * NS_PER_MS), np.array([float(stamp_ms)]))
    return history


def values(history):
    window = history.window()
    return None if window is None else window[:, 0].tolist()


def test_there_is_no_window_before_it_is_full():
    assert values(filled(0, 10, 20)) is None
    assert values(filled(0, 10, 20, 30)) == [0, 10, 20, 30]
    assert values(filled(0, 10, 20, 30, 40)) == [10, 20, 30, 40]


def test_a_host_that_jitters_adds_no_row_and_loses_none():
    assert values(filled(0, 13, 18, 31, 38, 51)) == [18, 31, 38, 51]


def test_of_two_measurements_within_a_period_the_later_one_counts():
    assert values(filled(0, 10, 20, 30, 32)) == [0, 10, 20, 32]


def test_a_short_gap_is_filled_in_a_straight_line():
    assert values(filled(0, 10, 20, 30, 60)) == [30, 40, 50, 60]


def test_after_a_long_gap_the_window_begins_again():
    history = filled(0, 10, 20, 30, 70)
    assert values(history) is None
    for stamp_ms in (80, 90, 100):
        history.add(stamp_ms * NS_PER_MS, np.array([float(stamp_ms)]))
    assert values(history) == [70, 80, 90, 100]


def test_a_clock_that_goes_back_begins_again():
    assert values(filled(100, 110, 120, 130, 40)) is None


def test_a_window_that_was_handed_out_does_not_change():
    history, measured = filled(0, 10, 20), np.array([30.0])
    history.add(30 * NS_PER_MS, measured)
    window = history.window()
    measured[0] = -1.0
    history.add(40 * NS_PER_MS, np.array([40.0]))
    assert window is not None and window[:, 0].tolist() == [0, 10, 20, 30]


class CountingRobot:
    """Its state is how often it was read."""

    def __init__(self):
        self.spec = two_joint_spec(action_low=np.full(2, -1e6), action_high=np.full(2, 1e6))
        self.reads = 0

    def read_state(self):
        self.reads += 1
        return np.full(2, float(self.reads))

    def read_frames(self):
        return {"front": np.full((28, 28, 3), 128, np.uint8)}

    def connect(self): ...

    def apply(self, targets):
        return targets

    def hold(self): ...

    def close(self): ...


def step_until(host, condition, timeout_s=5.0):
    clock = MonotonicClock()
    ends_ns = clock.now_ns() + round(timeout_s * 1e9)
    while clock.now_ns() < ends_ns:
        host.step()
        if condition():
            return
        time.sleep(STEP_MS / 1000)
    raise AssertionError("did not happen in time")


class WindowHead(FixedHead):
    window_samples = 4


def test_the_hosts_window_reaches_the_head_over_real_messages(bus):
    robot = CountingRobot()
    host = RobotHost(robot, bus, host_hz=100.0, state_hz=50.0, history_samples=4)
    inboxes = [Latest(bus, topic) for topic in ("robot", "state")]
    rig = LoopRig(WindowHead())
    loop = ControlLoop(
        rig.clock, rig.head, rig.loop._settings, Ports(*inboxes, rig.features, *(Queue() for _ in range(3))), session=7
    )
    assert isinstance(loop.say("touch"), Instruction)
    now_ns = MonotonicClock().now_ns

    def runs():
        rig.clock.advance(now_ns() - rig.clock.now_ns())
        rig.feed_features()
        return loop.tick(Tick(rig.clock.now_ns(), 0, 0)).mode is Mode.RUN

    try:
        step_until(host, runs)
        window = rig.head.window
        assert window.shape == (4, 2) and window.dtype == np.float64
        assert (np.diff(window[:, 0]) > 0).all()
        assert 4 <= window[-1, 0] <= robot.reads
    finally:
        for port in (*inboxes, host):
            port.close()


@pytest.mark.parametrize(("samples", "reads"), [(0, 1), (4, 3)])
def test_the_robot_is_read_more_often_only_where_a_window_is_asked_for(bus, samples, reads):
    robot = CountingRobot()
    host = RobotHost(robot, bus, state_hz=1.0, camera_hz=1.0, history_samples=samples)
    for _ in range(3):
        host.step()
    host.close()
    assert robot.reads == reads


def test_without_being_asked_the_host_sends_no_window(bus):
    host, inbox = RobotHost(CountingRobot(), bus), Latest(bus, "state")
    got = []

    def arrived():
        if (state := inbox.poll()) is not None:
            got.append(state)
        return bool(got)

    step_until(host, arrived)
    inbox.close()
    host.close()
    assert got[0].history is None


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        (None, "no window of the last 4 states yet: the robot host fills it after its start, where"),
        (np.zeros((3, 2)), "the window of states has shape (3, 2), the policy needs (4, 2)"),
        (np.array([[0.0, 0.0]] * 3 + [[0.0, np.nan]]), "the window of states holds NaN or infinity for b: sensor"),
    ],
)
def test_without_a_usable_window_the_robot_holds_until_there_is_one(history, reason):
    rig = LoopRig(WindowHead())
    rig.feed_robot()
    rig.loop.say("touch the red block")

    def tick(window):
        rig.clock.advance(PERIOD_NS)
        rig.feed_state(history=window)
        rig.feed_features()
        return rig.loop.tick(Tick(rig.clock.now_ns(), 0, 0))

    assert tick(np.zeros((4, 2))).mode is Mode.RUN
    for _ in range(6):
        cycle = tick(history)
        assert cycle.mode is Mode.HOLD and cycle.reason.startswith(reason)
    assert tick(np.ones((4, 2))).mode is Mode.RUN
    assert rig.head.window.tolist() == [[1.0, 1.0]] * 4


def test_a_head_that_takes_no_window_runs_without_one():
    assert LoopRig(FixedHead()).running().head.window is None


def test_a_history_of_impossible_length_is_refused(tmp_path):
    file = tmp_path / "config.yaml"
    base = "version: 1\nrobot: {name: tabletop, history_samples: 2000}\nencoder: {policy: .}\n"
    file.write_text(base + "freshness: {slow_after_ms: 400, hold_after_ms: 600, stop_after_ms: 1000}\n")
    with pytest.raises(ConfigError, match="history_samples"):
        load_config(file)
