"""Attention over windows and over rows, by the backend that the config names.

`sdpa` is torch's own and runs everywhere: one call for all windows of one size. `varlen` (torch) and
`flash_attention_2` (the flash-attn package) take windows of all sizes in one call; both need a CUDA GPU and 16-bit
states. None of them is given a mask. A backend that cannot run here is refused with the reason, never replaced.

Letters: V views, N patches of a view, L padded length of a row, H heads, K key heads, E head width.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F

from vla.tables import Runs

Backend = Literal["sdpa", "varlen", "flash_attention_2"]
# (T, H, E) query, key and value of sequences laid one after another, where each ends, the longest, causal or not, scale
Packed = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, bool, float], torch.Tensor]


def obstacle(backend: Backend, device: torch.device, dtype: torch.dtype) -> str:
    """What keeps this backend from running here, in plain words; empty when it can."""
    if backend == "sdpa":
        return ""
    if device.type != "cuda":
        return f"attention '{backend}' needs a CUDA GPU, the device is '{device}': use 'sdpa'"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"attention '{backend}' needs 16-bit states, the precision gives {dtype}: use 'sdpa', or precision bf16"
    module = "torch.nn.attention.varlen" if backend == "varlen" else "flash_attn"
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        return f"attention '{backend}' needs the module {module}, which is not installed: use 'sdpa'"
    return ""


@dataclass(frozen=True, slots=True)
class Attention:
    """One backend's two kinds of attention."""

    backend: Backend = "sdpa"

    @property
    def reason(self) -> str:
        """Why this backend, for the line at start-up."""
        if self.backend == "sdpa":
            return "sdpa: torch's own, one call for all windows of one size"
        return f"{self.backend}: one call for windows of all sizes"

    def ends(self, views: int, one: torch.Tensor) -> torch.Tensor | None:
        """(sequences + 1,) int32 running sums of lengths for `views` views, from those of `one`; None for sdpa."""
        if self.backend == "sdpa":
            return None
        starts = torch.arange(views, device=one.device, dtype=one.dtype)[:, None] * one[-1]
        return F.pad((starts + one[None, 1:]).flatten(), (1, 0))

    def windows(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        runs: Runs,
        ends: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        """(V, N, H, E) -> (V, N, H * E): every patch attends to its own window."""
        views, count, heads, width = query.shape
        if ends is not None:
            longest = max(length for _, _, length in runs)
            query, key, value = (part.flatten(0, 1) for part in (query, key, value))
            attended = _packed(self.backend)(query, key, value, ends, longest, False, scale)
            return attended.reshape(views, count, heads * width)
        outputs = []
        for start, end, length in runs:
            query_w, key_w, value_w = (
                part[:, start:end].reshape(-1, length, heads, width).transpose(1, 2) for part in (query, key, value)
            )
            attended = F.scaled_dot_product_attention(query_w, key_w, value_w, scale=scale)
            outputs.append(attended.transpose(1, 2).reshape(views, end - start, heads * width))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def rows(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """(V, L, H, E) queries, (V, L, K, E) keys and values -> (V, L, H * E): causal inside each row."""
        views, length, heads, width = query.shape
        if ends is not None:
            shared = heads // key.shape[2]
            key, value = (part.repeat_interleave(shared, dim=2) for part in (key, value))
            query, key, value = (part.flatten(0, 1) for part in (query, key, value))
            attended = _packed(self.backend)(query, key, value, ends, length, True, scale)
            return attended.reshape(views, length, heads * width)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        attended = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=key.shape[1] != heads
        )
        return attended.transpose(1, 2).reshape(views, length, heads * width)


@lru_cache(maxsize=2)
def _packed(backend: Backend) -> Packed:
    if backend == "varlen":
        from torch.nn.attention.varlen import varlen_attn

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor, longest: int, causal: bool,
                   scale: float) -> torch.Tensor:  # fmt: skip
            reach = (-1, 0) if causal else (-1, -1)
            out = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale, window_size=reach)
            assert isinstance(out, torch.Tensor)  # a tuple only where more was asked for
            return out

        return attend
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports] - an extra

    def attend_flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor, longest: int, causal: bool,
                     scale: float) -> torch.Tensor:  # fmt: skip
        return flash_attn_varlen_func(q, k, v, ends, ends, longest, longest, softmax_scale=scale, causal=causal)

    return attend_flash
