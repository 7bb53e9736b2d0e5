"""What a task is about, in a few numbers: the truth that a readout is taught, and that a rehearsal blurs.

Where to reach is told in joint angles, named like the joints: what to do then is near to linear in how far off they
are, and the head is told that. As points, with the kinematics left to the head, ten minutes of practice on the truth
taught five tasks and no stacking (0 of 61): its arm stood 1.4 cm beside the block. A square block looks the same after
a quarter of a turn, so how it is turned is told by sine and cosine of four times the angle: on the table, as a camera
above it sees it, and from the fingers, as the wrist's does. Told as the roll that the wrist should have, which no image
shows, it was never learnt: after 2,343 steps it was off by 0.4 rad, a guess. Refuses to know MuJoCo.

Letters: N situations, F facts.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sim import expert, kinematics
from sim.expert import Situation
from sim.kinematics import JOINTS, tool_down
from sim.scene import BIN_CENTRE, BLOCK_SIZE
from sim.tasks import KINDS

_JOINTS = ("waist", "shoulder", "elbow", "wrist_pitch")
NAMES = (
    *(kind.replace("-", "_") for kind in KINDS),
    *("x_m", "y_m", "z_m"),  # of the block that the task names first
    *(f"at.{joint}" for joint in _JOINTS),  # rad, with the finger tips at its centre
    *("yaw_sin", "yaw_cos"),  # of the block
    *("turn_sin", "turn_cos"),  # of how far the wrist has to turn until the fingers lie against it
    *(f"to.{joint}" for joint in _JOINTS),  # where it goes, to the bin or on another block; for other tasks as `at`
    *("holds_it", "holds_another"),
)
_BIN = np.array([*BIN_CENTRE, expert.RELEASE_HEIGHT])
_ARM = [JOINTS.index(joint) for joint in _JOINTS]
# The largest standard deviations, yaw in rad; and how much of the kind may be read as another one.
_YAW, _TURN = ([NAMES.index(f"{what}_{part}") for part in ("sin", "cos")] for what in ("yaw", "turn"))
_BLIND = 0.4
_BESIDE_M = 0.20  # of the tip from the block: further away the wrist's camera does not show how it is turned
_BLUR_M, _BLUR_YAW, _BLUR_HELD, _BLUR_KIND = (0.006, 0.006, 0.003), 0.25, 0.15, 0.45


def of(now: Situation) -> np.ndarray:
    """(N, F) float32."""
    block, stacks, bins = (now.block, *((now.kind == KINDS.index(kind))[:, None] for kind in ("stack", "bin")))
    there = np.where(bins, _BIN, now.base[:, :3] + (0.0, 0.0, BLOCK_SIZE))
    return np.concatenate(
        [
            np.eye(len(KINDS))[now.kind],
            block[:, :3],
            _reach(block[:, :3]),
            turned(now, in_hand=False),
            turned(now, in_hand=True),
            _reach(np.where(stacks | bins, there, block[:, :3])),
            _holds(now),
        ],
        axis=1,
    ).astype(np.float32)


def turned(now: Situation, in_hand: bool) -> np.ndarray:
    """(N, 2): sine and cosine of 4 times the named block's yaw on the table, or of the wrist's turn left to it."""
    angle = 4 * (now.q[:, 0] - now.block[:, 3] - now.q[:, 5] if in_hand else now.block[:, 3])
    return np.stack([np.sin(angle), np.cos(angle)], axis=1)


def blurred(rng: np.random.Generator, now: Situation) -> np.ndarray:
    """The facts (N, F) as somebody might read them who looks less well; how much less differs from row to row."""
    count = len(now.q)
    amount = rng.random((count, 1))
    blocks, index = now.blocks.copy(), np.arange(count)
    for place in (now.first, now.second):
        blocks[index, place, :3] += rng.normal(0.0, 1.0, (count, 3)) * _BLUR_M * amount
        blocks[index, place, 3] += rng.normal(0.0, _BLUR_YAW, count) * amount[:, 0]
    out = of(replace(now, blocks=blocks))
    doubt = _BLUR_KIND * rng.random(count) * amount[:, 0]
    out[index, now.kind] -= doubt
    out[index, (now.kind + rng.integers(1, len(KINDS), count)) % len(KINDS)] += doubt
    # A turn that cannot be made out is read as none, the mean of all: from afar that of the wrist's view, often. Some
    # see no turn at all; they can still feel that fingers stop on corners.
    blind = rng.random(count) < _BLIND
    out[:, _YAW] *= _certain(rng, amount)
    beside = np.hypot(*(kinematics.tip_position(now.q)[:, :2] - now.block[:, :2]).T)[:, np.newaxis]
    out[:, _TURN] *= _certain(rng, amount) * np.clip((_BESIDE_M - beside) / (_BESIDE_M / 2), 0.0, 1.0)
    turns = [*_YAW, *_TURN]
    out[:, turns] = np.where(blind[:, np.newaxis], 0.0, out[:, turns])
    out[:, -2:] = _holds(now) + rng.normal(0.0, _BLUR_HELD, (count, 2)) * amount
    return out


def _certain(rng: np.random.Generator, amount: np.ndarray) -> np.ndarray:
    """(N, 1): how sure somebody is of a turn, 1 in every other row."""
    return np.where(rng.random(amount.shape) < 0.5, 1.0, 1.0 - amount * rng.random(amount.shape))


def _holds(now: Situation) -> np.ndarray:
    """(N, 2): whether the named block is in the grip, and whether another one is."""
    held = expert.held(now.q, now.blocks)
    return np.stack([held == now.first, (held >= 0) & (held != now.first)], axis=1)


def _reach(tip: np.ndarray) -> np.ndarray:
    """(N, 4): the arm's angles, apart from its rolls, with the finger tips at (N, 3) m."""
    return tool_down(tip, 0.0)[:, _ARM]
