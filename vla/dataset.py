"""What training needs to be given: batches of observation, instruction and where to go.

Whoever has demonstrations, a simulator or recordings, makes these. The `target_` fields are ground truth about the
object the instruction names; they supervise perception during training and are never needed to act.

Letters: N samples, H horizon, S state values, A actions.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Batch(Protocol):
    """N samples, each with features of one moment and the state of `feature_age_ms` later."""

    images: dict[str, np.ndarray]  # camera -> (N, height, width, 3) uint8 RGB
    instructions: list[str]
    states: np.ndarray  # (N, S) float32
    feature_age_ms: np.ndarray  # (N,)
    targets: np.ndarray  # (N, H, A) float32, absolute
    target_uv: dict[str, np.ndarray]  # camera -> (N, 2) in [0, 1): right, down
    target_visible: dict[str, np.ndarray]  # camera -> (N,) bool
    target_position: np.ndarray  # (N, 3) metres
