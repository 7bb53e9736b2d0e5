"""Image tokens -> a few feature tokens: first inside each view, then over the views.

Per view `mean | max | last | attention`, over views `mean | max | concat | attention`. The ones without parameters work
on any checkpoint; the attention ones belong to a trained policy. Attention adds learned positions to the image tokens,
since the model's own rotary positions are relative: without them the pooled feature cannot say where something is.

Letters: V views, N image tokens of a view, Q queries, T feature tokens, D width.
"""

from __future__ import annotations

import torch
from torch import nn

from vla.policy_spec import Aggregation, Pooling


class ViewPooling(nn.Module):
    """(..., N, D) image tokens -> (..., Q, D) feature tokens of each view; Q is 1 except for attention."""

    def __init__(self, kind: Pooling, width: int, image_tokens: int = 0, queries: int = 1) -> None:
        super().__init__()
        self.kind = kind
        if self.kind != "attention":
            if queries != 1:
                raise ValueError(
                    f"pooling '{self.kind}' gives one token a view, got queries={queries}; use 'attention'"
                )
            return
        if image_tokens < 1 or queries < 1:
            raise ValueError(
                f"attention pooling needs image_tokens >= 1 and queries >= 1, got {image_tokens}, {queries}"
            )
        self.image_tokens = image_tokens
        self.norm = nn.LayerNorm(width)
        self.positions = nn.Parameter(torch.randn(image_tokens, width) * 0.5)
        self.queries = nn.Parameter(torch.randn(queries, width) * width**-0.5)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.scale = width**-0.5

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.kind == "mean":
            return tokens.mean(dim=-2, keepdim=True)
        if self.kind == "max":
            return tokens.amax(dim=-2, keepdim=True)
        if self.kind == "last":
            return tokens[..., -1:, :]
        return self.attend(tokens)[0]

    def attend(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention pooling: (..., Q, D) feature tokens and the (..., Q, N) logits that training may supervise."""
        if tokens.shape[-2] != self.image_tokens:
            raise ValueError(
                f"attention pooling was trained on {self.image_tokens} image tokens a view, got {tokens.shape[-2]}:"
                " use the policy's image sizes"
            )
        placed = self.norm(tokens) + self.positions
        logits = (self.queries * self.scale) @ self.key(placed).transpose(-1, -2)
        return logits.softmax(dim=-1) @ self.value(placed), logits


class ViewAggregation(nn.Module):
    """(..., V, Q, D) feature tokens of all views -> (..., T, D): T is V * Q for concat, else Q."""

    def __init__(self, kind: Aggregation, width: int, views: int = 0) -> None:
        super().__init__()
        self.kind = kind
        if self.kind != "attention":
            return
        if views < 1:
            raise ValueError(f"attention aggregation needs the number of views, got {views}")
        self.positions = nn.Parameter(torch.randn(views, 1, width) * 0.5)
        self.query = nn.Parameter(torch.randn(width) * width**-0.5)
        self.norm = nn.LayerNorm(width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.scale = width**-0.5

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        if self.kind == "mean":
            return views.mean(dim=-3)
        if self.kind == "max":
            return views.amax(dim=-3)
        if self.kind == "concat":
            return views.flatten(-3, -2)
        placed = self.norm(views) + self.positions
        weights = (self.key(placed) @ (self.query * self.scale)).softmax(dim=-2)
        return (weights.unsqueeze(-1) * self.value(placed)).sum(dim=-3)
