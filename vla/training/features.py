"""Features that are encoded once and kept: what a head is trained on while its backbone stays as it is.

For a backbone too large to train, and for rounds in which a policy's own states are labelled. Kept are the tokens
before the first part that is trained: image tokens where the pooling is, feature tokens where only the head is.

Letters: N frames, E acting ticks, V views, I image tokens of a view, T feature tokens, D width, S state, H horizon,
A actions, W samples of the window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import nn

from vla import weights
from vla.errors import TrainingFault
from vla.policy import load_part, view_aggregation, view_pooling
from vla.policy_spec import PolicySpec, backbone_folder
from vla.preprocess import view_patches
from vla.prompt import Prompter, stack
from vla.training.place import written

_FIELDS = ("tokens", "frame_tick", "last_tick", "stamp_ms", "states", "targets", "windows")


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSet:
    """Frames as tokens, and the acting ticks after each of them, all of one instruction and one episode.

    Frame i may be acted on at every tick from `frame_tick[i]` to `last_tick[i]`.
    """

    tokens: np.ndarray  # (N, T, D) float16, or (N, V, I, D) before the pooling
    frame_tick: np.ndarray  # (N,) int64, the first tick at or after the frame
    last_tick: np.ndarray  # (N,) int64
    stamp_ms: np.ndarray  # (N + E,) float64: of the frames, then of the ticks
    states: np.ndarray  # (E, S) float32
    targets: np.ndarray  # (E, H, A) float32, absolute
    windows: np.ndarray | None = None  # (E, W, S) float32

    def __post_init__(self) -> None:
        for name in _FIELDS:
            array = getattr(self, name)
            if array is not None and not np.isfinite(array).all():
                raise TrainingFault(f"features to train on hold NaN or infinity in their {name}: the data is damaged")

    def __len__(self) -> int:
        return len(self.frame_tick)

    def draw(self, rng: np.random.Generator, count: int, max_age_ms: float) -> dict[str, torch.Tensor]:
        """`count` samples: a frame, and one of its ticks that is no more than `max_age_ms` later, each as likely."""
        frames = rng.integers(len(self), size=count)
        ages = self.stamp_ms[len(self) :][self.frame_tick[frames]] - self.stamp_ms[frames]
        last = self.last_tick[frames]
        spread = np.minimum(last - self.frame_tick[frames], np.floor((max_age_ms - ages) / self.period_ms)).clip(0)
        ticks = self.frame_tick[frames] + (rng.random(count) * (spread + 1)).astype(np.int64)
        drawn = {
            "tokens": torch.from_numpy(self.tokens[frames]).float(),
            "states": torch.from_numpy(self.states[ticks]),
            "age_ms": torch.from_numpy(self.stamp_ms[len(self) :][ticks] - self.stamp_ms[frames]).float(),
            "targets": torch.from_numpy(self.targets[ticks]),
        }
        return drawn if self.windows is None else drawn | {"windows": torch.from_numpy(self.windows[ticks])}

    @property
    def period_ms(self) -> float:
        """Between two ticks of an episode."""
        steps = np.diff(self.stamp_ms[len(self) :])
        return float(np.median(steps[steps > 0])) if (steps > 0).any() else 1.0

    def save(self, file: Path) -> None:
        arrays = {name: np.ascontiguousarray(array) for name in _FIELDS if (array := getattr(self, name)) is not None}
        beside = file.with_suffix(".part")
        with written(file):
            save_file(arrays, beside)
            beside.rename(file)

    @staticmethod
    def load(file: Path) -> FeatureSet:
        try:
            return FeatureSet(**load_file(file))
        except (OSError, SafetensorError, TypeError) as error:
            raise TrainingFault(f"{file}: no features to train on ({error}); remove it, it is made again") from error

    @staticmethod
    def joined(sets: Sequence[FeatureSet]) -> FeatureSet:
        """All of them as one. Raises TrainingFault where their shapes differ, or there is none."""
        if not sets:
            raise TrainingFault("there is nothing to train on: no features")
        shapes = {(part.tokens.shape[1:], part.states.shape[1:], part.targets.shape[1:]) for part in sets}
        if len(shapes) > 1:
            raise TrainingFault(f"features of {len(shapes)} kinds cannot be joined: {sorted(shapes)}")
        starts = np.cumsum([0, *(len(part.states) for part in sets)])[:-1]
        frames = np.concatenate([part.stamp_ms[: len(part)] for part in sets])
        ticks = np.concatenate([part.stamp_ms[len(part) :] for part in sets])
        has_windows = all(part.windows is not None for part in sets)
        return FeatureSet(
            np.concatenate([part.tokens for part in sets]),
            np.concatenate([part.frame_tick + start for part, start in zip(sets, starts, strict=True)]),
            np.concatenate([part.last_tick + start for part, start in zip(sets, starts, strict=True)]),
            np.concatenate([frames, ticks]),
            np.concatenate([part.states for part in sets]),
            np.concatenate([part.targets for part in sets]),
            np.concatenate([part.windows for part in sets if part.windows is not None]) if has_windows else None,
        )


class BatchEncoder(nn.Module):
    """The encoder's half of a policy for many frames at a time, in float32: the plain way of what `encode` does."""

    def __init__(self, folder: Path, spec: PolicySpec, device: str = "cpu", pooled: bool = True) -> None:
        """`pooled`: feature tokens as a head takes them; else image tokens, from which the pooling is trained."""
        super().__init__()
        where = backbone_folder(folder, spec) or weights.resolve(spec.backbone)
        self.spec, self.pooled = spec, pooled
        if not pooled and len(set(spec.model_sizes.values())) != 1:
            raise TrainingFault(
                f"image tokens to train a pooling on need one image size for all cameras, got {spec.sizes_in_words}:"
                " set image_size in the policy, which makes them one"
            )
        self.backbone = weights.load(where, torch.device(device), torch.float32, layers=spec.language_layers)
        self.prompter = Prompter.load(where)
        self.pool, self.aggregate = view_pooling(spec).to(device), view_aggregation(spec).to(device)
        if pooled:
            load_part(folder, "pool", self.pool)
            load_part(folder, "aggregate", self.aggregate)
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def features(self, images: Mapping[str, np.ndarray], instructions: Sequence[str]) -> np.ndarray:
        """(N, T, D) or (N, V, I, D) float32 from {camera: (N, height, width, 3)} uint8 and N instructions."""
        sizes, device = self.spec.model_sizes, self.backbone.device
        rows = [self.prompter.row(text, camera, size) for text in instructions for camera, size in sizes.items()]
        prompt = stack(rows).to(device)
        seen = [
            self.backbone.vision(view_patches(images, group.size, sizes).to(device), group.size)
            for group in prompt.groups
        ]
        groups = self.backbone.image_hidden(self.backbone.hidden(seen, prompt), prompt)
        views = torch.cat([self.pool(tokens) if self.pooled else tokens for tokens in groups])[prompt.view_order]
        views = views.unflatten(0, (len(instructions), len(sizes)))
        return (self.aggregate(views) if self.pooled else views).float().cpu().numpy()
