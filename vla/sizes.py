"""How Qwen2.5-VL cuts an image: sizes only, no torch."""

from __future__ import annotations

PATCH = 14
MERGE = 2
SIDE = PATCH * MERGE  # one image token covers SIDE x SIDE pixels
CHANNELS = 3
TEMPORAL = 2
PATCH_BYTES = CHANNELS * PATCH * PATCH


def model_size(height: int, width: int) -> tuple[int, int]:
    """The nearest size the model can read: both sides multiples of 28 and at least 28."""
    return max(SIDE, round(height / SIDE) * SIDE), max(SIDE, round(width / SIDE) * SIDE)


def patch_grid(height: int, width: int) -> tuple[int, int]:
    """Patches down and across an image whose sides are multiples of 28."""
    if height % SIDE or width % SIDE or height < SIDE or width < SIDE:
        raise ValueError(f"image sides must be multiples of {SIDE} pixels, got {height}x{width}: resize it first")
    return height // PATCH, width // PATCH
