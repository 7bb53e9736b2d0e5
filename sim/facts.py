"""What a task is about, in a few numbers: the truth that a readout is taught, and that a rehearsal blurs.

Where to reach is told in joint angles, named like the joints: what to do then is near to linear in how far off they
are, and the head is told that. As points, with the kinematics left to the head, ten minutes of practice on the truth
taught five tasks and no stacking (0 of 61): its arm stood 1.4 cm beside the block. How a block is turned is not told:
from images 17 pixels wide it was hardly learnt in hours, and the expert feels it. Refuses to know MuJoCo.

Letters: N situations, F facts.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sim import expert
from sim.kinematics import JOINTS, tool_down
from sim.scene import BIN_CENTRE, BLOCK_SIZE
from sim.situation import Situation, held
from sim.tasks import KINDS

_JOINTS = ("waist", "shoulder", "elbow", "wrist_pitch")
NAMES = (
    *(kind.replace("-", "_") for kind in KINDS),
    *("x_m", "y_m", "z_m"),  # of the block that the task names first
    *(f"at.{joint}" for joint in _JOINTS),  # rad, with the finger tips at its centre
    *(f"to.{joint}" for joint in _JOINTS),  # where it goes, to the bin or on another block; for other tasks as `at`
    *("holds_it", "holds_another"),
)
_BIN = np.array([*BIN_CENTRE, expert.RELEASE_HEIGHT])
_ARM = [JOINTS.index(joint) for joint in _JOINTS]
# The largest standard deviations; and how much of the kind may be read as another one.
_BLUR_M, _BLUR_HELD, _BLUR_KIND = (0.006, 0.006, 0.003), 0.15, 0.45


def of(now: Situation) -> np.ndarray:
    """(N, F) float32."""
    block, stacks, bins = (now.block, *((now.kind == KINDS.index(kind))[:, None] for kind in ("stack", "bin")))
    there = np.where(bins, _BIN, now.base[:, :3] + (0.0, 0.0, BLOCK_SIZE))
    return np.concatenate(
        [
            np.eye(len(KINDS))[now.kind],
            block[:, :3],
            _reach(block[:, :3]),
            _reach(np.where(stacks | bins, there, block[:, :3])),
            _holds(now),
        ],
        axis=1,
    ).astype(np.float32)


def blurred(rng: np.random.Generator, now: Situation) -> np.ndarray:
    """The facts (N, F) as somebody might read them who looks less well; how much less differs from row to row."""
    count = len(now.q)
    amount = rng.random((count, 1))
    blocks, index = now.blocks.copy(), np.arange(count)
    for place in (now.first, now.second):
        blocks[index, place, :3] += rng.normal(0.0, 1.0, (count, 3)) * _BLUR_M * amount
    out = of(replace(now, blocks=blocks))
    doubt = _BLUR_KIND * rng.random(count) * amount[:, 0]
    out[index, now.kind] -= doubt
    out[index, (now.kind + rng.integers(1, len(KINDS), count)) % len(KINDS)] += doubt
    out[:, -2:] = _holds(now) + rng.normal(0.0, _BLUR_HELD, (count, 2)) * amount
    return out


def _holds(now: Situation) -> np.ndarray:
    """(N, 2): whether the named block is in the grip, and whether another one is."""
    gripped = held(now.q, now.blocks)
    return np.stack([gripped == now.first, (gripped >= 0) & (gripped != now.first)], axis=1)


def _reach(tip: np.ndarray) -> np.ndarray:
    """(N, 4): the arm's angles, apart from its rolls, with the finger tips at (N, 3) m."""
    return tool_down(tip, 0.0)[:, _ARM]
