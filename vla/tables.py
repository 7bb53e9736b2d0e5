"""What an encode needs to know of sizes alone, computed once: window order, rotary angles, where image tokens lie.

Nothing here depends on pixels or weights. With these tables the model reads no size from the device, loops over no
window and builds no mask.

Letters: V views, N patches of a view, M = N / 4 image tokens of a view, L padded length of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vla.sizes import MERGE, PATCH, patch_grid

Runs = tuple[tuple[int, int, int], ...]  # runs of equal windows: first patch, end, patches of one window


@dataclass(frozen=True, slots=True, eq=False)
class ImageTables:
    """What the vision tower needs to know about one image size. Tokens are permuted so that equal windows adjoin."""

    order: torch.Tensor  # (M,) published token index at each place
    place: torch.Tensor  # (M,) the inverse
    cos: torch.Tensor  # (N, 1, head width) float32, in permuted order
    sin: torch.Tensor
    windows: Runs
    window_ends: torch.Tensor  # (windows + 1,) int32, where each window ends, from 0

    @property
    def whole(self) -> Runs:
        """The one window of a block that attends to the whole image."""
        count = len(self.cos)
        return ((0, count, count),)

    @property
    def whole_ends(self) -> torch.Tensor:
        return self.window_ends[:: len(self.window_ends) - 1]


def image_tables(size: tuple[int, int], vision: Any, device: torch.device) -> ImageTables:
    """Window order and rotary tables of one image size (height, width) in pixels, for a vision configuration."""
    rows, columns = (side // MERGE for side in patch_grid(*size))
    reach = vision.window_size // MERGE // PATCH  # window side in image tokens; windows at the border are smaller
    index = torch.arange(rows * columns).view(rows, columns)
    windows = [
        index[top : top + reach, left : left + reach].reshape(-1)
        for top in range(0, rows, reach)
        for left in range(0, columns, reach)
    ]
    windows.sort(key=len, reverse=True)  # stable: equal windows keep the published order
    runs: list[tuple[int, int, int]] = []
    end = 0
    for window in windows:
        start, end = end, end + len(window) * MERGE**2
        if runs and runs[-1][2] == end - start:
            runs[-1] = (runs[-1][0], end, runs[-1][2])
        else:
            runs.append((start, end, end - start))
    order = torch.cat(windows)
    down, across = torch.meshgrid(torch.arange(rows * MERGE), torch.arange(columns * MERGE), indexing="ij")
    axes = [
        axis.reshape(rows, MERGE, columns, MERGE).transpose(1, 2).reshape(-1, MERGE**2)[order].reshape(-1)
        for axis in (down, across)
    ]
    frequency = _frequencies(vision.hidden_size // vision.num_heads // 2, _vision_theta(vision))
    angles = torch.cat([axis[:, None] * frequency for axis in axes], dim=1)
    angles = torch.cat([angles, angles], dim=1)[:, None, :]
    place = torch.argsort(order)
    ends = torch.tensor([0, *(len(window) * MERGE**2 for window in windows)]).cumsum(0)
    return ImageTables(
        order.to(device),
        place.to(device),
        angles.cos().to(device),
        angles.sin().to(device),
        tuple(runs),
        ends.to(device, torch.int32),
    )


def text_rotary(
    position_ids: torch.Tensor, text: Any, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (V * L, 1, head width) of 3-D positions (3, V, L), for a language configuration.

    Every frequency belongs to one axis (time, row, column), as `mrope_section` shares them out.
    """
    rope = text.rope_parameters
    frequency = _frequencies(text.hidden_size // text.num_attention_heads, float(rope["rope_theta"]))
    axis = torch.tensor([axis for axis, width in enumerate(rope["mrope_section"]) for _ in range(width)], device=device)
    positions = position_ids.flatten(1).to(device).float()  # (3, V * L)
    angles = positions[axis].transpose(0, 1) * frequency.to(device)
    angles = torch.cat([angles, angles], dim=1)[:, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _frequencies(width: int, theta: float) -> torch.Tensor:
    return 1.0 / (theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width))


def _vision_theta(vision: Any) -> float:
    rope = getattr(vision, "rope_parameters", None) or {}
    return float(rope.get("rope_theta", 10000.0))
