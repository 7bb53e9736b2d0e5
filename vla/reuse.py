"""Which views need no new encode, because their camera shows what it showed.

A view may be used again while its image stays within `threshold` grey levels of the one that was encoded, in every
tile of 28 x 28 pixels (one image token; the mean of a whole image would miss a small block that moves), for at most
`max_age_ms`, and under the same instruction. Its true age goes into `view_age_ms`, so the freshness ladder judges it
like any other. The named cameras are used again all together or not at all. Cameras that are not named are encoded
every time: name those that stand still, never the one on the wrist.

Letters: V views, Q feature tokens of a view, D width.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch

from control.clock import NS_PER_MS
from control.messages import Frames, Instruction
from vla.sizes import SIDE


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    image: np.ndarray
    captured_ns: int
    instruction: tuple[int, int]  # session, id
    pooled: torch.Tensor  # (Q, D)


class ViewReuse:
    """The newest features of each camera that may be used again."""

    def __init__(self, cameras: Collection[str] = (), max_age_ms: float = 0.0, threshold: float = 2.0) -> None:
        self.cameras = frozenset(cameras)
        self._max_age_ms, self._threshold = max_age_ms, threshold
        self._kept: dict[str, _Kept] = {}

    def due(self, frames: Frames, instruction: Instruction, names: tuple[str, ...]) -> tuple[str, ...]:
        """The cameras of `names` that have to be encoded, in their order: all, or all but the named ones.

        Nothing between: every other choice would need a graph of its own, made while the arm waits.
        """
        if self.cameras and all(self._is_usable(name, frames, instruction) for name in self.cameras):
            return tuple(name for name in names if name not in self.cameras)
        return names

    def complete(
        self,
        frames: Frames,
        instruction: Instruction,
        encoded: tuple[str, ...],
        pooled: torch.Tensor | None,
        names: tuple[str, ...],
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """(V, Q, D) of all `names` from the newly `pooled` views and the kept ones, and each view's extra age in ms."""
        if not self.cameras and pooled is not None:
            return pooled, {name: frames.view_age_ms(name) for name in names}
        new = {} if pooled is None else dict(zip(encoded, pooled, strict=True))
        for name in self.cameras.intersection(encoded):
            key = (instruction.session, instruction.id)
            captured_ns = frames.captured_ns.get(name, frames.stamp_ns)
            self._kept[name] = _Kept(frames.images[name], captured_ns, key, new[name].clone())
        views = torch.stack([new[name] if name in new else self._kept[name].pooled for name in names])
        ages = {name: frames.view_age_ms(name) if name in new else self._age_ms(name, frames) for name in names}
        return views, ages

    def forget(self) -> None:
        """Nothing is used again before it was encoded anew."""
        self._kept.clear()

    def _age_ms(self, name: str, frames: Frames) -> float:
        return (frames.stamp_ns - self._kept[name].captured_ns) / NS_PER_MS

    def _is_usable(self, name: str, frames: Frames, instruction: Instruction) -> bool:
        kept = self._kept.get(name)
        if kept is None or kept.instruction != (instruction.session, instruction.id):
            return False
        if not 0.0 <= self._age_ms(name, frames) <= self._max_age_ms:
            return False
        return largest_change(kept.image, frames.images[name]) <= self._threshold


def largest_change(before: np.ndarray, after: np.ndarray) -> float:
    """The largest mean absolute difference over any tile of 28 x 28 pixels of two (H, W, 3) uint8 images."""
    difference = np.abs(before.astype(np.int16) - after).sum(axis=2, dtype=np.int64)
    tops, lefts = (np.arange(0, side, SIDE) for side in difference.shape)
    sums = np.add.reduceat(np.add.reduceat(difference, tops, axis=0), lefts, axis=1)
    sizes = np.outer(*(np.diff([*starts, side]) for starts, side in zip((tops, lefts), difference.shape, strict=True)))
    return float((sums / (3 * sizes)).max())
