"""What the arm is drawn from agrees with where the arm is."""

from __future__ import annotations

import numpy as np

from control.clock import FakeClock
from control.page_arm import Link, drawable
from sim import kinematics
from sim.links import LINKS
from sim.tabletop import TabletopRobot


def turn(axis: tuple[float, float, float], angle: float) -> np.ndarray:
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def places(q: np.ndarray) -> dict[str, np.ndarray]:
    """Origin of every link with the joints at q (7,), as the page draws it."""
    frames = {"": (np.zeros(3), np.eye(3))}
    values = dict(zip(kinematics.STATE_NAMES, q, strict=True))
    for link in LINKS:
        frames[link.name] = place(link, *frames[link.parent], link.gain * values.get(link.state, 0.0))
    return {name: origin for name, (origin, _) in frames.items()}


def place(link: Link, origin: np.ndarray, rotation: np.ndarray, value: float) -> tuple[np.ndarray, np.ndarray]:
    here = origin + rotation @ np.array(link.origin)
    if link.kind == "slide":
        return here + rotation @ np.array(link.axis) * value, rotation
    return here, rotation @ turn(link.axis, value)


def test_the_drawn_finger_tips_are_where_the_kinematics_has_the_tip() -> None:
    rng = np.random.default_rng(0)
    for q in rng.uniform(kinematics.LOW, kinematics.HIGH, (50, 7)):
        drawn = places(q)
        middle = (drawn["tip_left"] + drawn["tip_right"]) / 2
        np.testing.assert_allclose(middle, kinematics.tip_position(q[None])[0], atol=1e-6)


def test_the_fingers_move_apart_as_the_gripper_opens() -> None:
    closed, opened = (places(np.array([0, 0, 1.0, 0, 0, 0, opening])) for opening in (0.0, 0.08))
    apart = [np.linalg.norm(drawn["tip_left"] - drawn["tip_right"]) for drawn in (closed, opened)]
    assert abs(apart[1] - apart[0] - 0.08) < 1e-9


def test_the_page_can_draw_the_simulated_arm() -> None:
    assert [link["name"] for link in drawable(TabletopRobot(FakeClock()))] == [link.name for link in LINKS]
