"""Toy problems that an action head learns in about a second on one core."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from vla.head import TrainedHead

TOKENS, WIDTH, HORIZON, WINDOW = 2, 8, 4, 16
NAMES = ("a", "b")
RAMP = torch.linspace(0.25, 1.0, HORIZON)[None, :, None]
Drawn = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # tokens, state, age, absolute targets


def one_way(count: int) -> Drawn:
    """The features alone say where to go, by up to 1 in each action."""
    tokens, state, age = _seen(count)
    goal = F.layer_norm(tokens, (WIDTH,))[:, 0, :2].tanh()
    return tokens, state, age, state[:, None] + RAMP * goal[:, None]


def two_ways(count: int) -> Drawn:
    """Half of the demonstrations go to a + 1 and half to a - 1, whatever is seen: left or right around an obstacle."""
    tokens, state, age = _seen(count)
    side = (torch.rand(count) < 0.5).float() * 2 - 1
    goal = torch.stack([side, torch.zeros(count)], dim=1)
    return tokens, state, age, state[:, None] + RAMP * goal[:, None]


def moving(count: int) -> tuple[Drawn, torch.Tensor]:
    """Go on the way the arm is swinging, as only the window (count, WINDOW, S) tells: it ends at the state, still."""
    tokens, state, age = _seen(count)
    side = (torch.rand(count) < 0.5).float() * 2 - 1
    swing = torch.sin(torch.linspace(0.0, torch.pi, WINDOW))[None, :, None] * 0.3
    window = state[:, None] - swing * side[:, None, None]
    return (tokens, state, age, state[:, None] + RAMP * side[:, None, None]), window


def learn(head: TrainedHead, loss: Callable[[], torch.Tensor], steps: int = 400, rate: float = 3e-3) -> None:
    """Minimises `loss()` (B,) for so many steps, with a rate that rises for 20 and then falls to 0."""
    optimizer = torch.optim.AdamW(head.parameters(), rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * (1 - step / steps)
        optimizer.zero_grad()
        loss().mean().backward()
        optimizer.step()


def _seen(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(count, TOKENS, WIDTH), torch.randn(count, len(NAMES)) * 0.5, torch.rand(count) * 600.0
