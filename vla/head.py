"""Feature tokens + state -> a chunk of absolute targets.

The head predicts the displacement from the state it is given, and returns targets in physical units, so that a stale
chunk still says where to go. It is given the age of the features: trained on stale ones, it knows how far the world has
moved on.

Imports torch and nothing of the language model: this runs in the controller's process.

Letters: T feature tokens, D width, S state values, H horizon, A actions, B batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

AGE_UNIT_MS = 500.0
# rad, m or the action's own unit. Above what a loaded servo sags; below what a person means by moving a joint.
HOLD_TOLERANCE = 0.1


class RegressionHead(nn.Module):
    """An MLP over all feature tokens, the state and the feature age. Its normalisation is part of it."""

    def __init__(
        self,
        tokens: int,
        width: int,
        state_names: Sequence[str],
        action_names: Sequence[str],
        horizon: int,
        period_s: float,
        hidden: int = 384,
        layers: int = 2,
        policy_id: str = "",
    ) -> None:
        super().__init__()
        self.policy_id = policy_id
        self.horizon, self.period_s = horizon, period_s
        self.state_names, self.action_names = tuple(state_names), tuple(action_names)
        self.feature_shape = (tokens, width)
        states, actions = len(self.state_names), len(self.action_names)
        self.token_norm = nn.LayerNorm(width)
        blocks: list[nn.Module] = []
        inputs = tokens * width + states + 1
        for _ in range(layers):
            blocks += [nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.SiLU()]
            inputs = hidden
        self.trunk = nn.Sequential(*blocks)
        self.out = nn.Linear(hidden, horizon * actions)
        self.state_mean: torch.Tensor
        self.state_std: torch.Tensor
        self.step_mean: torch.Tensor
        self.step_std: torch.Tensor
        self.residual: torch.Tensor
        self.register_buffer("state_mean", torch.zeros(states))
        self.register_buffer("state_std", torch.ones(states))
        self.register_buffer("step_mean", torch.zeros(horizon, actions))  # of the displacement
        self.register_buffer("step_std", torch.ones(horizon, actions))
        self.register_buffer("residual", residual_map(self.state_names, self.action_names), persistent=False)

    def forward(self, tokens: torch.Tensor, state: torch.Tensor, age_ms: torch.Tensor) -> torch.Tensor:
        """(B, H, A) normalised displacement from (B, T, D), (B, S), (B,)."""
        known = ((state - self.state_mean) / self.state_std).clamp(-10.0, 10.0)
        features = self.token_norm(tokens).flatten(1)
        inputs = torch.cat([features, known, (age_ms / AGE_UNIT_MS).unsqueeze(1)], dim=1)
        return self.out(self.trunk(inputs)).view(-1, self.horizon, len(self.action_names))

    def displacement(self, state: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(B, H, A) normalised displacement that would give these absolute targets: what training compares with."""
        return (targets - (state @ self.residual).unsqueeze(1) - self.step_mean) / self.step_std

    @torch.inference_mode()
    def act(self, tokens: np.ndarray, state: np.ndarray, feature_age_ms: float) -> np.ndarray:
        """See `control.head.ActionHead.act`. The state is added in float64: no displacement is exactly the state."""
        _check_inputs(tokens, state, self.feature_shape, self.state_names)
        age = torch.tensor([feature_age_ms], dtype=torch.float32)
        here = torch.tensor(state, dtype=torch.float64)  # copied: messages are read-only
        step = self(torch.tensor(tokens)[None], here.float()[None], age)[0]
        step = (step * self.step_std + self.step_mean).double()
        return (here @ self.residual.double() + step).numpy()


class HoldHead:
    """The head of an untrained policy: every target is where the robot was first met, so nothing moves.

    An action's target follows its state only once that is more than `HOLD_TOLERANCE` away, as after a move by hand. The
    measured state itself as target would make each tick's servo error the next tick's target: 0.34 rad in 10 s under
    5 N.
    """

    def __init__(
        self,
        state_names: Sequence[str],
        action_names: Sequence[str],
        horizon: int,
        period_s: float,
        policy_id: str,
    ) -> None:
        self.policy_id = policy_id
        self.horizon, self.period_s = horizon, period_s
        self.state_names, self.action_names = tuple(state_names), tuple(action_names)
        if without := [name for name in self.action_names if name not in self.state_names]:
            raise ValueError(
                f"a hold head returns the state, but the actions {without} have no state of that name;"
                f" states: {list(self.state_names)}"
            )
        self._columns = [self.state_names.index(name) for name in self.action_names]
        self._target: np.ndarray | None = None  # (A,)

    def act(self, tokens: np.ndarray, state: np.ndarray, feature_age_ms: float) -> np.ndarray:
        """See `control.head.ActionHead.act`."""
        _check_inputs(tokens, state, None, self.state_names)
        here = state[self._columns].astype(np.float64)
        if self._target is None:
            self._target = here
        self._target = np.where(np.abs(here - self._target) <= HOLD_TOLERANCE, self._target, here)
        return np.repeat(self._target[None], self.horizon, axis=0)


def residual_map(state_names: Sequence[str], action_names: Sequence[str]) -> torch.Tensor:
    """(S, A) ones where an action is a target for the state of the same name."""
    mapping = torch.zeros(len(state_names), len(action_names))
    for column, name in enumerate(action_names):
        if name in state_names:
            mapping[state_names.index(name), column] = 1.0
    return mapping


def _check_inputs(
    tokens: np.ndarray, state: np.ndarray, feature_shape: tuple[int, int] | None, state_names: tuple[str, ...]
) -> None:
    if feature_shape is not None and tokens.shape != feature_shape:
        raise ValueError(
            f"the head expects feature tokens of shape {feature_shape}, got {tokens.shape}: another policy?"
        )
    if state.shape != (len(state_names),):
        raise ValueError(f"the head expects the {len(state_names)} states {list(state_names)}, got shape {state.shape}")
