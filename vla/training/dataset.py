"""What training needs to be given: batches of observation, instruction and where to go.

Whoever has demonstrations, a simulator or recordings, makes these. One frame may serve under several instructions, and
each of these samples at several acting states, some time after the frame: so training meets the feature ages that
deployment meets. `Truth` is what only a simulator knows; it supervises perception in training and is never needed to
act.

Letters: N frames, M samples, K acting states of a sample, H horizon, S state values, A actions, W samples of the
window, Q objects that an instruction is about, F facts of an instruction, B situations that are rehearsed.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Truth(Protocol):
    """Where the objects of an instruction were when the frame was taken."""

    @property
    def uv(self) -> dict[str, np.ndarray]:
        """Camera -> (M, Q, 2) in [0, 1): right, down."""
        ...

    @property
    def visible(self) -> dict[str, np.ndarray]:
        """Camera -> (M, Q) bool."""
        ...

    @property
    def facts(self) -> np.ndarray:
        """(M, F) what there is to know for acting, each near one: what a head's readout is taught."""
        ...


class Rehearsal(Protocol):
    """B situations with what was known of them, in place of features: they teach to act what there is to know."""

    @property
    def facts(self) -> np.ndarray:
        """(B, F) float32, as badly known as they may be read."""
        ...

    @property
    def states(self) -> np.ndarray:
        """(B, S) float32."""
        ...

    @property
    def feature_age_ms(self) -> np.ndarray:
        """(B,) how old the facts are."""
        ...

    @property
    def targets(self) -> np.ndarray:
        """(B, H, A) float32, absolute."""
        ...


class Batch(Protocol):
    """M samples on N frames."""

    @property
    def images(self) -> dict[str, np.ndarray]:
        """Camera -> (N, height, width, 3) uint8 RGB."""
        ...

    @property
    def image_index(self) -> np.ndarray:
        """(M,) the frame of each sample."""
        ...

    @property
    def instructions(self) -> list[str]:
        """M of them."""
        ...

    @property
    def states(self) -> np.ndarray:
        """(M, K, S) float32, when the policy acts."""
        ...

    @property
    def feature_age_ms(self) -> np.ndarray:
        """(M, K) from the frame to the state."""
        ...

    @property
    def targets(self) -> np.ndarray:
        """(M, K, H, A) float32, absolute."""
        ...

    @property
    def windows(self) -> np.ndarray | None:
        """(M, K, W, S) float32 states up to the acting one, for a head with a window."""
        ...

    @property
    def truth(self) -> Truth | None: ...

    @property
    def rehearsal(self) -> Rehearsal | None: ...
