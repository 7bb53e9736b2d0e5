"""Feature tokens + state -> a chunk of absolute targets.

A head predicts the displacement from the state it is given, and returns targets in physical units, so that a stale
chunk still says where to go. It is given the age of the features: trained on stale ones, it knows how far the world has
moved on. What all trained heads share is `TrainedHead`; flow.py holds the one that draws from a distribution.

A head with a readout acts on a few values that it reads from the tokens, and on nothing else of them. Where somebody
knows what these values should be, the reading and the acting can be taught apart (after Chen et al. 2019, "Learning by
cheating"): the trunk on values that are given, hundreds of situations for each that is seen.

Imports torch and nothing of the language model: this runs in the controller's process.

Letters: T feature tokens, D width, R values read from them, S state values, H horizon, A actions, B batch, W samples of
the window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from control.head import ActionHead
from vla.window import WINDOW_WIDTH, SensorWindow

AGE_UNIT_MS = 500.0
SMOOTH = 0.3  # where the smooth L1 loss turns quadratic, in units of one standard deviation
SCALES = (0.12, 0.5, 2.0)  # standard deviations of a state, in which a trunk is told how far off a place is
READ_WIDTH = 256  # of the hidden layer between tokens and readout
CLAMP = 10.0  # standard deviations: a state far outside the training data does not blow the network up
# rad, m or the action's own unit. Above what a loaded servo sags; below what a person means by moving a joint.
HOLD_TOLERANCE = 0.1


class TrainedHead(nn.Module):
    """What every trained head shares: its inputs and their normalisation, the trunk over them, and `act`.

    A kind of head adds `loss` and `predict`. The buffers are float32 and part of the policy; an
    untrained head has them at 0 and 1.
    """

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
        window_samples: int = 0,
        readout: Sequence[str] = (),
    ) -> None:
        """`window_samples` W above 0: the head takes the last W states too, at the policy's `window.rate_hz`.

        With a `readout` of R names it acts on R values that it reads from the tokens, not on the tokens themselves. A
        name that ends in "." and that of a state is a place in that state's unit: the trunk is told how far off it is.
        """
        super().__init__()
        self.policy_id = policy_id
        self.horizon, self.period_s = horizon, period_s
        self.state_names, self.action_names = tuple(state_names), tuple(action_names)
        self.feature_shape = (tokens, width)
        self.window_samples = window_samples
        states, actions = len(self.state_names), len(self.action_names)
        self.token_norm = nn.LayerNorm(width)
        self.sensors = SensorWindow(window_samples, states) if window_samples else None
        places = [(i, name.rpartition(".")[2]) for i, name in enumerate(readout) if "." in name]
        self._places = [(i, self.state_names.index(name)) for i, name in places if name in self.state_names]
        self.readout = mlp_to(tokens * width, READ_WIDTH, len(readout)) if readout else None
        values = len(readout) or tokens * width
        inputs = values + len(SCALES) * len(self._places) + states + 1
        self.trunk = mlp(inputs + (WINDOW_WIDTH if window_samples else 0), hidden, layers)
        self.out = nn.Linear(hidden, horizon * actions)
        self.state_mean: torch.Tensor
        self.state_std: torch.Tensor
        self.step_mean: torch.Tensor
        self.step_std: torch.Tensor
        self.residual: torch.Tensor
        self.value_mean: torch.Tensor
        self.value_std: torch.Tensor
        if readout:
            self.register_buffer("value_mean", torch.zeros(len(readout)))
            self.register_buffer("value_std", torch.ones(len(readout)))
        self.register_buffer("state_mean", torch.zeros(states))
        self.register_buffer("state_std", torch.ones(states))
        self.register_buffer("step_mean", torch.zeros(horizon, actions))  # of the displacement
        self.register_buffer("step_std", torch.ones(horizon, actions))
        self.register_buffer("residual", residual_map(self.state_names, self.action_names), persistent=False)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, R) values from (B, T, D), in units of their own; all of the tokens, normalised, for no readout."""
        normed = self.token_norm(tokens).flatten(1)
        return normed if self.readout is None else self.readout(normed) * self.value_std + self.value_mean

    def loss(
        self,
        tokens: torch.Tensor,
        state: torch.Tensor,
        age_ms: torch.Tensor,
        targets: torch.Tensor,
        window: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B,) loss of each sample, from (B, T, D), (B, S), (B,), absolute targets (B, H, A) and (B, W, S)."""
        return self.loss_of(self.read(tokens), state, age_ms, targets, window)

    def loss_of(
        self,
        values: torch.Tensor,
        state: torch.Tensor,
        age_ms: torch.Tensor,
        targets: torch.Tensor,
        window: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`loss` from what was `read`, (B, R), or is given in its place."""
        raise NotImplementedError

    @torch.no_grad()
    def predict(
        self, tokens: torch.Tensor, state: torch.Tensor, age_ms: torch.Tensor, window: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, H, A) normalised displacement, without gradients: what `act` would do, before it is in physical units."""
        return self.predict_of(self.read(tokens), state, age_ms, window)

    def predict_of(
        self, values: torch.Tensor, state: torch.Tensor, age_ms: torch.Tensor, window: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`predict` from what was `read`, (B, R), or is given in its place."""
        raise NotImplementedError

    def targets(self, state: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """(B, H, A) absolute targets of normalised displacements: the inverse of `displacement`."""
        return (state @ self.residual).unsqueeze(1) + steps * self.step_std + self.step_mean

    def displacement(self, state: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(B, H, A) normalised displacement that would give these absolute targets: what training compares with."""
        return (targets - (state @ self.residual).unsqueeze(1) - self.step_mean) / self.step_std

    def context(
        self, values: torch.Tensor, state: torch.Tensor, age_ms: torch.Tensor, window: torch.Tensor | None
    ) -> torch.Tensor:
        """(B, hidden): all that is known, as every head sees it. ValueError for a window that is not the head's."""
        known = values if self.readout is None else (values - self.value_mean) / self.value_std
        parts = [known, self._normalised(state), (age_ms / AGE_UNIT_MS).unsqueeze(1)]
        if self.readout is not None:
            parts[0] = known.clamp(-CLAMP, CLAMP)
            columns, places = [list(column) for column in zip(*self._places, strict=True)] or ([], [])
            off = (values[:, columns] - state[:, places]) / self.state_std[places]
            parts += [torch.tanh(off / scale) for scale in SCALES]
        if self.sensors is not None:
            self._check_window(None if window is None else tuple(window.shape[1:]))
            assert window is not None
            parts.append(self.sensors(self._normalised(window)))
        elif window is not None:
            raise ValueError("the head takes no window of states, got one: declare `window` in the policy")
        return self.trunk(torch.cat(parts, dim=1))

    @torch.inference_mode()
    def act(
        self, tokens: np.ndarray, state: np.ndarray, feature_age_ms: float, window: np.ndarray | None = None
    ) -> np.ndarray:
        """See `control.head.ActionHead.act`. The state is added in float64: no displacement is exactly the state."""
        _check_inputs(tokens, state, self.feature_shape, self.state_names)
        age = torch.tensor([feature_age_ms], dtype=torch.float32)
        here = torch.tensor(state, dtype=torch.float64)  # copied: messages are read-only
        step = self.predict(torch.tensor(tokens)[None], here.float()[None], age, self._recent(window))[0]
        step = (step * self.step_std + self.step_mean).double()
        return (here @ self.residual.double() + step).numpy()

    def _normalised(self, states: torch.Tensor) -> torch.Tensor:
        return ((states - self.state_mean) / self.state_std).clamp(-CLAMP, CLAMP)

    def _recent(self, window: np.ndarray | None) -> torch.Tensor | None:
        """(1, W, S) of a window (W, S) that came over the wire; a head without one ignores what others asked for."""
        if not self.window_samples:
            return None
        self._check_window(None if window is None else window.shape)
        recent = torch.tensor(window, dtype=torch.float32)[None]
        if not torch.isfinite(recent).all():
            raise ValueError("the window of states holds NaN or infinity: a sensor or its driver has failed")
        return recent

    def _check_window(self, shape: tuple[int, ...] | None) -> None:
        expected = (self.window_samples, len(self.state_names))
        if shape is None:
            raise ValueError(
                f"the head needs a window of the last {expected[0]} states, got none:"
                f" set robot.history_samples: {expected[0]}"
            )
        if shape != expected:
            raise ValueError(
                f"the head needs a window of shape {expected} (samples, states), got {tuple(shape)}:"
                " robot.history_samples differs from the policy's window"
            )


class RegressionHead(TrainedHead):
    """An MLP over what is read from the feature tokens, the state, the feature age and the window if there is one."""

    def forward(
        self, values: torch.Tensor, state: torch.Tensor, age_ms: torch.Tensor, window: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, H, A) normalised displacement from (B, R), (B, S), (B,) and, where the policy has one, (B, W, S)."""
        context = self.context(values, state, age_ms, window)
        return self.out(context).view(-1, self.horizon, len(self.action_names))

    def loss_of(
        self,
        values: torch.Tensor,
        state: torch.Tensor,
        age_ms: torch.Tensor,
        targets: torch.Tensor,
        window: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B,) smooth L1 of the normalised displacement, the mean over the chunk."""
        wanted = self.displacement(state, targets)
        steps = self(values, state, age_ms, window)
        return F.smooth_l1_loss(steps, wanted, beta=SMOOTH, reduction="none").mean(dim=(1, 2))

    @torch.no_grad()
    def predict_of(
        self, values: torch.Tensor, state: torch.Tensor, age_ms: torch.Tensor, window: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self(values, state, age_ms, window)


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
        self.window_samples = 0
        self._target: np.ndarray | None = None  # (A,)

    def act(
        self, tokens: np.ndarray, state: np.ndarray, feature_age_ms: float, window: np.ndarray | None = None
    ) -> np.ndarray:
        """See `control.head.ActionHead.act`."""
        _check_inputs(tokens, state, None, self.state_names)
        here = state[self._columns].astype(np.float64)
        if self._target is None:
            self._target = here
        self._target = np.where(np.abs(here - self._target) <= HOLD_TOLERANCE, self._target, here)
        return np.repeat(self._target[None], self.horizon, axis=0)


def standing_window(head: ActionHead, state: np.ndarray) -> np.ndarray | None:
    """The window (W, S) of a robot that has stood still in `state` (S,), None for a head that takes none."""
    return np.tile(state, (head.window_samples, 1)) if head.window_samples else None


def mlp(inputs: int, hidden: int, layers: int) -> nn.Sequential:
    """`layers` of Linear, LayerNorm, SiLU, each `hidden` wide."""
    blocks: list[nn.Module] = []
    for _ in range(layers):
        blocks += [nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.SiLU()]
        inputs = hidden
    return nn.Sequential(*blocks)


def mlp_to(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """One layer of `mlp`, and a Linear to `outputs`."""
    return nn.Sequential(*mlp(inputs, hidden, 1), nn.Linear(hidden, outputs))


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
