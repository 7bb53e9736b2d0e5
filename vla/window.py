"""A high-rate window of measured states -> one vector, by a small temporal convolution.

The state at 10 Hz says where the arm is; the window says what happened since: speed, a contact, an oscillation. Knows
shapes only: normalisation is the head's, and the rate stands in the policy's `window`.

Letters: B batch, T samples of the window (oldest first), S state values.
"""

from __future__ import annotations

import torch
from torch import nn

CHANNELS = 32
WINDOW_WIDTH = 64  # of the vector
_LAST_STEPS = 4  # convolutions halve the time until so few steps are left, whose order the last layer sees


class SensorWindow(nn.Module):
    """(B, T, S) normalised states to (B, WINDOW_WIDTH)."""

    def __init__(self, samples: int, states: int) -> None:
        """`samples` at least 2: one row says no more than the state."""
        super().__init__()
        if samples < 2:
            raise ValueError(f"a window needs at least 2 samples, got {samples}: the state alone is one already")
        self.shape = (samples, states)
        blocks: list[nn.Module] = []
        length, inputs = samples, states
        while length > _LAST_STEPS or not blocks:
            blocks += [nn.Conv1d(inputs, CHANNELS, kernel_size=3, stride=2, padding=1), nn.SiLU()]
            length, inputs = (length + 1) // 2, CHANNELS
        self.convolutions = nn.Sequential(*blocks)
        self.out = nn.Linear(length * CHANNELS, WINDOW_WIDTH)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        return self.out(self.convolutions(window.transpose(1, 2)).flatten(1))
