"""Camera images -> tensors on the model's device, through buffers that are kept.

On a GPU the buffers are pinned, so a copy neither allocates nor waits. A buffer is written again by the next capture:
whoever reads the tensors has read them by then, since an encode ends with a copy of its result to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch


class Upload:
    """(H, W, 3) uint8 images of one capture -> (views, H, W, 3) tensors on `device`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple, torch.Tensor] = {}

    def __call__(self, images: Sequence[np.ndarray], purpose: object = None) -> list[torch.Tensor]:
        """One tensor for each run of neighbours of one shape; tensors of different `purpose` share no buffer."""
        tensors = []
        for place, (shape, run) in enumerate(groupby(images, key=lambda image: image.shape)):
            views = list(run)
            buffer = self._buffer((purpose, place, len(views), *shape), (len(views), *shape))
            np.stack(views, out=buffer.numpy())
            tensors.append(buffer.to(self._device, non_blocking=True))
        return tensors

    def _buffer(self, key: tuple, shape: tuple[int, ...]) -> torch.Tensor:
        if key not in self._buffers:
            self._buffers[key] = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        return self._buffers[key]
