"""The scripted expert for touching a block: a smooth law from the state to the next target, in batches.

Stateless: what to do follows from joints and block alone, so it can label any state, also those that only a learned
policy visits. Closed form on numpy arrays; refuses to know MuJoCo.

Letters: N states, H horizon. States and targets are (N, 7): six angles in rad and the gripper opening in m.
"""

from __future__ import annotations

import numpy as np

from sim.kinematics import tip_position, tool_down
from sim.scene import BLOCK_SIZE

TRAVEL_HEIGHT = 0.115  # m, of the tip: 67 mm above the block tops
PRESS = 0.004  # m, how far under the top face the expert aims, so that it touches for sure
GRIPPER = 0.008  # m, nearly closed: two fingers side by side are one narrow tip
_DESCEND_AT, _TRAVEL_AT = 0.010, 0.075  # m, horizontal distances: fully down, fully up
_STEP_RAD_S, _GRIPPER_M_S = 1.0, 0.15


def _smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def desired_tip(tip: np.ndarray, block: np.ndarray, press: float = PRESS) -> np.ndarray:
    """Where the tip should go next, (N, 3): along a funnel that is high far from the block and ends on its top face.

    A tip under the funnel rises before it moves sideways, so no other block is hit on the way.
    """
    offset = block[:, :2] - tip[:, :2]
    distance = np.hypot(offset[:, 0], offset[:, 1])
    touch = block[:, 2] + BLOCK_SIZE / 2 - press
    height = touch + (TRAVEL_HEIGHT - touch) * _smoothstep(distance, _DESCEND_AT, _TRAVEL_AT)
    sideways = 1 - _smoothstep(height - tip[:, 2], 0.012, 0.045)
    return np.concatenate([tip[:, :2] + sideways[:, None] * offset, height[:, None]], axis=1)


def next_target(q: np.ndarray, block: np.ndarray, period_s: float, press: float = PRESS) -> np.ndarray:
    """The target one period ahead, (N, 7): toward the joints of the desired tip, all six scaled together."""
    goal = tool_down(desired_tip(tip_position(q), block, press), GRIPPER)
    step = goal - q
    largest = np.abs(step[:, :6]).max(axis=1, keepdims=True)
    arm = step[:, :6] * np.minimum(1.0, _STEP_RAD_S * period_s / np.maximum(largest, 1e-9))
    gripper = np.clip(step[:, 6:], -_GRIPPER_M_S * period_s, _GRIPPER_M_S * period_s)
    return q + np.concatenate([arm, gripper], axis=1)


def targets(
    q: np.ndarray, block: np.ndarray, horizon: int = 8, period_s: float = 0.1, press: float = PRESS
) -> np.ndarray:
    """The law rolled forward from q (N, 7) toward the block centre (N, 3): (N, H, 7), row 0 due one period ahead."""
    q = np.asarray(q, dtype=np.float64)
    rows = []
    for _ in range(horizon):
        q = next_target(q, block, period_s, press)
        rows.append(q)
    return np.stack(rows, axis=1)
