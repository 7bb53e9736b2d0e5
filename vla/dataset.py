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

    @property
    def images(self) -> dict[str, np.ndarray]:
        """Camera -> (N, height, width, 3) uint8 RGB."""
        ...

    @property
    def instructions(self) -> list[str]: ...

    @property
    def states(self) -> np.ndarray:
        """(N, S) float32, when the policy acts."""
        ...

    @property
    def feature_age_ms(self) -> np.ndarray:
        """(N,) from the images to the state."""
        ...

    @property
    def targets(self) -> np.ndarray:
        """(N, H, A) float32, absolute."""
        ...

    @property
    def target_uv(self) -> dict[str, np.ndarray]:
        """Camera -> (N, 2) in [0, 1): right, down."""
        ...

    @property
    def target_visible(self) -> dict[str, np.ndarray]:
        """Camera -> (N,) bool."""
        ...

    @property
    def target_position(self) -> np.ndarray:
        """(N, 3) metres."""
        ...
