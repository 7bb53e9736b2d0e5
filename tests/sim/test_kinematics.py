"""The closed form against MuJoCo's own kinematics."""

import numpy as np

from sim import kinematics


def test_the_closed_form_tip_is_the_simulated_tip(bench):
    rng = np.random.default_rng(0)
    states = rng.uniform(kinematics.LOW, kinematics.HIGH, (50, 7))
    simulated = []
    for q in states:
        bench.robot.pose(q)
        simulated.append(bench.robot.tip)
    np.testing.assert_allclose(kinematics.tip_position(states), simulated, atol=1e-9)


def test_inverse_kinematics_puts_the_tip_there_with_the_tool_down():
    rng = np.random.default_rng(1)
    tip = rng.uniform((0.18, -0.30, 0.01), (0.48, 0.30, 0.30), (200, 3))
    q = kinematics.tool_down(tip, 0.02)
    np.testing.assert_allclose(kinematics.tip_position(q), tip, atol=1e-9)
    np.testing.assert_allclose(q[:, 1] + q[:, 2] + q[:, 4], np.pi)
    assert (q[:, [3, 5]] == 0).all() and (q[:, 6] == 0.02).all()


def test_every_corner_of_the_work_area_is_reached_within_the_joint_limits():
    corners = np.array([(x, y, z) for x in (0.24, 0.50) for y in (-0.22, 0.22) for z in (0.03, 0.13)])
    np.testing.assert_allclose(kinematics.tip_position(kinematics.tool_down(corners, 0.0)), corners, atol=1e-9)


def test_a_tip_out_of_reach_gives_finite_joints_within_limits():
    far = np.array([(1.5, 0.2, 0.1), (0.0, 0.0, 0.03), (0.3, 0.0, 2.0)])
    q = kinematics.tool_down(far, 0.0)
    assert np.isfinite(q).all() and (q >= kinematics.LOW).all() and (q <= kinematics.HIGH).all()
