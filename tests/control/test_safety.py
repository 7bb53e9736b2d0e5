import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rig import two_joint_spec

from control.errors import MismatchError
from control.messages import Mode
from control.safety import Freshness, Limits, clip_steps, find_following_error, find_outside, gate, next_mode

LIMITS = Limits.of(two_joint_spec(), 0.1)
SUDDEN = Limits.of(two_joint_spec(max_acceleration=np.array([4.0, 8.0])), 0.1)  # 0.04 and 0.08 a step more
ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True, width=64)
CHUNKS = hnp.arrays(np.float64, st.tuples(st.integers(0, 8), st.integers(0, 4)), elements=ANY_FLOAT)
INSIDE = st.tuples(st.floats(-1, 1), st.floats(-2, 2)).map(np.array)


@given(targets=CHUNKS, last=INSIDE, speed=st.floats(0, 1))
def test_whatever_the_head_says_only_finite_reachable_targets_pass(targets, last, speed):
    gated = gate(targets, last, LIMITS, speed)
    usable = targets.ndim == 2 and targets.shape[1] == 2 and len(targets) and np.isfinite(targets).all()
    if not usable:
        assert gated.fault and len(gated.targets) == 0
        return
    assert not gated.fault
    assert gated.targets.shape == targets.shape
    assert (gated.targets >= LIMITS.low - 1e-12).all() and (gated.targets <= LIMITS.high + 1e-12).all()
    steps = np.abs(np.diff(np.vstack((last, gated.targets)), axis=0))
    assert (steps <= LIMITS.max_step * speed + 1e-12).all()


@given(targets=hnp.arrays(np.float64, (3, 2), elements=st.floats(-0.05, 0.05)))
def test_targets_inside_every_limit_pass_unchanged(targets):
    gated = gate(targets, targets[0], LIMITS)
    assert np.allclose(gated.targets, targets, atol=1e-12) and gated.hit == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (1, 1)])
def test_a_single_bad_number_is_a_fault_and_is_never_clipped(bad, place):
    targets = np.zeros((2, 2))
    targets[place] = bad
    gated = gate(targets, np.zeros(2), LIMITS)
    assert gated.fault == f"the head gave {bad} for action {place[1]} of row {place[0]}"
    assert gated.targets.size == 0


def test_a_chunk_of_another_robot_is_a_fault():
    assert gate(np.zeros((2, 3)), np.zeros(2), LIMITS).fault == (
        "the head gave targets of shape (2, 3), expected (H, 2)"
    )


def test_every_limit_that_was_hit_is_named():
    limits = Limits.of(two_joint_spec(), 0.1, workspace={"b": (-0.5, 0.5)})
    gated = gate(np.array([[5.0, 1.0]]), np.zeros(2), limits)
    assert gated.hit == ("position a", "workspace b", "velocity a", "velocity b")
    assert np.allclose(gated.targets, [[0.1, 0.2]])


def test_a_robot_found_outside_its_limits_is_led_back_slowly():
    gated = gate(np.zeros((1, 2)), np.array([1.5, 0.0]), LIMITS)
    assert np.allclose(gated.targets, [[1.4, 0.0]])


def test_speed_scales_every_step_of_the_chunk():
    chunk = np.array([[0.08, 0.0], [0.16, 0.0]])
    targets, _, _ = clip_steps(chunk, np.zeros(2), np.zeros(2), LIMITS, 0.5)
    assert np.allclose(targets[:, 0], [0.04, 0.09])


STEPS = st.tuples(st.floats(-0.1, 0.1), st.floats(-0.2, 0.2)).map(np.array)


@given(
    targets=hnp.arrays(np.float64, (4, 2), elements=st.floats(-3, 3)), last=INSIDE, step=STEPS, speed=st.floats(0, 1)
)
def test_no_step_is_faster_than_the_one_before_by_more_than_the_acceleration(targets, last, step, speed):
    eased, plain = gate(targets, last, SUDDEN, speed, step), gate(targets, last, LIMITS, speed, step)
    steps = np.diff(np.vstack((last - step, last, eased.targets)), axis=0)
    before, after = steps[:-1], steps[1:]
    allowed = SUDDEN.max_speeding_up + 1e-12
    assert (after <= np.maximum(before, 0) + allowed).all() and (after >= np.minimum(before, 0) - allowed).all()
    assert (np.abs(after) <= LIMITS.max_step * speed + 1e-12).all()
    assert (np.abs(eased.targets[0] - last) <= np.abs(plain.targets[0] - last) + 1e-12).all()  # only ever shorter
    assert (eased.targets >= SUDDEN.low - 1e-12).all() and (eased.targets <= SUDDEN.high + 1e-12).all()


def test_speeding_up_is_limited_and_named_and_braking_is_not():
    assert gate(np.array([[0.1, 0.0]]), np.zeros(2), SUDDEN).hit == ("acceleration a",)
    assert gate(np.array([[0.1, 0.0]]), np.zeros(2), SUDDEN).targets[0, 0] == pytest.approx(0.04)
    braked = gate(np.array([[0.01, 0.0]]), np.zeros(2), SUDDEN, last_step=np.array([0.1, 0.0]))
    assert braked.hit == () and braked.targets[0, 0] == pytest.approx(0.01)
    turned = gate(np.array([[-0.1, 0.0]]), np.zeros(2), SUDDEN, last_step=np.array([0.1, 0.0]))
    assert turned.hit == ("acceleration a",) and turned.targets[0, 0] == pytest.approx(-0.04)


def test_an_acceleration_that_is_none_or_zero_is_refused():
    for bad in (np.zeros(2), np.array([1.0, math.nan]), np.ones(3)):
        with pytest.raises(ValueError, match="max_acceleration"):
            two_joint_spec(max_acceleration=bad)


def test_a_measurement_far_outside_its_limits_is_named_and_a_little_outside_is_led_back():
    assert find_outside(np.array([1.19, 0.0]), two_joint_spec()) == ""
    assert find_outside(np.array([1.21, 0.0]), two_joint_spec()) == (
        "the state of a is 1.21, far outside its limits -1..1: wrong unit, or not calibrated?"
    )


def test_an_arm_that_does_not_follow_is_named_with_how_far():
    spec, commanded = two_joint_spec(), np.array([0.5, 0.0])
    assert find_following_error(np.array([0.1, 0.0]), commanded, spec, 0.5) == ""
    assert find_following_error(np.array([-0.1, 0.0]), commanded, spec, 0.5).startswith(
        "a is measured at -0.1 and commanded to 0.5: further than the 0.5 of safety.max_following_s (0.5 s at its"
    )


def test_speed_falls_in_a_straight_line_from_slow_to_hold():
    ladder = Freshness(300, 600, 2000)
    assert [ladder.speed(age) for age in (0, 300, 450, 600, 5000)] == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_a_ladder_that_does_not_rise_is_refused():
    with pytest.raises(ValueError, match="expected 0 < slow_after_ms < hold_after_ms < stop_after_ms, got 300, 300"):
        Freshness(300, 300, 2000)


def test_a_robot_without_limits_is_refused_unless_the_config_says_so():
    endless = two_joint_spec(action_high=np.array([np.inf, 2.0]))
    with pytest.raises(MismatchError, match="robot 'two-joint' gives no finite limits for a; .*allow_unlimited: true"):
        Limits.of(endless, 0.1)
    assert Limits.of(endless, 0.1, allow_unlimited=True).high[0] == np.inf


def test_a_workspace_for_an_unknown_action_is_refused():
    with pytest.raises(MismatchError, match="safety.workspace names elbow; robot 'two-joint' has a, b"):
        Limits.of(two_joint_spec(), 0.1, workspace={"elbow": (-1, 1)})


EVENTS = {
    "healthy": {"fault": "", "stop": "", "resume": False},
    "fault": {"fault": "cause", "stop": "", "resume": False},
    "stop": {"fault": "", "stop": "cause", "resume": False},
    "stop and fault": {"fault": "cause", "stop": "cause", "resume": False},
    "resume": {"fault": "", "stop": "", "resume": True},
    "resume in fault": {"fault": "cause", "stop": "", "resume": True},
    "resume against stop": {"fault": "", "stop": "cause", "resume": True},
    "resume against both": {"fault": "cause", "stop": "cause", "resume": True},
}
NEXT = {
    ("INIT", "healthy"): "RUN",
    ("INIT", "fault"): "INIT",
    ("INIT", "stop"): "STOP",
    ("INIT", "stop and fault"): "STOP",
    ("INIT", "resume"): "RUN",
    ("INIT", "resume in fault"): "INIT",
    ("INIT", "resume against stop"): "STOP",
    ("INIT", "resume against both"): "STOP",
    ("RUN", "healthy"): "RUN",
    ("RUN", "fault"): "HOLD",
    ("RUN", "stop"): "STOP",
    ("RUN", "stop and fault"): "STOP",
    ("RUN", "resume"): "RUN",
    ("RUN", "resume in fault"): "HOLD",
    ("RUN", "resume against stop"): "STOP",
    ("RUN", "resume against both"): "STOP",
    ("HOLD", "healthy"): "RUN",
    ("HOLD", "fault"): "HOLD",
    ("HOLD", "stop"): "STOP",
    ("HOLD", "stop and fault"): "STOP",
    ("HOLD", "resume"): "RUN",
    ("HOLD", "resume in fault"): "HOLD",
    ("HOLD", "resume against stop"): "STOP",
    ("HOLD", "resume against both"): "STOP",
    ("STOP", "healthy"): "STOP",
    ("STOP", "fault"): "STOP",
    ("STOP", "stop"): "STOP",
    ("STOP", "stop and fault"): "STOP",
    ("STOP", "resume"): "RUN",
    ("STOP", "resume in fault"): "HOLD",
    ("STOP", "resume against stop"): "STOP",
    ("STOP", "resume against both"): "STOP",
}


@pytest.mark.parametrize(("mode", "event"), list(itertools.product(Mode, EVENTS)))
def test_the_mode_machine_on_every_state_and_event(mode, event):
    assert next_mode(mode, **EVENTS[event]) == NEXT[mode, event]
