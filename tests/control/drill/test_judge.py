"""Each promise is seen to break when it is broken, and to hold when it is kept."""

from dataclasses import replace

import numpy as np
import pytest
from rig import two_joint_spec

from control.clock import NS_PER_MS
from control.drill.judge import Promises, Seen, broken_promises, largest_step, motions
from control.drill.robot import Row
from control.messages import ActionChunk, Mode
from tests.control.test_report import cycle

PROMISES = Promises(two_joint_spec(), 100 * NS_PER_MS, 10 * NS_PER_MS, 300 * NS_PER_MS, 600.0, 200.0, 500 * NS_PER_MS)


def row(at_ms, *targets, start=False):
    return Row(round(at_ms * NS_PER_MS), np.array(targets, dtype=float) if targets else None, start)


def action(at_ms, *rows, mode=Mode.RUN):
    targets = np.array(rows or [[0.0, 0.0]], dtype=float)
    at_ns = round(at_ms * NS_PER_MS)
    return ActionChunk(1, at_ns, 1, 50.0, mode, targets, 0.1, at_ns + 10**9)


def seen(rows=(), actions=None, cycles=()):
    actions = [action(at_ms) for at_ms in range(0, 2000, 100)] if actions is None else actions
    return Seen(list(rows), list(actions), list(actions), list(cycles), [one.stamp_ns for one in cycles])


def test_a_run_that_keeps_its_promises():
    rows = [row(0, start=True), *(row(10 * k, 0.01 * k, 0.0) for k in range(1, 50)), row(520), row(600, 0.5, 0.0)]
    assert broken_promises(seen(rows, cycles=[cycle(1), cycle(2)]), PROMISES) == []
    assert largest_step(rows, PROMISES.spec, PROMISES.host_period_ns) == pytest.approx(1.0)


def test_a_step_beyond_the_velocity_limit():
    rows = [row(0, 0.0, 0.0), row(10, 0.02, 0.0)]
    assert broken_promises(seen(rows), PROMISES) == ["a command was 2.000 of the largest step that is allowed"]
    across_a_hold = [rows[0], row(5), rows[1]]
    assert len(broken_promises(seen(across_a_hold), PROMISES)) == 1
    another_host = [rows[0], row(5, start=True), rows[1]]
    assert broken_promises(seen(another_host), PROMISES) == []


def test_a_command_outside_the_limits_unless_it_leads_back():
    out = [row(0, 1.0, 0.0), row(10, 1.005, 0.0)]
    assert broken_promises(seen(out), PROMISES) == ["a command was outside the robot's limits: [1.005, 0.0]"]
    assert broken_promises(seen(out[::-1]), PROMISES) == []
    assert "outside" in " ".join(broken_promises(seen([row(0, 0.0, 0.0), row(10, np.nan, 0.0)]), PROMISES))


def test_a_motion_after_the_watchdogs_time():
    actions = [action(0), action(100), action(200, mode=Mode.HOLD)]
    moved = [row(0, 0.0, 0.0), row(410, 0.01, 0.0)]
    assert broken_promises(seen(moved, actions), PROMISES) == []
    moved = [row(0, 0.0, 0.0), row(420, 0.01, 0.0)]
    assert broken_promises(seen(moved, actions), PROMISES) == ["the arm moved 320 ms after the last action"]
    rests = [row(0, 0.0, 0.0), row(420, 0.0, 0.0)]
    assert broken_promises(seen(rests, actions), PROMISES) == [] and motions(rests) == []


def test_actions_that_were_sent_and_never_came_count_for_nothing():
    rows = [row(0, 0.0, 0.0), row(900, 0.01, 0.0)]
    lost = seen(rows)
    lost.passed = [action(0), action(100)]
    assert broken_promises(lost, PROMISES) == ["the arm moved 800 ms after the last action"]


def test_run_on_data_that_is_too_old():
    aged = [cycle(1), replace(cycle(2), feature_age_ms=600.0)]
    assert broken_promises(seen(cycles=aged), PROMISES) == ["RUN on features 600.0 ms old"]
    assert broken_promises(seen(cycles=[replace(one, mode=Mode.HOLD) for one in aged]), PROMISES) == []
    late = [replace(cycle(1), state_age_ms=201.0)]
    assert broken_promises(seen(cycles=late), PROMISES) == ["RUN on a state 201.0 ms old"]


def test_an_action_that_is_no_number_or_out_of_reach():
    nan = [action(0, [np.nan, 0.0])]
    assert broken_promises(seen(actions=nan), PROMISES) == ["an action held NaN or infinity"]
    far = [action(0, [0.0, 0.0], [0.2, 0.0])]
    assert broken_promises(seen(actions=far), PROMISES) == ["an action had a step beyond the velocity limit"]
