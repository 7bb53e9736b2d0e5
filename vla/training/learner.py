"""The policy with all that only training needs: extra outputs, and the losses.

The action loss alone did not teach a small model where the named object is (a constant guess after 19,000 samples);
with the image cell that holds it as a target for the pooling's attention, it is learnt in minutes on one core. Where
the data has no such truth, the action loss is all there is.

Letters: N frames, M samples, K acting states, V views, I image tokens of a view, Q queries and objects, T feature
tokens, D width, H horizon, A actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vla.head import SMOOTH as ACTION_SMOOTH
from vla.head import TrainedHead
from vla.policy import action_head, view_aggregation, view_pooling
from vla.policy_spec import PolicySpec
from vla.preprocess import patches, resize
from vla.prompt import Prompt, Prompter, Row, stack
from vla.qwen import QwenBackbone
from vla.sizes import SIDE
from vla.training.dataset import Batch

POSITION_UNIT_M = 0.1
MIN_STD = 1e-3
HELD_WEIGHT = 0.3
SMOOTH = 0.1  # where the smooth L1 losses of perception turn quadratic


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """The truth as tensors."""

    uv: torch.Tensor  # (M, V, Q, 2)
    visible: torch.Tensor  # (M, V, Q) bool
    position: torch.Tensor  # (M, Q, 3)
    held: torch.Tensor  # (M, Q) bool

    def to(self, device: torch.device) -> Sighting:
        return Sighting(*(part.to(device) for part in (self.uv, self.visible, self.position, self.held)))


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """A batch as tensors; rows of the prompt sample by sample and inside a sample camera by camera."""

    images: torch.Tensor  # (N * V, patches, 588) uint8
    image_index: torch.Tensor  # (M,)
    prompt: Prompt
    states: torch.Tensor  # (M, K, S)
    age_ms: torch.Tensor  # (M, K)
    targets: torch.Tensor  # (M, K, H, A)
    windows: torch.Tensor | None  # (M, K, W, S)
    sighting: Sighting | None

    def to(self, device: torch.device) -> Inputs:
        return Inputs(
            self.images.to(device),
            self.image_index.to(device),
            self.prompt.to(device),
            self.states.to(device),
            self.age_ms.to(device),
            self.targets.to(device),
            None if self.windows is None else self.windows.to(device),
            None if self.sighting is None else self.sighting.to(device),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What the learner says about a batch besides what to do."""

    features: torch.Tensor  # (M, T, D)
    cell_logits: torch.Tensor  # (M, V, Q, I)
    cell_details: torch.Tensor  # (M, V, Q, 3): offset right and down inside the cell, logit of being visible
    position: torch.Tensor  # (M, Q, 3) metres
    held: torch.Tensor  # (M, Q) logit


class Learner(nn.Module):
    """Backbone, pooling, aggregation and head, trained together; `where` and `locate` exist only here."""

    def __init__(self, spec: PolicySpec, backbone: QwenBackbone) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.pool = view_pooling(spec)
        self.aggregate = view_aggregation(spec)
        self.head: TrainedHead = action_head(spec)
        self.where = nn.Linear(spec.width, 3)
        self.locate = nn.Sequential(
            nn.LayerNorm(spec.tokens * spec.width),
            nn.Linear(spec.tokens * spec.width, 192),
            nn.SiLU(),
            nn.Linear(192, 4 * spec.pooling.queries),
        )
        self.position_mean: torch.Tensor
        self.register_buffer("position_mean", torch.zeros(spec.pooling.queries, 3))

    def normalise_by(self, batches: Sequence[Batch]) -> None:
        """Takes the means and deviations of states, displacements and positions from these batches."""
        normalise(
            self.head,
            np.concatenate([flat(batch.states) for batch in batches]),
            np.concatenate([flat(batch.targets) for batch in batches]),
        )
        truths = [batch.truth.position for batch in batches if batch.truth is not None]
        if truths:
            self.position_mean.copy_(torch.from_numpy(np.concatenate(truths)).float().mean(dim=0))

    def forward(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """Each loss by its name; training minimises their sum.

        They start at different heights, cell near 2.4 and visible near 0.07: what balances them is how far they fall.
        """
        outputs = self.see(inputs)
        acting = inputs.states.shape[1]
        features = outputs.features.repeat_interleave(acting, dim=0).float()
        windows = None if inputs.windows is None else inputs.windows.flatten(0, 1)
        chunk = self.head.loss(
            features, inputs.states.flatten(0, 1), inputs.age_ms.flatten(), inputs.targets.flatten(0, 1), windows
        )
        if inputs.sighting is not None:
            return {"chunk": chunk.mean()} | self._seen_losses(outputs, inputs.sighting)
        # Every parameter takes part, as training in several processes wants it.
        untaught = outputs.cell_logits.sum() + outputs.cell_details.sum() + outputs.position.sum()
        untaught = untaught + outputs.held.sum()
        return {"chunk": chunk.mean() + 0.0 * untaught}

    def see(self, inputs: Inputs) -> Outputs:
        """The features of every sample; the vision tower runs once a frame, whatever the number of instructions."""
        samples, views = len(inputs.image_index), len(self.spec.cameras)
        size = next(iter(self.spec.model_sizes.values()))
        seen = self.backbone.vision(inputs.images, size).unflatten(0, (-1, views))
        seen = seen[inputs.image_index].flatten(0, 1)
        hidden = self.backbone.hidden([seen], inputs.prompt)
        (tokens,) = self.backbone.image_hidden(hidden, inputs.prompt)
        pooled, logits = self.pool.attend(tokens.unflatten(0, (samples, views)))
        features = self.aggregate(pooled)
        located = self.locate(features.flatten(1)).unflatten(1, (-1, 4)).float()
        position = located[..., :3] * POSITION_UNIT_M + self.position_mean
        return Outputs(features, logits.float(), self.where(pooled).float(), position, located[..., 3])

    def _seen_losses(self, outputs: Outputs, truth: Sighting) -> dict[str, torch.Tensor]:
        cell, offset = self.cells(truth)
        seen = truth.visible
        details = outputs.cell_details
        count = seen.sum().clamp_min(1)
        cross_entropy = F.cross_entropy(outputs.cell_logits.flatten(0, 2), cell.flatten(), reduction="none")
        offsets = F.smooth_l1_loss(details[..., :2], offset, beta=SMOOTH, reduction="none").mean(dim=-1)
        return {
            "cell": (cross_entropy * seen.flatten()).sum() / count,
            "offset": (offsets * seen).sum() / count,
            "visible": 0.2 * F.binary_cross_entropy_with_logits(details[..., 2], seen.float()),
            "position": F.smooth_l1_loss(
                outputs.position / POSITION_UNIT_M, truth.position / POSITION_UNIT_M, beta=SMOOTH
            ),
            "held": HELD_WEIGHT * F.binary_cross_entropy_with_logits(outputs.held, truth.held.float()),
        }

    def cells(self, truth: Sighting) -> tuple[torch.Tensor, torch.Tensor]:
        """Which image token holds the object, (M, V, Q), and where inside it, (M, V, Q, 2) in -0.5..0.5."""
        height, width = next(iter(self.spec.model_sizes.values()))
        grid = torch.tensor([width // SIDE, height // SIDE], device=truth.uv.device)
        scaled = truth.uv.clamp(0.0, 1.0 - 1e-6) * grid
        corner = scaled.floor()
        return (corner[..., 1] * grid[0] + corner[..., 0]).long(), scaled - corner - 0.5


def flat(array: np.ndarray) -> np.ndarray:
    """Samples and their acting states in one axis."""
    return array.reshape(-1, *array.shape[2:])


def normalise(head: TrainedHead, states: np.ndarray, targets: np.ndarray) -> None:
    """Gives a head the means and deviations of these states (B, S) and of what moves from them to targets (B, H, A)."""
    here, wanted = torch.from_numpy(states).float(), torch.from_numpy(targets).float()
    head.state_mean.copy_(here.mean(dim=0))
    head.state_std.copy_(here.std(dim=0).clamp_min(MIN_STD))
    steps = wanted - (here @ head.residual.cpu()).unsqueeze(1)
    head.step_mean.copy_(steps.mean(dim=0))
    head.step_std.copy_(steps.std(dim=0).clamp_min(MIN_STD))


class Collator:
    """Batches -> tensors. Keeps the token rows of the instructions it has met."""

    def __init__(self, spec: PolicySpec, prompter: Prompter) -> None:
        self._spec = spec
        self._row = lru_cache(maxsize=16384)(prompter.row)

    def __call__(self, batch: Batch) -> Inputs:
        cameras = self._spec.model_sizes
        rows: list[Row] = [
            self._row(text, camera, size) for text in batch.instructions for camera, size in cameras.items()
        ]
        images = torch.stack([torch.from_numpy(batch.images[camera]) for camera in cameras], dim=1)
        return Inputs(
            patches(resize(images.flatten(0, 1), *next(iter(cameras.values())))),
            torch.from_numpy(batch.image_index).long(),
            stack(rows),
            torch.from_numpy(batch.states).float(),
            torch.from_numpy(batch.feature_age_ms).float(),
            torch.from_numpy(batch.targets).float(),
            None if batch.windows is None else torch.from_numpy(batch.windows).float(),
            self._sighting(batch),
        )

    def _sighting(self, batch: Batch) -> Sighting | None:
        truth = batch.truth
        if truth is None:
            return None
        cameras = self._spec.cameras
        return Sighting(
            torch.from_numpy(np.stack([truth.uv[camera] for camera in cameras], axis=1)).float(),
            torch.from_numpy(np.stack([truth.visible[camera] for camera in cameras], axis=1)).bool(),
            torch.from_numpy(truth.position).float(),
            torch.from_numpy(truth.held).bool(),
        )


@torch.inference_mode()
def measure(learner: Learner, batches: Sequence[Inputs]) -> dict[str, float]:
    """Held-out errors: median position (cm), median joint target (rad or unit), share of right cells where visible."""
    position, joint, right, chunk = [], [], [], []
    for inputs in batches:
        outputs = learner.see(inputs)
        states, targets = inputs.states.flatten(0, 1), inputs.targets.flatten(0, 1)
        features = outputs.features.repeat_interleave(inputs.states.shape[1], dim=0).float()
        windows = None if inputs.windows is None else inputs.windows.flatten(0, 1)
        steps = learner.head.predict(features, states, inputs.age_ms.flatten(), windows)
        wanted = learner.head.displacement(states, targets)
        joint.append(((steps - wanted) * learner.head.step_std).abs().flatten())
        chunk.append(F.smooth_l1_loss(steps, wanted, beta=ACTION_SMOOTH, reduction="none").flatten())
        if inputs.sighting is not None:
            cell, _ = learner.cells(inputs.sighting)
            position.append((outputs.position - inputs.sighting.position).norm(dim=-1).flatten() * 100.0)
            right.append((outputs.cell_logits.argmax(dim=-1) == cell)[inputs.sighting.visible].float())
    errors = {
        "chunk": float(torch.cat(chunk).mean()),
        "joint": float(torch.cat(joint).median()),
        "joint_mean": float(torch.cat(joint).mean()),
    }
    if position:
        errors |= {"position_cm": float(torch.cat(position).median()), "cell": float(torch.cat(right).mean())}
    return errors
