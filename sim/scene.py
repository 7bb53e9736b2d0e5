"""The table-top as MJCF text: table, arm, four blocks, bin, five cameras. Pure: builds a string, imports no MuJoCo.

Lengths in m, angles in rad, masses in kg. The arm's geometry comes from kinematics.py, so that the closed form and the
simulated arm cannot drift apart.
"""

from __future__ import annotations

import numpy as np

from sim import kinematics as arm

COLOURS = ("red", "green", "blue", "yellow")
BLOCK_SIZE = 0.048
TIMESTEP_S = 0.002
WORK_X, WORK_Y = (0.24, 0.50), (-0.22, 0.22)  # where block centres are placed
BIN_CENTRE, BIN_SIZE, BIN_HEIGHT = (0.14, 0.175), 0.11, 0.045

_RGB = {"red": "0.86 0.13 0.11", "green": "0.10 0.62 0.22", "blue": "0.10 0.28 0.86", "yellow": "0.97 0.80 0.08"}
# camera -> (position, point looked at, direction that is up in the image, vertical field of view in degrees)
_CAMERAS = {
    "front": ((1.02, 0.0, 0.62), (0.345, 0.0, 0.02), (0, 0, 1), 33),
    "left": ((0.34, 0.78, 0.60), (0.315, 0.0, 0.02), (0, 0, 1), 30),
    "right": ((0.34, -0.78, 0.60), (0.315, 0.0, 0.02), (0, 0, 1), 30),
    "top": ((0.50, 0.0, 1.10), (0.325, 0.0, 0.0), (1, 0, 0), 27),
}
_WRIST_CAMERA = ((-0.10, 0.0, 0.045), (-0.035, 0.0, 0.20), (-1, 0, 0), 76)  # in the frame of the hand
CAMERAS = (*_CAMERAS, "wrist")


def _camera(name: str, position: tuple, target: tuple, up: tuple, fovy_deg: float) -> str:
    forward = np.subtract(target, position)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    image_up = np.cross(right, forward)
    axes = " ".join(f"{value:.6f}" for value in (*right, *(image_up / np.linalg.norm(image_up))))
    return f'<camera name="{name}" pos="{position[0]} {position[1]} {position[2]}" xyaxes="{axes}" fovy="{fovy_deg}"/>'


def _joint(name: str, axis: str, kp: float, torque: float) -> tuple[str, str]:
    """The joint and its servo. kv = kp / 20 makes the servo follow its target with a lag of about 50 ms."""
    i = arm.STATE_NAMES.index(name)
    limits = f"{arm.LOW[i]} {arm.HIGH[i]}"
    return (
        f'<joint name="{name}" axis="{axis}" range="{limits}"/>',
        f'<position name="{name}" joint="{name}" kp="{kp}" kv="{kp / 20}" ctrlrange="{limits}"'
        f' forcerange="{-torque} {torque}"/>',
    )


def _block(colour: str, index: int) -> str:
    half = BLOCK_SIZE / 2
    return f"""
    <body name="{colour}" pos="0.35 {-0.18 + 0.12 * index:.3f} {half}">
      <freejoint name="{colour}"/>
      <geom name="{colour}" class="thing" type="box" size="{half} {half} {half}" mass="0.05" rgba="{_RGB[colour]} 1"/>
    </body>"""


def _bin() -> str:
    half, wall, height = BIN_SIZE / 2, 0.003, BIN_HEIGHT / 2
    rgba = 'rgba="0.68 0.62 0.74 1"'
    sides = "".join(
        f'<geom class="thing" type="box" pos="{x} {y} {height}" size="{sx} {sy} {height}" {rgba}/>'
        for x, y, sx, sy in (
            (half, 0, wall, half),
            (-half, 0, wall, half),
            (0, half, half, wall),
            (0, -half, half, wall),
        )
    )
    floor = f'<geom class="thing" type="box" pos="0 0 0.002" size="{half} {half} 0.002" {rgba}/>'
    return f'<body name="bin" pos="{BIN_CENTRE[0]} {BIN_CENTRE[1]} 0">{floor}{sides}</body>'


def _finger(name: str, side: int) -> str:
    # The inner faces meet at opening 0; the pad is 16 mm wide, 12 mm deep and ends at the tip.
    return f"""
    <body name="{name}" pos="0 {side * 0.006} {arm.HAND - 0.035}" gravcomp="1">
      <joint name="{name}" type="slide" axis="0 {side} 0" range="0 {arm.HIGH[6] / 2}" armature="0.02" damping="1"/>
      <geom class="pad" type="box" size="0.008 0.006 0.035" mass="0.03"/>
    </body>"""


def table_top_xml(offscreen_size: tuple[int, int] = (640, 640)) -> str:
    """The scene. `offscreen_size` is the largest (height, width) a camera will be rendered at."""
    joints = {
        "waist": _joint("waist", "0 0 1", 260, 60),
        "shoulder": _joint("shoulder", "0 1 0", 260, 60),
        "elbow": _joint("elbow", "0 1 0", 200, 40),
        "forearm_roll": _joint("forearm_roll", "0 0 1", 60, 15),
        "wrist_pitch": _joint("wrist_pitch", "0 1 0", 80, 15),
        "wrist_roll": _joint("wrist_roll", "0 0 1", 40, 10),
    }
    joint = {name: text for name, (text, _) in joints.items()}
    servos = "".join(servo for _, servo in joints.values())
    cameras = "".join(_camera(name, *view) for name, view in _CAMERAS.items())
    blocks = "".join(_block(colour, i) for i, colour in enumerate(COLOURS))
    centre = [(low + high) / 2 for low, high in (WORK_X, WORK_Y)]
    half = [(high - low) / 2 + BLOCK_SIZE for low, high in (WORK_X, WORK_Y)]
    hand_top, hand_end = 0.015, arm.HAND - 0.07
    return f"""
<mujoco model="tabletop">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{TIMESTEP_S}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <statistic center="0.35 0 0.1" extent="1.0"/>
  <visual>
    <global offheight="{offscreen_size[0]}" offwidth="{offscreen_size[1]}"/>
    <quality shadowsize="0" offsamples="0"/>
    <map znear="0.02" zfar="8"/>
    <headlight ambient="0.42 0.42 0.42" diffuse="0.34 0.34 0.34" specular="0 0 0"/>
  </visual>
  <default>
    <joint armature="0.05" damping="0.5"/>
    <geom solref="0.008 1"/>
    <default class="thing"><geom contype="2" conaffinity="3" friction="0.9 0.01 0.0005" condim="4"/></default>
    <default class="link"><geom contype="1" conaffinity="0" rgba="0.50 0.52 0.55 1"/></default>
    <default class="joint"><geom contype="1" conaffinity="0" rgba="0.22 0.23 0.25 1"/></default>
    <default class="pad">
      <geom contype="1" conaffinity="0" friction="1.6 0.02 0.001" condim="4" priority="1" rgba="0.13 0.13 0.14 1"/>
    </default>
  </default>
  <worldbody>
    <light pos="0.2 -0.5 1.8" dir="0.1 0.3 -1" directional="true" castshadow="false" diffuse="0.36 0.36 0.36"
      specular="0 0 0"/>
    <geom name="table" class="thing" type="plane" size="1.5 1.5 0.1" rgba="0.80 0.78 0.75 1"/>
    <geom type="box" contype="0" conaffinity="0" pos="{centre[0]} {centre[1]} 0.0003"
      size="{half[0]} {half[1]} 0.0003" rgba="0.71 0.70 0.69 1"/>
    {cameras}
    {_bin()}
    {blocks}
    <geom type="cylinder" contype="1" conaffinity="0" pos="0 0 0.05" size="0.07 0.05" rgba="0.22 0.23 0.25 1"/>
    <body name="turret" pos="0 0 0.10" gravcomp="1">
      {joint["waist"]}
      <geom class="link" type="cylinder" pos="0 0 0.035" size="0.055 0.035" mass="1.0"/>
      <body name="upper_arm" pos="0 0 {arm.SHOULDER_HEIGHT - 0.10}" gravcomp="1">
        {joint["shoulder"]}
        <geom class="joint" type="cylinder" size="0.045 0.045" zaxis="0 1 0" mass="0.4"/>
        <geom class="link" type="capsule" fromto="0 0 0 0 0 {arm.UPPER_ARM}" size="0.030" mass="0.7"/>
        <body name="lower_arm" pos="0 0 {arm.UPPER_ARM}" gravcomp="1">
          {joint["elbow"]}
          <geom class="joint" type="cylinder" size="0.036 0.040" zaxis="0 1 0" mass="0.2"/>
          <body name="forearm" gravcomp="1">
            {joint["forearm_roll"]}
            <geom class="link" type="capsule" fromto="0 0 0.05 0 0 {arm.FOREARM}" size="0.024" mass="0.4"/>
            <body name="wrist" pos="0 0 {arm.FOREARM}" gravcomp="1">
              {joint["wrist_pitch"]}
              <geom class="joint" type="cylinder" size="0.026 0.028" zaxis="0 1 0" mass="0.1"/>
              <body name="hand" gravcomp="1">
                {joint["wrist_roll"]}
                {_camera("wrist", *_WRIST_CAMERA)}
                <geom class="link" type="cylinder" fromto="0 0 {hand_top} 0 0 {hand_end - 0.03:.4f}" size="0.020"
                  mass="0.1"/>
                <geom class="joint" type="box" pos="0 0 {hand_end - 0.015:.4f}" size="0.013 0.052 0.012" mass="0.1"/>
                <site name="tip" pos="0 0 {arm.HAND}" size="0.002" rgba="0 0 0 0"/>
                {_finger("finger_left", 1)}
                {_finger("finger_right", -1)}
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
  <tendon>
    <fixed name="gripper"><joint joint="finger_left" coef="1"/><joint joint="finger_right" coef="1"/></fixed>
  </tendon>
  <equality><joint joint1="finger_left" joint2="finger_right" solref="0.005 1"/></equality>
  <actuator>
    {servos}
    <position name="gripper" tendon="gripper" kp="900" kv="30" ctrlrange="0 {arm.HIGH[6]}" forcerange="-16 16"/>
  </actuator>
</mujoco>
"""
