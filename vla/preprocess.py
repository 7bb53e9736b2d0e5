"""Camera frames -> the patches Qwen2.5-VL's vision tower reads, kept as uint8.

Knows patch order, resizing and the published normalisation. A still image fills both temporal patches with the same
pixels, and scaling is affine, so the tower's first layer can be folded onto the raw bytes (qwen.py): uint8 patches
carry everything in an eighth of the memory. `published_patches` writes out what the published processor produces.

Size rule: each side is rounded to the nearest multiple of 28 (at least 28), or set to the policy's own size; bilinear
with antialias, rounded back to uint8, and only when the size really changes.

Letters: V views, H height, W width, N patches of a view.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

from vla.sizes import CHANNELS, MERGE, PATCH, PATCH_BYTES, TEMPORAL, patch_grid

GREY = 128  # what an optional camera is taken to see where it fails, in training too
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, as published with Qwen2.5-VL
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def resize(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(V, H, W, 3) uint8 at the asked size, the same tensor when it has that size already."""
    if images.shape[1:3] == (height, width):
        return images
    planes = images.permute(0, 3, 1, 2).float()
    planes = F.interpolate(planes, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return planes.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def patches(images: torch.Tensor) -> torch.Tensor:
    """(V, H, W, 3) uint8 -> (V, N, 588) uint8; the 4 patches of an image token lie together, pixels channel first."""
    views, height, width, channels = images.shape
    if images.dtype != torch.uint8 or channels != CHANNELS:
        raise ValueError(f"images must be (V, H, W, 3) uint8 RGB, got {tuple(images.shape)} {images.dtype}")
    down, across = patch_grid(height, width)
    blocks = images.reshape(views, down // MERGE, MERGE, PATCH, across // MERGE, MERGE, PATCH, CHANNELS)
    return blocks.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(views, down * across, PATCH_BYTES)


def view_patches(
    images: Mapping[str, np.ndarray], size: tuple[int, int], sizes: Mapping[str, tuple[int, int]]
) -> torch.Tensor:
    """(F * C, N, 588) uint8 patches of the C cameras that the model reads at `size`, frame by frame, from {camera: (F,
    height, width, 3)} uint8. `sizes` is at which it reads each camera; what they capture may be of any size.
    """
    chosen = [camera for camera, wanted in sizes.items() if wanted == size]
    views = [resize(torch.from_numpy(np.ascontiguousarray(images[camera])), *size) for camera in chosen]
    return patches(torch.stack(views, dim=1).flatten(0, 1))


def published_patches(patches: torch.Tensor) -> torch.Tensor:
    """(V, N, 588) uint8 -> (V * N, 1176) float32: normalised, both temporal patches, as published."""
    pixels = patches.reshape(-1, CHANNELS, 1, PATCH, PATCH).float() / 255.0
    mean = pixels.new_tensor(PIXEL_MEAN).view(1, CHANNELS, 1, 1, 1)
    std = pixels.new_tensor(PIXEL_STD).view(1, CHANNELS, 1, 1, 1)
    return ((pixels - mean) / std).expand(-1, -1, TEMPORAL, -1, -1).reshape(-1, CHANNELS * TEMPORAL * PATCH * PATCH)
