"""Where blocks may lie: seeded random places on the work area. Pure numpy.

Letters: N scenes.
"""

from __future__ import annotations

import numpy as np

from sim.scene import BLOCK_SIZE, COLOURS, WORK_X, WORK_Y

_ROUNDS = 400


def place_blocks(
    rng: np.random.Generator,
    count: int,
    avoid: np.ndarray | None = None,
    separation: float = 0.09,
    clearance: float = 0.10,
) -> np.ndarray:
    """Blocks resting on the work area, (N, 4 blocks, 4): x, y, z, yaw.

    Centres are at least `separation` apart, and `clearance` away from `avoid` (N, 2), the finger tips seen from above.
    """
    low, high = np.array([WORK_X[0], WORK_Y[0]]), np.array([WORK_X[1], WORK_Y[1]])
    centres = rng.uniform(low, high, (count, len(COLOURS), 2))
    wrong = np.arange(count)
    for _ in range(_ROUNDS):
        gap = np.linalg.norm(centres[wrong, :, None] - centres[wrong, None, :], axis=-1)
        gap[:, range(len(COLOURS)), range(len(COLOURS))] = np.inf
        bad = (gap < separation).any(axis=(1, 2))
        if avoid is not None:
            bad |= (np.linalg.norm(centres[wrong] - avoid[wrong, None], axis=-1) < clearance).any(axis=1)
        wrong = wrong[bad]
        if len(wrong) == 0:
            break
        centres[wrong] = rng.uniform(low, high, (len(wrong), len(COLOURS), 2))
    assert len(wrong) == 0, "the work area holds four blocks with room to spare"
    height = np.full((count, len(COLOURS), 1), BLOCK_SIZE / 2)
    return np.concatenate([centres, height, rng.uniform(-np.pi, np.pi, height.shape)], axis=2)
