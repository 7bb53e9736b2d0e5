"""The flow-matching head: where demonstrations disagree it picks one way, and regression goes between them.

Conditional flow matching with straight paths (Lipman et al. 2023, rectified flow: Liu et al. 2023): noise x0 goes to a
chunk of displacements x1 along x = (1 - t) x0 + t x1, and a network learns the velocity of that way.

The network's output is the end of the way, x1; the velocity is (x1 - x) / (1 - t). The plain loss on velocities,
weighted by (1 - t)^2, is the squared error of x1, with the same minimiser; and the noise, as wide as the chunk, need
not be copied through a narrow network to be subtracted. With one step it is regression to the mean.

The noise at inference is drawn once, with a seed that is a constant, and is part of the policy. Fresh noise a tick
would let the arm choose another way ten times a second and jitter between them; fixed, the chunk is a function of
what is seen, and neighbouring ticks choose the same way. It is not zero: from there, half-way between two ways, the
flow goes on half-way between them.

Letters as in head.py; N draws of time and noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from vla.head import TrainedHead, mlp

DRAWS = 4  # of time and noise for a sample in a training step: cheap beside the encoder, and a steadier gradient
_START_SEED = 0
_TIME_WIDTH = 16
_FASTEST = 16.0  # cycles of the time embedding over the way


class FlowMatchingHead(TrainedHead):
    """An MLP that leads noise to a chunk in a few Euler steps, conditioned on all that the regression head sees."""

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
        steps: int = 4,
    ) -> None:
        super().__init__(
            *(tokens, width, state_names, action_names, horizon, period_s, hidden, layers, policy_id),
            window_samples,
            readout,
        )
        self.steps = steps
        chunk = horizon * len(self.action_names)
        self.field = mlp(chunk + _TIME_WIDTH + hidden, hidden, layers)
        self.start: torch.Tensor
        fixed = torch.Generator().manual_seed(_START_SEED)
        self.register_buffer("start", torch.randn(horizon, len(self.action_names), generator=fixed))

    def loss_of(
        self,
        values: torch.Tensor,
        state: torch.Tensor,
        age_ms: torch.Tensor,
        targets: torch.Tensor,
        window: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B,) flow-matching loss, the mean over the chunk and `DRAWS` of time and noise, from torch's own generator.

        It does not fall to 0 where several ways are right; `predict` tells how good the head is.
        """
        wanted = self.displacement(state, targets).flatten(1).repeat(DRAWS, 1)  # (N * B, H * A)
        context = self.context(values, state, age_ms, window).repeat(DRAWS, 1)
        time = torch.rand(len(wanted), 1, device=wanted.device, dtype=wanted.dtype)
        here = torch.lerp(torch.randn_like(wanted), wanted, time)
        errors = (self._end(here, time, context) - wanted).square().mean(dim=1)
        return errors.view(DRAWS, len(state)).mean(dim=0)

    @torch.no_grad()
    def predict(
        self,
        tokens: torch.Tensor,
        state: torch.Tensor,
        age_ms: torch.Tensor,
        window: torch.Tensor | None = None,
        start: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, H, A) normalised displacement; the same for the same input. Noise as `start` (B, H, A) draws samples."""
        return self.predict_of(self.read(tokens), state, age_ms, window, start)

    @torch.no_grad()
    def predict_of(
        self,
        values: torch.Tensor,
        state: torch.Tensor,
        age_ms: torch.Tensor,
        window: torch.Tensor | None = None,
        start: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`predict` from what was `read`, (B, R), or is given in its place."""
        context = self.context(values, state, age_ms, window)
        here = (self.start.expand(len(state), -1, -1) if start is None else start).flatten(1)
        for step in range(self.steps):
            time = here.new_full((len(here), 1), step / self.steps)
            here = here + (self._end(here, time, context) - here) / (self.steps - step)  # 1 / steps of the velocity
        return here.view(-1, self.horizon, len(self.action_names))

    def _end(self, here: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """(B, H * A): where the way that is at `here` (B, H * A) at `time` (B, 1) is expected to end."""
        return self.out(self.field(torch.cat([here, _embedded(time), context], dim=1)))


def _embedded(time: torch.Tensor) -> torch.Tensor:
    """(B, _TIME_WIDTH) sines and cosines of (B, 1) times in 0..1, from half a cycle to `_FASTEST`."""
    octaves = torch.linspace(-1.0, math.log2(_FASTEST), _TIME_WIDTH // 2, device=time.device, dtype=time.dtype)
    angles = 2 * math.pi * time * torch.exp2(octaves)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
