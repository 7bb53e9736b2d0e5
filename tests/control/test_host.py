import time
from dataclasses import replace

import numpy as np
import pytest
from rig import two_joint_spec

from control.bus import Latest, Publisher
from control.clock import NS_PER_MS, FakeClock
from control.errors import RobotError, RobotFailure
from control.host import _FRAMES_HEADER_BYTES, Follower, RobotHost
from control.messages import ActionChunk, Frames, Instruction, Mode
from control.wire import MAX_CAMERAS, decode, encode

PERIOD_S = 0.1


def chunk(clock, targets, mode=Mode.RUN, age_ms=0.0, valid_ms=None):
    targets = np.array(targets, dtype=np.float64)
    stamp_ns = clock.now_ns() - round(age_ms * NS_PER_MS)
    valid_ns = round((100.0 * len(targets) if valid_ms is None else valid_ms) * NS_PER_MS)
    return ActionChunk(1, stamp_ns, 1, 50.0, mode, targets, PERIOD_S, stamp_ns + valid_ns)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def follower():
    return Follower(two_joint_spec(), watchdog_ns=300 * NS_PER_MS, host_period_ns=10 * NS_PER_MS)


def follow(follower, clock, milliseconds):
    """The path of joint a while the host asks every 10 ms; it ends where the host holds."""
    path = []
    for _ in range(round(milliseconds / 10)):
        target = follower.target(clock.now_ns())
        if target is None:
            break
        follower.commanded = target
        path.append(target[0])
        clock.advance(10 * NS_PER_MS)
    return path


def test_targets_are_interpolated_in_straight_lines_from_where_the_arm_is(follower, clock):
    follower.take(chunk(clock, [[0.05, 0.0], [0.15, 0.0]]), np.zeros(2), clock.now_ns())
    path = follow(follower, clock, 210)
    assert np.allclose(path[::5], [0.0, 0.025, 0.05, 0.1, 0.15])


def test_a_chunk_bridges_a_late_action_until_it_runs_out(follower, clock):
    follower.take(chunk(clock, [[0.05, 0.0], [0.1, 0.0]]), np.zeros(2), clock.now_ns())
    assert len(follow(follower, clock, 500)) == 21
    assert np.allclose(follower.commanded, [0.1, 0.0])
    assert follower.reason == "the action chunk has run out"


def test_the_watchdog_holds_after_its_time_even_inside_a_long_chunk(follower, clock):
    follower.take(chunk(clock, [[0.05, 0.0]] * 20), np.zeros(2), clock.now_ns())
    assert len(follow(follower, clock, 1000)) == 31
    assert follower.reason == "watchdog: no action for 300 ms"


@pytest.mark.parametrize("late_ms", [0, 50, 95, 150])
def test_a_late_chunk_never_moves_the_arm_faster_than_its_limit(follower, clock, late_ms):
    follower.take(chunk(clock, [[0.1, 0.0], [0.2, 0.0]], age_ms=late_ms), np.zeros(2), clock.now_ns())
    path = [0.0, *follow(follower, clock, 500)]
    assert np.abs(np.diff(path)).max() <= 0.01 + 1e-12


def test_a_stall_of_the_host_is_not_caught_up_in_a_burst(follower, clock):
    follower.take(chunk(clock, [[0.1, 0.0], [0.2, 0.0]]), np.zeros(2), clock.now_ns())
    before = follow(follower, clock, 50)[-1]
    clock.advance(80 * NS_PER_MS)
    assert follow(follower, clock, 10)[0] - before <= 0.01 + 1e-12


def test_an_arm_that_stands_elsewhere_is_led_to_its_target_at_its_limit(follower, clock):
    follower.take(chunk(clock, [[0.9, 0.0]]), np.array([-0.9, 0.0]), clock.now_ns())
    path = [-0.9, *follow(follower, clock, 100)]
    assert np.allclose(np.diff(path)[1:], 0.01)


def test_after_stop_the_way_begins_at_what_is_measured(follower, clock):
    follower.take(chunk(clock, [[0.0, 0.0]]), np.zeros(2), clock.now_ns())
    follow(follower, clock, 50)
    follower.take(chunk(clock, np.empty((0, 0)), Mode.STOP), np.zeros(2), clock.now_ns())
    follower.take(chunk(clock, [[0.7, 0.0]]), np.array([0.8, 0.0]), clock.now_ns())
    assert np.allclose(follow(follower, clock, 30), [0.8, 0.79, 0.78])


def test_after_stop_a_gripper_that_holds_something_goes_on_from_its_command(follower, clock):
    """Found by a drill: resumed after a sensor fault, the command jumped by 8.5 steps to where the arm was measured."""
    follower.take(chunk(clock, [[0.0, 0.0]]), np.zeros(2), clock.now_ns())
    follow(follower, clock, 50)
    lies, holds = np.array([1e3, 0.0]), np.array([0.3, np.nan])
    for measured in (lies, lies, holds, holds + 0.04, holds):
        follower.take(chunk(clock, np.empty((0, 0)), Mode.STOP), measured, clock.now_ns())
        assert follow(follower, clock, 10) == []
    follower.take(chunk(clock, [[0.3, 0.0]]), holds, clock.now_ns())
    path = follow(follower, clock, 50)
    assert path[0] == 0.0 and 0 < np.diff(path).max() <= 0.01 + 1e-12


def test_after_stop_an_arm_that_was_pushed_begins_where_it_is_also_when_it_came_back(follower, clock):
    follower.take(chunk(clock, [[0.0, 0.0]]), np.zeros(2), clock.now_ns())
    follow(follower, clock, 50)
    for measured in ([0.02, 0.0], [0.08, 0.0], [0.03, 0.0]):
        follower.take(chunk(clock, np.empty((0, 0)), Mode.STOP), np.array(measured), clock.now_ns())
    assert follower.commanded is None
    follower.take(chunk(clock, [[0.0, 0.0]]), np.array([0.03, 0.0]), clock.now_ns())
    assert follow(follower, clock, 10) == [0.03]


def test_an_arm_outside_its_limits_is_led_back_and_not_thrown_back(follower, clock):
    follower.take(chunk(clock, [[1.0, 0.0]]), np.array([1.15, 0.0]), clock.now_ns())
    path = [1.15, *follow(follower, clock, 100)]
    assert np.diff(path).min() >= -0.01 - 1e-12 and path[-1] < 1.15


def test_a_measurement_of_nan_is_never_commanded(follower, clock):
    follower.take(chunk(clock, [[0.1, 0.0]]), np.array([np.nan, 0.0]), clock.now_ns())
    assert follower.target(clock.now_ns()) is None
    assert follower.reason == "the way from the measured state to the action holds NaN or infinity"


@pytest.mark.parametrize("mode", [Mode.INIT, Mode.HOLD, Mode.STOP])
def test_no_mode_but_run_moves_the_robot(follower, clock, mode):
    follower.take(chunk(clock, [[0.5, 0.5]], mode), np.zeros(2), clock.now_ns())
    assert follower.target(clock.now_ns()) is None
    assert follower.reason == f"controller is in {mode}"


@pytest.mark.parametrize(
    "bad", [[[np.nan, 0.0]], [[0.0, np.inf]], [[0.0, 0.0, 0.0]], np.empty((0, 2)), np.empty((1, 0))]
)
def test_a_malformed_action_is_never_followed(follower, clock, bad):
    follower.take(chunk(clock, bad), np.zeros(2), clock.now_ns())
    assert follower.target(clock.now_ns()) is None and follower.reason


def test_an_action_from_the_future_is_not_followed(follower, clock):
    follower.take(chunk(clock, [[0.1, 0.0]], age_ms=-50), np.zeros(2), clock.now_ns())
    assert follower.target(clock.now_ns()) is None
    assert "share one clock" in follower.reason


def test_one_from_the_future_does_not_make_the_next_ones_seem_old(follower, clock):
    follower.take(chunk(clock, [[0.1, 0.0]], age_ms=-50), np.zeros(2), clock.now_ns())
    clock.advance(10 * NS_PER_MS)
    assert follower.find_old(chunk(clock, [[0.1, 0.0]])) == ""


def test_an_action_that_is_older_than_the_newest_is_no_action(follower, clock):
    late, stop = chunk(clock, [[0.5, 0.0]]), chunk(clock, np.empty((0, 0)), Mode.STOP, age_ms=-20)
    clock.advance(20 * NS_PER_MS)
    follower.take(stop, np.zeros(2), clock.now_ns())
    assert follower.find_old(late) == "action 1 is 20 ms older than the newest: out of order, or sent again; ignored"
    assert follower.find_old(stop) == ""  # the same again, as harmless as it was


def test_targets_are_clipped_once_more_to_the_robots_limits(follower, clock):
    follower.take(chunk(clock, [[5.0, -5.0]] * 20, valid_ms=2000), np.array([0.95, -1.9]), clock.now_ns())
    follow(follower, clock, 300)
    assert np.allclose(follower.commanded, [1.0, -2.0])


class ScriptedRobot:
    """Notes what the host asks of it."""

    def __init__(self, spec=None):
        self.spec = spec or two_joint_spec()
        self.calls, self.position, self.begun = [], np.zeros(2), []

    def connect(self):
        self.calls.append("connect")

    def read_state(self):
        return self.position.copy()

    def read_frames(self):
        return {"front": np.zeros((28, 28, 3), np.uint8)}

    def apply(self, targets):
        self.position = targets.copy()
        return targets

    def hold(self):
        self.calls.append("hold")

    def close(self):
        self.calls.append("close")

    def begin(self, instruction):
        self.begun.append(instruction.id)

    def judge(self):
        return True


def stepped_until(host, condition, timeout_s=3.0):
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends:
        host.step()
        if condition():
            return
    raise AssertionError("did not happen in time")


def test_the_host_publishes_spec_state_and_frames_and_follows_actions(bus):
    robot = ScriptedRobot()
    host = RobotHost(robot, bus)
    actions, instructions = Publisher(bus, "action"), Publisher(bus, "instruction")
    state, frames, spec = (Latest(bus, topic) for topic in ("state", "frames", "robot"))
    got = {}

    def collect():
        got.update({name: noun for name, inbox in inboxes.items() if (noun := inbox.poll()) is not None})
        return len(got) == 3

    inboxes = {"state": state, "frames": frames, "robot": spec}
    stepped_until(host, collect)
    assert got["robot"].action_names == ("a", "b")
    assert abs(got["state"].stamp_ns - time.monotonic_ns()) < 3e9
    assert got["frames"].images["front"].shape == (28, 28, 3)

    def moved():
        now = time.monotonic_ns()
        actions.send(ActionChunk(1, now, 1, None, Mode.RUN, np.array([[0.2, 0.1]]), 0.001, now + 10**9))
        instructions.send(Instruction(1, now, 1, 4, "touch"))
        return np.allclose(robot.position, [0.2, 0.1]) and robot.begun == [4]

    stepped_until(host, moved)
    stepped_until(host, lambda: "hold" in robot.calls)  # the watchdog: no more actions come
    stepped_until(host, lambda: (one := state.poll()) is not None and one.task_instruction_id == 4)
    for port in (actions, instructions, state, frames, spec, host):
        port.close()


def test_an_action_that_grows_too_old_within_a_step_is_not_followed_any_more(bus, clock):
    """A new scene, a slow sensor, a process that had to wait: what counts is the time of the command."""
    robot = ScriptedRobot()
    robot.begin = lambda instruction: (robot.begun.append(instruction.id), clock.advance(250 * NS_PER_MS))
    robot.apply = lambda targets: (robot.calls.append(clock.now_ns()), targets)[1]
    host, actions, instructions = (
        RobotHost(robot, bus, clock=clock),
        *(Publisher(bus, t) for t in ("action", "instruction")),
    )
    clock.advance(1000 * NS_PER_MS)
    stamp_ns = clock.now_ns()

    def moves():
        actions.send(chunk(clock, [[0.1, 0.0]] * 20))
        return robot.calls

    stepped_until(host, moves)
    while host._actions.poll() is not None:
        pass
    clock.advance(100 * NS_PER_MS)

    robot.calls.clear()

    def begins():
        instructions.send(Instruction(1, stamp_ns, 1, 4, "touch"))
        return robot.begun

    stepped_until(host, begins)
    applied_ns = [call for call in robot.calls if call != "hold"]
    assert robot.calls[-1] == "hold" and robot.begun == [4] and max(applied_ns, default=0) <= stamp_ns + 100 * NS_PER_MS
    for port in (actions, instructions, host):
        port.close()


def test_replayed_and_reordered_actions_never_move_the_arm(bus, caplog):
    robot = ScriptedRobot()
    host, actions = RobotHost(robot, bus), Publisher(bus, "action")
    before_ns = time.monotonic_ns()
    sent: list[ActionChunk] = []

    def act(mode=Mode.RUN, target=0.2):
        now_ns = time.monotonic_ns()
        targets = np.array([[target, 0.0]]) if mode is Mode.RUN else np.empty((0, 0))
        sent.append(ActionChunk(len(sent), now_ns, 1, None, mode, targets, 0.001, now_ns + 10**9))
        actions.send(sent[-1])

    def moved():
        act()
        return robot.position[0] == 0.2

    stepped_until(host, moved)
    act(Mode.STOP)
    stepped_until(host, lambda: robot.calls == ["hold"])

    def replayed():
        actions.send(sent[len(sent) // 2])
        now_ns = time.monotonic_ns()
        actions.send(ActionChunk(9, before_ns, 1, None, Mode.RUN, np.array([[-0.9, 0.0]]), 0.001, now_ns + 10**9))
        return "older than the newest" in caplog.text

    stepped_until(host, replayed)
    for _ in range(20):
        replayed()
        host.step()
    assert robot.position[0] == 0.2 and robot.calls == ["hold"]
    assert caplog.text.count("older than the newest") == 1  # a flood of actions is no flood of lines

    def resumed():
        act(target=0.1)
        return robot.position[0] == 0.1

    stepped_until(host, resumed)
    actions.close()
    host.close()


def test_a_camera_fault_goes_out_with_state_and_frames(bus):
    host = RobotHost(ScriptedRobot(), bus)  # its images are black
    inboxes = {"state": Latest(bus, "state"), "frames": Latest(bus, "frames")}
    got = {}

    def collect():
        got.update({name: noun for name, inbox in inboxes.items() if (noun := inbox.poll()) is not None})
        return len(got) == 2 and got["state"].camera_faults

    stepped_until(host, collect)
    assert got["state"].camera_faults == got["frames"].faults
    assert got["state"].camera_faults["front"].startswith("is black")
    for port in (*inboxes.values(), host):
        port.close()


def test_the_stamps_of_a_driver_travel_with_its_images(bus):
    class Stamping(ScriptedRobot):
        captured_ns = {"front": 7}

    host, frames = RobotHost(Stamping(), bus), Latest(bus, "frames")
    got = []
    stepped_until(host, lambda: (one := frames.poll()) is not None and not got.append(one))
    assert got[0].captured_ns == {"front": 7} and got[0].view_age_ms("front") > 500
    assert got[0].faults["front"].startswith("is late: its newest image is ")
    frames.close()
    host.close()


def test_only_an_image_that_is_stamped_after_it_was_read_is_from_the_future(bus, clock):
    class Waiting(ScriptedRobot):
        captured_ns, ahead_ms = {}, 0

        def read_frames(self):
            clock.advance(30 * NS_PER_MS)
            self.captured_ns = {"front": clock.now_ns() + self.ahead_ms * NS_PER_MS}
            return {"front": np.full((28, 28, 3), 99, np.uint8)}

    robot = Waiting()
    host = RobotHost(robot, bus, clock=clock)
    host.step()
    assert host._camera_faults == {}
    robot.ahead_ms = 80
    clock.advance(1000 * NS_PER_MS)
    host.step()
    assert host._camera_faults["front"].startswith("is stamped 80 ms in the future")
    host.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cameras": {f"c{i}": (28, 28) for i in range(17)}},
            r"announced: robot.cameras: expected a map of at most 16",
        ),
        ({"action_names": ("a", "b" * 65)}, r"announced: robot.action_names\[1\]: expected text of 1..64 characters"),
        (
            {"cameras": {f"c{i}": (1200, 1200) for i in range(16)}},
            r"its 16 cameras give 69,120,000 bytes a capture, expected at most 67,076,096 \(a message of `frames`\)",
        ),
    ],
)
def test_a_robot_that_no_reader_would_take_is_refused_at_the_start(bus, changes, message):
    with pytest.raises(RobotError, match=message):
        RobotHost(ScriptedRobot(two_joint_spec(**changes)), bus)
    Publisher(bus, "state").close()  # and nothing is bound


def test_the_largest_capture_that_is_let_in_fits_into_a_message():
    names = ["\U0001f916" * 62 + f"{i:02}" for i in range(MAX_CAMERAS)]
    words = {name: "\U0001f916" * 200 for name in names}
    longest = Frames(2**62, 2**62, {name: np.zeros((1, 1, 3), np.uint8) for name in names}, 2**62)
    data = encode(replace(longest, captured_ns=dict.fromkeys(names, 2**62), faults=words))
    assert len(data) < _FRAMES_HEADER_BYTES
    decode("frames", data)


def test_whatever_ends_the_host_the_robot_is_held_and_then_closed(bus):
    robot = ScriptedRobot()
    robot.read_frames = lambda: (_ for _ in ()).throw(RuntimeError("camera unplugged"))
    with pytest.raises(RobotFailure, match="robot 'two-joint' failed in mid-run: RuntimeError: camera unplugged"):
        RobotHost(robot, bus).run(lambda: False)
    assert robot.calls == ["connect", "hold", "close"]


def test_a_robot_whose_hold_fails_is_closed_all_the_same(bus):
    robot = ScriptedRobot()
    robot.hold = lambda: (_ for _ in ()).throw(RuntimeError("driver gone"))
    with pytest.raises(RobotFailure, match="could not be held; use its emergency stop: RuntimeError: driver gone"):
        RobotHost(robot, bus).run(lambda: True)
    assert robot.calls[-1] == "close"


def test_a_robot_that_cannot_be_connected_says_so_in_one_line(bus):
    robot = ScriptedRobot()
    robot.connect = lambda: (_ for _ in ()).throw(OSError("no such port: usb0"))
    with pytest.raises(RobotFailure, match="robot 'two-joint' could not be connected: OSError: no such port: usb0"):
        RobotHost(robot, bus).run(lambda: False)
    assert robot.calls == ["close"]
