import numpy as np
import pytest
from rig import FixedHead, LoopRig, two_joint_spec

from control.clock import NS_PER_MS
from control.errors import MismatchError
from control.messages import MAX_COMMAND_CHARS, MAX_COMMANDS, Mode
from control.safety import Freshness
from control.wire import decode, encode


def test_init_names_what_it_waits_for_in_turn(rig):
    assert rig.tick().reason == "waiting for the robot host"
    rig.feed_robot()
    assert rig.tick().reason == "no state from the robot yet"
    rig.feed_state()
    assert rig.tick().reason == "no instruction yet; give one with `say`"
    rig.loop.say("touch the red block")
    rig.feed_state()
    assert rig.tick().reason == "waiting for the first features of instruction 1"
    assert rig.healthy_tick().mode is Mode.RUN


def test_what_it_waits_for_and_was_refused_is_named_with_the_reason(rig):
    misspelt = "unknown field 'camras'; did you mean 'cameras'?"
    rig.robot.refusal = f"robot: {misspelt}"
    assert rig.tick().reason == f"waiting for the robot host (robot: {misspelt})"
    rig.robot.refusal = ""
    rig.feed_robot()
    rig.state.refusal = "state: missing values"
    assert rig.tick().reason == "no state from the robot yet (state: missing values)"
    rig.state.refusal = ""
    rig.loop.say("touch the red block")
    rig.feed_state()
    rig.features.refusal = "features: missing tokens"
    assert rig.tick().reason == "waiting for the first features of instruction 1 (features: missing tokens)"
    rig.features.refusal = ""
    assert rig.healthy_tick().mode is Mode.RUN


def test_a_reason_of_many_joints_is_cut_to_what_readers_take():
    names = tuple(f"a-joint-with-a-name-that-a-maker-found-hard-to-shorten-{i:03}" for i in range(96))
    ones = np.ones(96)
    spec = two_joint_spec(state_names=names, action_names=names, action_low=-ones, action_high=ones, max_velocity=ones)
    head = FixedHead()
    head.state_names = head.action_names = names
    rig = LoopRig(head, spec)
    rig.feed_robot()
    rig.loop.say("touch the red block")
    cycle = decode("cycle", encode(rig.healthy_tick(state=(0.0,))))
    assert cycle.reason.startswith("the state has 1 values, expected 96: a-joint-") and len(cycle.reason) == 4000


def test_nothing_is_commanded_before_run(rig):
    for _ in range(3):
        rig.tick()
    assert all(chunk.mode is Mode.INIT and chunk.targets.size == 0 for chunk in rig.action.items)


def test_a_running_tick_publishes_the_gated_chunk_with_its_instruction_and_age(rig):
    rig.running()
    cycle = rig.healthy_tick()
    chunk = rig.action.items[-1]
    assert np.allclose(chunk.targets, [[0.01, 0.01], [0.02, 0.02]])
    assert (chunk.mode, chunk.instruction_id, chunk.feature_age_ms) == (Mode.RUN, 1, 100.0)
    assert chunk.valid_until_ns - chunk.stamp_ns == 200_000_000
    assert cycle.mode is Mode.RUN and cycle.reason == ""


def test_velocity_is_limited_against_the_last_commanded_target():
    rig = LoopRig(FixedHead([[1.0, 0.0]])).running()
    positions = [rig.action.items[-1].targets[0, 0]]
    for _ in range(3):
        rig.healthy_tick()
        positions.append(rig.action.items[-1].targets[0, 0])
    assert np.allclose(positions, [0.1, 0.2, 0.3, 0.4])
    assert rig.cycle.items[-1].limits == ("velocity a",)


def test_stale_features_slow_down_then_hold_the_last_commanded_target_then_stop(rig):
    rig.running()
    seen = {}
    for _ in range(24):
        rig.feed_state()
        cycle = rig.tick()
        seen.setdefault(cycle.mode, cycle)
        if cycle.mode is Mode.RUN and cycle.feature_age_ms > 400:
            assert cycle.reason.endswith("%")
    assert seen[Mode.HOLD].reason == "features 600 ms old, past hold_after_ms 600"
    assert seen[Mode.STOP].reason == "features 2100 ms old, past stop_after_ms 2000"
    held = [chunk.targets[0] for chunk in rig.action.items if chunk.mode is Mode.HOLD]
    last_run = [chunk.targets[0] for chunk in rig.action.items if chunk.mode is Mode.RUN][-1]
    assert all(np.array_equal(target, last_run) for target in held)


def test_speed_falls_between_slow_and_hold():
    rig = LoopRig(FixedHead([[0.1, 0.0]])).running()
    for _ in range(3):
        rig.feed_state()
        rig.tick()
    steps = np.diff([chunk.targets[0, 0] for chunk in rig.action.items])
    assert rig.cycle.items[-1].reason == "features 400 ms old: speed 67%"
    assert abs(steps[-1]) < 0.1 * 0.67 + 1e-9


def test_hold_ends_by_itself_when_the_cause_ends(rig):
    rig.running()
    assert rig.tick().mode is Mode.RUN  # the state is 100 ms old, allowed
    assert rig.tick().reason == "the state is 200 ms old, limit 150: robot host stalled"
    assert rig.healthy_tick().mode is Mode.RUN


def test_stop_is_latched_until_resume(rig):
    rig.running()
    rig.loop.stop("stopped by the operator")
    assert [rig.healthy_tick().mode for _ in range(3)] == [Mode.STOP] * 3
    assert rig.loop.reason == "stopped by the operator"
    rig.loop.resume()
    assert rig.healthy_tick().mode is Mode.RUN


def test_the_first_cause_of_a_stop_stays_its_reason_while_features_grow_old(rig):
    rig.running()
    rig.loop.stop("stopped by the operator")
    assert rig.healthy_tick().reason == "stopped by the operator"
    for _ in range(30):
        rig.feed_state()
        cycle = rig.tick()
    assert cycle.feature_age_ms > 2000
    assert (cycle.mode, cycle.reason) == (Mode.STOP, "stopped by the operator")
    rig.loop.stop("stopped on the page")
    rig.feed_state()
    assert rig.tick().reason == "stopped on the page", "a hand's newer word"
    rig.feed_state((1.5, 0.0))
    assert rig.tick().reason.startswith("the state of a is 1.5, far outside its limits"), "a danger"


def test_a_resume_that_is_refused_says_what_stands_in_its_way_now(rig):
    rig.running()
    rig.loop.stop("stopped by the operator")
    for _ in range(25):
        rig.feed_state()
        rig.tick()
    rig.loop.resume()
    rig.feed_state()
    cycle = rig.tick()
    assert cycle.mode is Mode.STOP and "past stop_after_ms 2000" in cycle.reason


def test_resume_does_not_override_a_cause_that_is_still_there(rig):
    rig.running()
    for _ in range(25):
        rig.feed_state()
        rig.tick()
    assert rig.loop.mode is Mode.STOP
    rig.loop.resume()
    rig.feed_state()
    assert rig.tick().mode is Mode.STOP
    rig.loop.resume()
    assert rig.healthy_tick().mode is Mode.RUN


def test_after_stop_the_arm_starts_from_where_it_was_found():
    rig = LoopRig(FixedHead([[0.0, 0.0]])).running()
    rig.loop.stop("stopped by the operator")
    rig.healthy_tick()
    rig.loop.resume()
    rig.healthy_tick(state=(0.8, 0.0))  # moved by hand meanwhile
    assert np.allclose(rig.action.items[-1].targets[0], [0.7, 0.0])


def test_features_of_instruction_one_never_drive_instruction_two(rig):
    rig.running()
    rig.loop.say("touch the blue block")
    cycle = rig.healthy_tick(instruction_id=1)
    assert (cycle.instruction_id, cycle.pending_id, cycle.mode) == (1, 2, Mode.RUN)
    cycle = rig.healthy_tick(instruction_id=2)
    assert (cycle.instruction_id, cycle.pending_id) == (2, None)
    assert cycle.switch_ms == 200.0
    cycle = rig.healthy_tick(instruction_id=1)  # a late one of the old instruction
    assert cycle.instruction_id == 2 and cycle.feature_age_ms == 200.0


def test_a_switch_that_takes_too_long_holds():
    rig = LoopRig(switch_max_ms=250).running()
    rig.loop.say("touch the blue block")
    modes = [rig.healthy_tick(instruction_id=1).mode for _ in range(3)]
    assert modes == [Mode.RUN, Mode.RUN, Mode.HOLD]
    assert rig.loop.reason == "no features of instruction 2 after 300 ms: encoder slow or stopped"
    assert rig.healthy_tick(instruction_id=2).mode is Mode.RUN


def test_the_pending_instruction_is_what_the_encoder_hears(rig):
    rig.running()
    rig.loop.say("touch   the\nblue block")
    rig.healthy_tick()
    assert rig.instruction.items[-1].text == "touch the blue block"
    assert rig.instruction.items[-1].id == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "the instruction is empty"), (" \n\t ", "the instruction is empty"), ("x" * 10_000, "has 10000 characters")],
)
def test_text_that_is_no_instruction_is_refused_and_changes_nothing(rig, text, message):
    rig.running()
    with pytest.raises(ValueError, match=message):
        rig.loop.say(text)
    assert rig.healthy_tick().instruction_id == 1 and rig.loop.pending is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"policy_id": "other"}, "features of policy other refused, the head is of policy"),
        ({"tokens": np.full((1, 4), np.nan, np.float32)}, "features with NaN, infinity or nothing in them refused"),
        ({"tokens": np.empty((0, 4), np.float32)}, "features with NaN, infinity or nothing in them refused"),
        ({"frame_stamp_ns": 2**62}, "features stamped in the future refused"),
    ],
)
def test_features_that_cannot_be_trusted_are_refused_with_a_reason(rig, changes, reason):
    rig.feed_robot()
    rig.loop.say("touch the red block")
    rig.feed_state()
    rig.feed_features(**changes)
    cycle = rig.tick()
    assert cycle.mode is Mode.INIT and reason in cycle.reason


def test_features_of_an_earlier_controller_are_ignored(rig):
    rig.feed_robot()
    rig.loop.say("touch the red block")
    rig.feed_state()
    rig.feed_features(session=6)
    assert rig.tick().reason == "waiting for the first features of instruction 1"


def test_a_restarted_encoder_is_accepted(rig):
    rig.running()
    rig.feed_state()
    rig.clock.advance(1)
    rig.feed_features(encoder_epoch=2, seq=1)
    assert rig.tick().encoder_epoch == 2


def test_older_features_never_replace_newer_ones(rig):
    rig.running()
    rig.feed_state()
    rig.feed_features(age_ms=400)
    assert rig.tick().feature_age_ms == 200.0


def test_the_age_is_that_of_the_oldest_view(rig):
    rig.running()
    rig.feed_state()
    rig.feed_features(age_ms=50, view_age_ms={"front": 0.0, "wrist": 120.0})
    assert rig.tick().feature_age_ms == 270.0


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((np.nan, 0.0), "the state of a is nan: sensor or driver fault"),
        ((0.0, np.inf), "the state of b is inf: sensor or driver fault"),
        ((0.0,), "the state has 1 values, expected 2: a, b"),
    ],
)
def test_bad_state_holds_with_a_reason_and_moves_nothing(rig, values, reason):
    rig.running()
    before = rig.action.items[-1].targets[0]
    rig.feed_features()
    rig.feed_state(values)
    cycle = rig.tick()
    assert (cycle.mode, cycle.reason) == (Mode.HOLD, reason)
    assert np.array_equal(rig.action.items[-1].targets[0], before)


def test_a_state_that_comes_while_a_tick_waits_for_the_processor_is_from_no_future(rig):
    rig.running()
    polled = rig.state.poll

    def poll_late():
        rig.clock.advance(5 * NS_PER_MS)
        rig.feed_state(rig.action.items[-1].targets[0])
        return polled()

    rig.state.poll = poll_late
    rig.feed_features()
    cycle = rig.tick()
    assert (cycle.mode, cycle.reason) == (Mode.RUN, "")
    assert cycle.state_age_ms == -5.0, "the age at the beginning of the tick, by which a replay finds the state"


def test_a_state_from_the_future_holds(rig):
    rig.running()
    rig.feed_state(age_ms=-500)
    rig.feed_features()
    assert "in the future: robot host and controller must share one clock" in rig.tick().reason


@pytest.mark.parametrize(
    "bad",
    [
        [[np.nan, 0.0]],
        [[0.0, np.inf]],
        [[0.0, 0.0, 0.0]],
        np.empty((0, 2)),
        RuntimeError("out of memory"),
        IndexError(3),
    ],
)
def test_bad_targets_hold_and_stop_after_three_in_a_row(bad):
    head = FixedHead()
    rig = LoopRig(head).running()
    head.targets = bad if isinstance(bad, Exception) else np.array(bad)
    modes = [rig.healthy_tick().mode for _ in range(3)]
    assert modes == [Mode.HOLD, Mode.HOLD, Mode.STOP]
    assert rig.loop.reason.startswith("3 bad outputs of the head in a row: the head")


def test_two_bad_targets_and_a_good_one_do_not_stop():
    head = FixedHead()
    rig = LoopRig(head).running()
    good, bad = head.targets, np.full((1, 2), np.nan)
    for targets in (bad, bad, good, bad, bad, good):
        head.targets = targets
        mode = rig.healthy_tick().mode
    assert mode is Mode.RUN


def test_too_many_missed_ticks_in_a_row_hold(rig):
    rig.running()
    rig.feed_state()
    rig.feed_features()
    cycle = rig.tick(missed=4)
    assert cycle.mode is Mode.HOLD
    assert cycle.reason == "4 ticks missed in a row, limit 3: the machine is overloaded"


def test_limits_under_the_bound_are_refused_before_run():
    rig = LoopRig(freshness=Freshness(150, 250, 2000))
    rig.feed_robot()
    rig.loop.say("touch the red block")
    rig.feed_state()
    rig.feed_features(encode_ms=200.0, age_ms=0)
    cycle = rig.tick()
    assert cycle.mode is Mode.INIT
    assert (
        "hold_after_ms 250 is under 2 x encode (200) + period (100) + time between two views (40) = 540 ms"
        in cycle.reason
    )


def test_limits_under_the_bound_cannot_be_passed_by_stop_and_resume():
    rig = LoopRig(freshness=Freshness(150, 250, 2000))
    rig.feed_robot()
    rig.loop.say("touch the red block")
    rig.loop.stop("stopped by the operator")
    rig.healthy_tick()
    rig.loop.resume()
    rig.clock.advance(1)
    rig.feed_state()
    rig.feed_features(encode_ms=400.0, age_ms=0)
    for _ in range(20):
        rig.feed_state()
        rig.feed_features(encode_ms=400.0, age_ms=0)
        assert rig.tick().mode is not Mode.RUN
    assert "would flap" in rig.loop.reason


def test_a_robot_host_that_was_started_again_is_met_where_its_arm_stands():
    rig = LoopRig(FixedHead([[0.9, 0.0]])).running()
    for _ in range(9):
        rig.healthy_tick(state=rig.action.items[-1].targets[0])
    assert rig.action.items[-1].targets[0, 0] > 0.8
    for _ in range(3):
        assert rig.tick().mode is not Mode.STOP
    rig.healthy_tick(state=(-0.9, 0.0))
    assert np.isclose(rig.action.items[-1].targets[0, 0], -0.8)


def test_after_a_long_gap_the_way_begins_where_the_host_held_and_is_no_following_error():
    """Found by a drill: a controller that was stopped for seconds believed that its whole chunk was followed, found
    the arm far from there, and latched STOP, which takes a hand to end.
    """
    rig = LoopRig(FixedHead([[0.1 * row, 0.0] for row in range(1, 10)])).running()
    rig.feed_state((0.3, 0.0))
    rig.feed_features()
    held = rig.tick(missed=40)
    assert held.mode == "HOLD" and held.reason.startswith("40 ticks missed in a row")
    rig.head.targets = np.array([[0.9, 0.0]])
    again = rig.healthy_tick(state=(0.3, 0.0))
    assert again.mode == "RUN" and rig.action.items[-1].targets[0, 0] == pytest.approx(0.4)


def test_missed_ticks_past_the_hosts_watchdog_are_not_believed_to_have_been_followed():
    """At 5 Hz three ticks are 800 ms; the host has held since 300."""
    head = FixedHead([[0.2, 0.0], [0.4, 0.0], [0.6, 0.0], [0.8, 0.0]])
    head.period_s = 0.2
    rig = LoopRig(head, period_ns=200 * NS_PER_MS, watchdog_ns=300 * NS_PER_MS).running()
    rig.head.targets = np.array([[0.9, 0.0]])
    rig.feed_state((0.25, 0.0))
    rig.feed_features()
    cycle = rig.tick(missed=3)
    assert (cycle.mode, cycle.reason) == (Mode.RUN, "")
    assert rig.action.items[-1].targets[0, 0] == pytest.approx(0.45), "from what is measured, a step of 200 ms on"


def test_after_missed_ticks_the_way_goes_on_where_the_host_has_come_to():
    rig = LoopRig(FixedHead([[0.1, 0.0], [0.2, 0.0], [0.3, 0.0]])).running()
    rig.head.targets = np.array([[0.4, 0.0]])
    rig.feed_state((0.3, 0.0))
    rig.feed_features()
    rig.tick(missed=2)
    assert np.isclose(rig.action.items[-1].targets[0, 0], 0.4)


def test_stop_reaches_the_robot_at_once_and_not_with_the_next_tick(rig):
    rig.running()
    count = len(rig.action.items)
    rig.loop.stop("stopped by the operator")
    assert len(rig.action.items) == count + 1 and rig.action.items[-1].mode is Mode.STOP


def test_another_robot_in_mid_run_ends_the_process(rig):
    rig.running()
    rig.robot.send(two_joint_spec(max_velocity=np.array([9.0, 9.0])))
    with pytest.raises(MismatchError, match="was replaced in mid-run"):
        rig.tick()


def test_the_same_robot_announced_again_changes_nothing(rig):
    rig.running()
    rig.feed_robot()
    assert rig.healthy_tick().mode is Mode.RUN


def test_a_robot_that_the_policy_says_it_cannot_drive_ends_the_process(rig):
    rig.loop._robot._find_misfits = lambda spec: ["camera 'front' gives 28x28, the policy was trained at 112x112"]
    rig.feed_robot()
    with pytest.raises(MismatchError, match="does not fit robot 'two-joint': camera 'front' gives 28x28"):
        rig.tick()


def test_a_long_chunk_at_a_high_rate_stays_within_what_readers_accept():
    rig = LoopRig(FixedHead([[0.01 * k, 0.0] for k in range(1, 41)]), period_ns=10_000_000).running()
    assert rig.action.items[-1].targets.shape == (100, 2)


def test_a_policy_for_other_joints_ends_the_process_with_both_lists():
    rig = LoopRig(spec=two_joint_spec(action_names=("a", "c"), state_names=("a", "c")))
    rig.feed_robot()
    with pytest.raises(MismatchError, match=r"action names \['a', 'b'\], the robot has \['a', 'c'\]"):
        rig.tick()


def test_an_action_that_the_robot_does_not_measure_is_refused():
    head = FixedHead()
    head.state_names = ("a",)
    rig = LoopRig(head, spec=two_joint_spec(state_names=("a",)))
    rig.feed_robot()
    with pytest.raises(MismatchError, match=r"does not measure its actions \['b'\]"):
        rig.tick()


def test_a_chunk_trained_at_ten_hertz_is_resampled_for_a_loop_at_twenty():
    rig = LoopRig(FixedHead([[0.04, 0.0], [0.08, 0.0]]), period_ns=50_000_000).running()
    assert np.allclose(rig.action.items[-1].targets[:, 0], [0.02, 0.04, 0.06, 0.08])


def test_the_robots_judgement_reaches_the_cycle(rig):
    rig.running()
    rig.feed_state(task_done=True, task_instruction_id=1)
    rig.feed_features()
    cycle = rig.tick()
    assert (cycle.task_done, cycle.task_instruction_id) == (True, 1)


def test_what_operators_asked_is_in_the_next_record_alone_and_no_flood_makes_it_long(rig):
    rig.loop.note("stop")
    rig.loop.note("resume" + "!" * MAX_COMMAND_CHARS)
    assert rig.tick().commands == ("stop", ("resume" + "!" * MAX_COMMAND_CHARS)[:MAX_COMMAND_CHARS])
    assert rig.tick().commands == ()
    for number in range(100):
        rig.loop.note(f"stop {number}")
    assert rig.tick().commands == tuple(f"stop {number}" for number in range(100 - MAX_COMMANDS, 100))
