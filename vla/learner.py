"""The policy with all that only training needs: extra outputs, and the losses.

The action loss alone did not teach a small model where the named object is (a constant guess after 19,000 samples);
with the image cell that holds it as a target for the pooling's attention, it is learnt in minutes on one core.

Letters: N samples, V views, M image tokens of a view, Q queries, T feature tokens, D width, H horizon, A actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vla.dataset import Batch
from vla.policy import regression_head, view_aggregation, view_pooling
from vla.policy_spec import PolicySpec
from vla.preprocess import patches, resize
from vla.prompt import Prompt, Prompter, Row, stack
from vla.qwen import QwenBackbone
from vla.sizes import SIDE

POSITION_UNIT_M = 0.1
SMOOTH = 0.1  # where the smooth L1 losses turn quadratic, in units of one standard deviation
MIN_STD = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """A batch as tensors, rows sample by sample and inside a sample camera by camera."""

    images: torch.Tensor  # (N * V, patches, 588) uint8
    prompt: Prompt
    states: torch.Tensor
    age_ms: torch.Tensor
    targets: torch.Tensor
    uv: torch.Tensor  # (N, V, 2)
    visible: torch.Tensor  # (N, V) bool
    position: torch.Tensor  # (N, 3)


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What the learner says about a batch."""

    steps: torch.Tensor  # (N, H, A) normalised displacement
    cell_logits: torch.Tensor  # (N, V, M)
    cell_details: torch.Tensor  # (N, V, 3): offset right and down inside the cell, logit of being visible
    position: torch.Tensor  # (N, 3) metres


class Learner(nn.Module):
    """Backbone, pooling, aggregation and head, trained together; `where` and `locate` exist only here."""

    def __init__(self, spec: PolicySpec, backbone: QwenBackbone) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.pool = view_pooling(spec)
        self.aggregate = view_aggregation(spec)
        self.head = regression_head(spec)
        self.where = nn.Linear(spec.width, 3)
        self.locate = nn.Sequential(
            nn.LayerNorm(spec.tokens * spec.width),
            nn.Linear(spec.tokens * spec.width, 128),
            nn.SiLU(),
            nn.Linear(128, 3),
        )
        self.position_mean: torch.Tensor
        self.register_buffer("position_mean", torch.zeros(3))

    def normalise_by(self, batches: Sequence[Batch]) -> None:
        """Takes the means and deviations of states and displacements from these batches."""
        states = torch.from_numpy(np.concatenate([batch.states for batch in batches])).float()
        targets = torch.from_numpy(np.concatenate([batch.targets for batch in batches])).float()
        head = self.head
        head.state_mean.copy_(states.mean(dim=0))
        head.state_std.copy_(states.std(dim=0).clamp_min(MIN_STD))
        steps = targets - (states @ head.residual).unsqueeze(1)
        head.step_mean.copy_(steps.mean(dim=0))
        head.step_std.copy_(steps.std(dim=0).clamp_min(MIN_STD))
        positions = torch.from_numpy(np.concatenate([batch.target_position for batch in batches])).float()
        self.position_mean.copy_(positions.mean(dim=0))

    def forward(self, inputs: Inputs) -> Outputs:
        samples, views = len(inputs.states), len(self.spec.cameras)
        hidden = self.backbone([inputs.images], inputs.prompt)
        (tokens,) = self.backbone.image_hidden(hidden, inputs.prompt)
        pooled, logits = self.pool.attend(tokens.unflatten(0, (samples, views)))
        features = self.aggregate(pooled)
        position = self.locate(features.flatten(1)) * POSITION_UNIT_M + self.position_mean
        steps = self.head(features, inputs.states, inputs.age_ms)
        return Outputs(steps, logits[:, :, 0], self.where(pooled[:, :, 0]), position)

    def losses(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """Each loss by its name; training minimises their sum.

        They start at different heights, cell near 2.4 and visible near 0.07: what balances them is how far they fall.
        """
        outputs = self(inputs)
        cell, offset = self.cells(inputs)
        seen = inputs.visible
        wanted_steps = self.head.displacement(inputs.states, inputs.targets)
        details = outputs.cell_details
        count = seen.sum().clamp_min(1)
        cross_entropy = F.cross_entropy(outputs.cell_logits.flatten(0, 1), cell.flatten(), reduction="none")
        offsets = F.smooth_l1_loss(details[..., :2], offset, beta=SMOOTH, reduction="none").mean(dim=-1)
        return {
            "chunk": F.smooth_l1_loss(outputs.steps, wanted_steps, beta=SMOOTH),
            "cell": (cross_entropy * seen.flatten()).sum() / count,
            "offset": (offsets * seen).sum() / count,
            "visible": 0.2 * F.binary_cross_entropy_with_logits(details[..., 2], seen.float()),
            "position": F.smooth_l1_loss(
                outputs.position / POSITION_UNIT_M, inputs.position / POSITION_UNIT_M, beta=SMOOTH
            ),
        }

    def cells(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Which image token holds the object, (N, V), and where inside it, (N, V, 2) in -0.5..0.5."""
        height, width = next(iter(self.spec.model_sizes.values()))
        grid = torch.tensor([width // SIDE, height // SIDE])
        scaled = inputs.uv.clamp(0.0, 1.0 - 1e-6) * grid
        corner = scaled.floor()
        return (corner[..., 1] * grid[0] + corner[..., 0]).long(), scaled - corner - 0.5


class Collator:
    """Batches -> tensors. Keeps the token rows of the instructions it has met."""

    def __init__(self, spec: PolicySpec, prompter: Prompter) -> None:
        self._spec = spec
        self._row = lru_cache(maxsize=8192)(prompter.row)

    def __call__(self, batch: Batch) -> Inputs:
        cameras = self._spec.model_sizes
        rows: list[Row] = [
            self._row(text, camera, size) for text in batch.instructions for camera, size in cameras.items()
        ]
        images = torch.stack([torch.from_numpy(batch.images[camera]) for camera in cameras], dim=1)
        return Inputs(
            patches(resize(images.flatten(0, 1), *next(iter(cameras.values())))),
            stack(rows),
            torch.from_numpy(batch.states).float(),
            torch.from_numpy(np.asarray(batch.feature_age_ms)).float(),
            torch.from_numpy(batch.targets).float(),
            torch.from_numpy(np.stack([batch.target_uv[camera] for camera in cameras], axis=1)).float(),
            torch.from_numpy(np.stack([batch.target_visible[camera] for camera in cameras], axis=1)).bool(),
            torch.from_numpy(np.asarray(batch.target_position)).float(),
        )


@torch.inference_mode()
def measure(learner: Learner, batches: Sequence[Inputs]) -> dict[str, float]:
    """Held-out errors: median position (cm), median joint target (rad or unit), share of right cells where visible."""
    position, joint, right = [], [], []
    for inputs in batches:
        outputs = learner(inputs)
        cell, _ = learner.cells(inputs)
        wanted = learner.head.displacement(inputs.states, inputs.targets)
        position.append((outputs.position - inputs.position).norm(dim=1) * 100.0)
        joint.append(((outputs.steps - wanted) * learner.head.step_std).abs().flatten())
        right.append((outputs.cell_logits.argmax(dim=-1) == cell)[inputs.visible].float())
    return {
        "position_cm": float(torch.cat(position).median()),
        "joint": float(torch.cat(joint).median()),
        "joint_mean": float(torch.cat(joint).mean()),
        "cell": float(torch.cat(right).mean()),
    }
