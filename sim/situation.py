"""What is, and where to go next: what the laws of the scripted expert speak of, in batches.

Letters: N situations. Refuses to know MuJoCo.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.kinematics import tip_position
from sim.scene import BLOCK_SIZE, COLOURS
from sim.tasks import KINDS, Task

HALF = BLOCK_SIZE / 2
TRAVEL_HEIGHT = 0.115  # m, of the tip: 67 mm above the block tops
GRASP = -0.010  # m, of the tip against the centre of the block that it grips
HELD_OPENING = 0.058  # m: a block between the fingers, gripped


@dataclass(frozen=True, slots=True, eq=False)
class Situation:
    """N times the table: joints, blocks, and what is asked for."""

    q: np.ndarray  # (N, 7)
    blocks: np.ndarray  # (N, 4, 4): x, y, z, yaw in the order of COLOURS
    kind: np.ndarray  # (N,) index into KINDS
    first: np.ndarray  # (N,) index into COLOURS
    second: np.ndarray  # (N,) the block to stack on; any other index where there is none

    @staticmethod
    def of(q: np.ndarray, blocks: np.ndarray, tasks: list[Task]) -> Situation:
        kind, first, second = (np.array(part) for part in zip(*(indices(task) for task in tasks), strict=True))
        return Situation(np.asarray(q, dtype=np.float64), np.asarray(blocks, dtype=np.float64), kind, first, second)

    def only(self, rows: np.ndarray) -> Situation:
        return Situation(self.q[rows], self.blocks[rows], self.kind[rows], self.first[rows], self.second[rows])

    @property
    def block(self) -> np.ndarray:
        return self.blocks[np.arange(len(self.q)), self.first]

    @property
    def base(self) -> np.ndarray:
        return self.blocks[np.arange(len(self.q)), self.second]


@dataclass(frozen=True, slots=True, eq=False)
class Goal:
    """Where the tip should go next, with which roll of the wrist and which opening."""

    tip: np.ndarray  # (N, 3)
    roll: np.ndarray  # (N,)
    opening: np.ndarray  # (N,)


def indices(task: Task) -> tuple[int, int, int]:
    """(kind, first, second) as numbers."""
    first = COLOURS.index(task.colour)
    return KINDS.index(task.kind), first, COLOURS.index(task.on) if task.on else (first + 1) % len(COLOURS)


def smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def held(q: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Which block the fingers grip, (N,): an index into COLOURS, -1 for none."""
    closed = (q[:, 6] < HELD_OPENING) & (q[:, 6] > 0.6 * BLOCK_SIZE)
    return np.where(closed, between(q, blocks), -1)


def between(q: np.ndarray, blocks: np.ndarray, below: float = 0.022) -> np.ndarray:
    """Which block lies between the fingers, gripped or not, or up to `below` m under there, (N,): -1 for none."""
    tip = tip_position(q)
    offset = blocks[:, :, :3] - (tip[:, None] - (0.0, 0.0, GRASP))
    inside = (np.hypot(offset[..., 0], offset[..., 1]) < 0.024) & (offset[..., 2] < 0.022) & (offset[..., 2] > -below)
    return np.where(inside.any(axis=1), inside.argmax(axis=1), -1)


def over(tip: np.ndarray, xy: np.ndarray, low: np.ndarray, travel: float, near: float, far: float) -> np.ndarray:
    """Along a funnel that is `travel` high far from `xy` and ends at `low` above it.

    A tip under the funnel rises before it moves sideways, so nothing is hit on the way.
    """
    offset = xy - tip[:, :2]
    height = low + (travel - low) * smoothstep(np.hypot(offset[:, 0], offset[:, 1]), near, far)
    sideways = 1 - smoothstep(height - tip[:, 2], 0.012, 0.045)
    return np.concatenate([tip[:, :2] + sideways[:, None] * offset, height[:, None]], axis=1)
