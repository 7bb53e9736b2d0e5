"""What the arm is drawn from on the page: its links and joints, from the same lengths as the scene."""

from __future__ import annotations

from control.page_arm import Link
from sim import kinematics as arm

_PALM = arm.HAND - 0.07

LINKS = (
    Link("turret", "", (0.0, 0.0, 0.10), "waist"),
    Link("upper_arm", "turret", (0.0, 0.0, arm.SHOULDER_HEIGHT - 0.10), "shoulder", (0.0, 1.0, 0.0)),
    Link("lower_arm", "upper_arm", (0.0, 0.0, arm.UPPER_ARM), "elbow", (0.0, 1.0, 0.0)),
    Link("forearm", "lower_arm", (0.0, 0.0, 0.0), "forearm_roll"),
    Link("wrist", "forearm", (0.0, 0.0, arm.FOREARM), "wrist_pitch", (0.0, 1.0, 0.0)),
    Link("hand", "wrist", (0.0, 0.0, 0.0), "wrist_roll"),
    Link("palm", "hand", (0.0, 0.0, _PALM)),
    Link("finger_left", "palm", (0.0, 0.006, 0.0), "gripper", (0.0, 1.0, 0.0), "slide", 0.5),
    Link("tip_left", "finger_left", (0.0, 0.0, 0.07)),
    Link("finger_right", "palm", (0.0, -0.006, 0.0), "gripper", (0.0, -1.0, 0.0), "slide", 0.5),
    Link("tip_right", "finger_right", (0.0, 0.0, 0.07)),
)
