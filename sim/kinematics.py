"""The arm's geometry and its closed-form kinematics, in batches. Knows lengths and angles; refuses to know MuJoCo.

Letters: N poses, S state values. Frame: the base at the origin, x forward, y left, z up. Angles are zero with the arm
straight up; a positive pitch leans forward. The tip is the point between the ends of the two fingers.
"""

from __future__ import annotations

import numpy as np

JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_pitch", "wrist_roll")
STATE_NAMES = (*JOINTS, "gripper")

SHOULDER_HEIGHT = 0.20
UPPER_ARM = 0.32
FOREARM = 0.32
HAND = 0.17  # wrist to tip

LOW = np.array([-2.4, -1.2, 0.05, -1.6, -0.8, -2.4, 0.0])
HIGH = np.array([2.4, 1.9, 2.75, 1.6, 2.8, 2.4, 0.08])
MAX_VELOCITY = np.array([1.8, 1.8, 1.8, 2.0, 2.0, 2.0, 0.2])  # rad/s, gripper m/s
MAX_ACCELERATION = 8.0 * MAX_VELOCITY  # full speed in 0.125 s
_REACH_MIN = 2 * UPPER_ARM * np.cos(HIGH[2] / 2)
_REACH_MAX = 2 * UPPER_ARM * np.cos(LOW[2] / 2)


def tip_position(q: np.ndarray) -> np.ndarray:
    """Forward kinematics: joints (N, >=6) -> tip (N, 3), m."""
    waist, shoulder, elbow, roll, pitch = (q[:, i] for i in range(5))
    x, z = HAND * np.sin(pitch), HAND * np.cos(pitch) + FOREARM
    x, y = x * np.cos(roll), x * np.sin(roll)
    x, z = x * np.cos(elbow) + z * np.sin(elbow), z * np.cos(elbow) - x * np.sin(elbow) + UPPER_ARM
    x, z = x * np.cos(shoulder) + z * np.sin(shoulder), z * np.cos(shoulder) - x * np.sin(shoulder)
    cos, sin = np.cos(waist), np.sin(waist)
    return np.stack([x * cos - y * sin, x * sin + y * cos, z + SHOULDER_HEIGHT], axis=1)


def tool_down(tip: np.ndarray, gripper: float | np.ndarray) -> np.ndarray:
    """Inverse kinematics: tip (N, 3) -> state (N, 7) with the tool pointing down, elbow up, both rolls zero.

    A tip out of reach gives the nearest pose on its line from the shoulder; angles are clipped to the joint limits.
    """
    waist = np.arctan2(tip[:, 1], tip[:, 0])
    radius = np.hypot(tip[:, 0], tip[:, 1])
    height = tip[:, 2] + HAND - SHOULDER_HEIGHT
    distance = np.clip(np.hypot(radius, height), _REACH_MIN, _REACH_MAX)
    elbow = 2 * np.arccos(distance / (2 * UPPER_ARM))
    shoulder = np.arctan2(radius, height) - elbow / 2
    zero = np.zeros_like(waist)
    q = np.stack([waist, shoulder, elbow, zero, np.pi - shoulder - elbow, zero, zero + gripper], axis=1)
    return np.clip(q, LOW, HIGH)
