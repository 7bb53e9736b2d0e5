"""The ActionHead protocol: what the loop asks of a policy, whatever computes it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class ActionHead(Protocol):
    """Features and state to a chunk of targets. Called by one thread at the control rate."""

    policy_id: str
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    horizon: int
    period_s: float  # between the rows of a chunk, as trained
    window_samples: int  # W, how many states of `State.history` it needs; 0 for none

    def act(
        self, tokens: np.ndarray, state: np.ndarray, feature_age_ms: float, window: np.ndarray | None = None
    ) -> np.ndarray:
        """(H, A) float64 absolute targets in the unit of each action; row 0 is due one `period_s` from now.

        `tokens` is (T, D) float32, `state` (S,) float64 in the order of `state_names`, `window` the robot's
        `State.history` (W, S), which a head that needs none ignores. Raises ValueError or RuntimeError for inputs it
        cannot use.
        """
        ...
