"""The robot as the loop knows it: what it measures and says of itself, and what follows from that."""

import numpy as np
from rig import FixedHead, LoopRig, two_joint_spec

from control.messages import Mode


def test_a_state_far_outside_the_limits_stops_until_it_is_led_back(rig):
    rig.running()
    assert rig.healthy_tick(state=(57.3, 0.0)).mode is Mode.STOP
    assert rig.loop.reason == "the state of a is 57.3, far outside its limits -1..1: wrong unit, or not calibrated?"
    rig.loop.resume()
    assert rig.healthy_tick(state=(57.3, 0.0)).mode is Mode.STOP
    assert rig.healthy_tick().mode is Mode.STOP
    rig.loop.resume()
    assert rig.healthy_tick().mode is Mode.RUN


def test_nan_in_the_state_holds_and_ends_by_itself(rig):
    rig.running()
    cycle = rig.healthy_tick(state=(np.nan, 0.0))
    assert (cycle.mode, cycle.reason) == (Mode.HOLD, "the state of a is nan: sensor or driver fault")
    assert rig.healthy_tick().mode is Mode.RUN


def test_an_arm_that_does_not_follow_its_commands_stops():
    rig = LoopRig(FixedHead([[0.9, 0.0]]), max_following_s=0.25).running()
    cycles = [rig.healthy_tick() for _ in range(5)]  # the sensor stands at 0 while the arm is commanded on
    assert [cycle.mode for cycle in cycles] == [Mode.RUN, Mode.RUN, Mode.STOP, Mode.STOP, Mode.STOP]
    assert rig.loop.reason.startswith("a is measured at 0 and commanded to 0.3: further than the 0.25 of")
    rig.loop.resume()
    assert rig.healthy_tick().mode is Mode.RUN
    assert np.isclose(rig.action.items[-1].targets[0, 0], 0.1)  # begun again from where it is measured


def test_an_arm_that_is_pushed_away_while_it_holds_stops(rig):
    rig.running()
    for _ in range(6):
        rig.feed_state()
        rig.tick()
    assert rig.loop.mode is Mode.HOLD
    rig.feed_state((0.9, 0.0))
    assert rig.tick().mode is Mode.STOP


def test_acceleration_is_limited_from_the_last_step_and_begins_again_after_hold():
    spec = two_joint_spec(max_acceleration=np.array([4.0, 8.0]))
    rig = LoopRig(FixedHead([[1.0, 0.0]]), spec).running()
    for _ in range(3):
        rig.healthy_tick(state=rig.action.items[-1].targets[0])
    assert np.allclose(np.diff([0.0, *(chunk.targets[0, 0] for chunk in rig.action.items)]), [0.04, 0.08, 0.1, 0.1])
    assert rig.cycle.items[1].limits == ("velocity a", "acceleration a")
    at = rig.action.items[-1].targets[0]
    rig.feed_features(tokens=np.full((1, 4), np.nan, dtype=np.float32))
    for _ in range(6):
        rig.feed_state(at)
        rig.tick()
    assert rig.loop.mode is Mode.HOLD
    before = rig.action.items[-1].targets[0, 0]
    assert rig.healthy_tick(state=rig.action.items[-1].targets[0]).mode is Mode.RUN
    assert np.isclose(rig.action.items[-1].targets[0, 0] - before, 0.04)


def test_after_missed_ticks_the_step_is_the_one_along_the_chunk():
    spec = two_joint_spec(max_acceleration=np.array([4.0, 8.0]))
    rig = LoopRig(FixedHead([[1.0, 0.0]] * 8), spec).running()  # 0.04, then 0.08, then 0.1 a row
    rig.clock.advance(200_000_000)
    rig.feed_state(rig.action.items[-1].targets[2])
    rig.feed_features()
    assert rig.tick(missed=2).mode is Mode.RUN
    assert np.isclose(rig.action.items[-1].targets[0, 0] - rig.action.items[-2].targets[2, 0], 0.1)


def test_a_camera_fault_holds_with_its_name_and_ends_by_itself(rig):
    rig.running()
    rig.feed_features()
    rig.feed_state(camera_faults={"front": "is black"})
    cycle = rig.tick()
    assert (cycle.mode, cycle.reason) == (Mode.HOLD, "camera 'front' is black")
    assert rig.healthy_tick().mode is Mode.RUN


def test_a_fault_of_a_camera_that_the_policy_does_not_need_changes_nothing():
    rig = LoopRig(needed_cameras=frozenset({"front"})).running()
    rig.feed_features()
    rig.feed_state(camera_faults={"side": "is black"})
    assert rig.tick().mode is Mode.RUN
