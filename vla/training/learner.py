"""The policy with all that only training needs: extra outputs, and the losses.

The action loss alone did not teach a small model where the named object is (a constant guess after 19,000 samples);
with the image cell that holds it as a target for the pooling's attention, it is learnt in minutes on one core. Where
the head has a readout, its values are taught as facts, and its trunk rehearses on facts that are given: without that,
touching and pushing were learnt in half an hour and picking up in none (2 of 20). Where the data has no such truth, the
action loss is all there is.

Letters: N frames, M samples, K acting states, V views, I image tokens of a view, Q queries and objects, T feature
tokens, D width, R values of the readout, B rehearsed situations, H horizon, A actions.
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
from vla.preprocess import GREY, view_patches
from vla.prompt import Prompt, Prompter, Row, stack
from vla.qwen import QwenBackbone
from vla.sizes import SIDE
from vla.training.dataset import Batch, Rehearsal
from vla.training.shared_text import SharedText, image_states, take

MIN_STD = 1e-3
MIN_VALUE_STD = 0.01
FACTS_WEIGHT = 6.0
MASKED_SHARE = 0.1  # of the captures in which an optional camera is grey
LENGTH_UNIT, CM = "_m", 100.0  # facts whose name ends so are lengths in metres
SMOOTH = 0.1  # where the smooth L1 losses of perception turn quadratic


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """The truth as tensors."""

    uv: torch.Tensor  # (M, V, Q, 2)
    visible: torch.Tensor  # (M, V, Q) bool
    facts: torch.Tensor  # (M, R)

    def to(self, device: torch.device) -> Sighting:
        return Sighting(self.uv.to(device), self.visible.to(device), self.facts.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What is rehearsed, as tensors."""

    facts: torch.Tensor  # (B, R)
    states: torch.Tensor  # (B, S)
    age_ms: torch.Tensor  # (B,)
    targets: torch.Tensor  # (B, H, A)

    @staticmethod
    def of(rehearsal: Rehearsal) -> Given:
        parts = (rehearsal.facts, rehearsal.states, rehearsal.feature_age_ms, rehearsal.targets)
        return Given(*(torch.from_numpy(part).float() for part in parts))

    def to(self, device: torch.device) -> Given:
        return Given(*(part.to(device) for part in (self.facts, self.states, self.age_ms, self.targets)))


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """A batch as tensors; rows of the prompt sample by sample and inside a sample camera by camera."""

    images: torch.Tensor  # (N * V, patches, 588) uint8
    image_index: torch.Tensor  # (M,)
    prompt: Prompt
    shared: SharedText
    states: torch.Tensor  # (M, K, S)
    age_ms: torch.Tensor  # (M, K)
    targets: torch.Tensor  # (M, K, H, A)
    windows: torch.Tensor | None  # (M, K, W, S)
    sighting: Sighting | None
    given: Given | None

    def to(self, device: torch.device) -> Inputs:
        return Inputs(
            self.images.to(device),
            self.image_index.to(device),
            self.prompt.to(device),
            self.shared.to(device),
            self.states.to(device),
            self.age_ms.to(device),
            self.targets.to(device),
            None if self.windows is None else self.windows.to(device),
            None if self.sighting is None else self.sighting.to(device),
            None if self.given is None else self.given.to(device),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What the learner says about a batch besides what to do."""

    features: torch.Tensor  # (M, T, D)
    values: torch.Tensor  # (M, R) as the head read them
    cell_logits: torch.Tensor  # (M, V, Q, I)
    cell_details: torch.Tensor  # (M, V, Q, 3): offset right and down inside the cell, logit of being visible


class Learner(nn.Module):
    """Backbone, pooling, aggregation and head, trained together; `where` exists only here."""

    def __init__(self, spec: PolicySpec, backbone: QwenBackbone) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.pool = view_pooling(spec)
        self.aggregate = view_aggregation(spec)
        self.head: TrainedHead = action_head(spec)
        self.where = nn.Linear(spec.width, 3)

    def normalise_by(self, batches: Sequence[Batch]) -> None:
        """Takes the means and deviations of states, displacements and facts from these batches."""
        normalise(
            self.head,
            np.concatenate([flat(batch.states) for batch in batches]),
            np.concatenate([flat(batch.targets) for batch in batches]),
        )
        known = [batch.truth.facts for batch in batches if batch.truth is not None]
        if self.spec.head.readout and known:
            normalise_values(self.head, np.concatenate(known))

    def forward(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """Each loss by its name; training minimises their sum.

        They start at different heights, cell near 2.4 and visible near 0.07: what balances them is how far they fall.
        """
        outputs = self.see(inputs)
        values = outputs.values.repeat_interleave(inputs.states.shape[1], dim=0)
        windows = None if inputs.windows is None else inputs.windows.flatten(0, 1)
        chunk = self.head.loss_of(
            values, inputs.states.flatten(0, 1), inputs.age_ms.flatten(), inputs.targets.flatten(0, 1), windows
        )
        losses = {"chunk": chunk.mean()}
        if inputs.sighting is not None:
            losses |= self._seen_losses(outputs, inputs.sighting)
        else:  # every parameter takes part, as training in several processes wants it
            losses["chunk"] = losses["chunk"] + 0.0 * (outputs.cell_logits.sum() + outputs.cell_details.sum())
        if (given := inputs.given) is not None:
            losses["rehearsed"] = self.head.loss_of(given.facts, given.states, given.age_ms, given.targets).mean()
        return losses

    def see(self, inputs: Inputs) -> Outputs:
        """The features of every sample; the vision tower runs once a frame, whatever the number of instructions."""
        samples, views = len(inputs.image_index), len(self.spec.cameras)
        size = next(iter(self.spec.model_sizes.values()))
        seen = self.backbone.vision(inputs.images, size).unflatten(0, (-1, views))
        seen = take(seen, inputs.image_index).flatten(0, 1)
        (tokens,) = image_states(self.backbone, [seen], inputs.prompt, inputs.shared)
        pooled, logits = self.pool.attend(tokens.unflatten(0, (samples, views)))
        features = self.aggregate(pooled)
        return Outputs(features, self.head.read(features.float()), logits.float(), self.where(pooled).float())

    def _seen_losses(self, outputs: Outputs, truth: Sighting) -> dict[str, torch.Tensor]:
        cell, offset = self.cells(truth)
        seen = truth.visible
        details = outputs.cell_details
        count = seen.sum().clamp_min(1)
        cross_entropy = F.cross_entropy(outputs.cell_logits.flatten(0, 2), cell.flatten(), reduction="none")
        offsets = F.smooth_l1_loss(details[..., :2], offset, beta=SMOOTH, reduction="none").mean(dim=-1)
        losses = {
            "cell": (cross_entropy * seen.flatten()).sum() / count,
            "offset": (offsets * seen).sum() / count,
            "visible": 0.2 * F.binary_cross_entropy_with_logits(details[..., 2], seen.float()),
        }
        if self.spec.head.readout:
            errors = (outputs.values - truth.facts) / self.head.value_std
            losses["facts"] = FACTS_WEIGHT * F.smooth_l1_loss(errors, torch.zeros_like(errors), beta=SMOOTH)
        return losses

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


def normalise_values(head: TrainedHead, facts: np.ndarray) -> None:
    """Gives a head with a readout the means and deviations of these facts (B, R)."""
    known = torch.from_numpy(facts).float()
    head.value_mean.copy_(known.mean(dim=0))
    head.value_std.copy_(known.std(dim=0).clamp_min(MIN_VALUE_STD))


class Collator:
    """Batches -> tensors. Keeps the token rows of the instructions it has met. With `masks` optional cameras are grey
    in a share of the captures, as they are where they fail.
    """

    def __init__(self, spec: PolicySpec, prompter: Prompter, masks: np.random.Generator | None = None) -> None:
        self._spec, self._masks = spec, masks
        self._row = lru_cache(maxsize=16384)(prompter.row)

    def __call__(self, batch: Batch) -> Inputs:
        cameras = self._spec.model_sizes
        rows: list[Row] = [
            self._row(text, camera, size) for text in batch.instructions for camera, size in cameras.items()
        ]
        images = {camera: self._seen(batch.images[camera], camera) for camera in cameras}
        prompt = stack(rows)
        return Inputs(
            view_patches(images, next(iter(cameras.values())), cameras),  # attention pooling has one size for all
            torch.from_numpy(batch.image_index).long(),
            prompt,
            SharedText.of(prompt),
            torch.from_numpy(batch.states).float(),
            torch.from_numpy(batch.feature_age_ms).float(),
            torch.from_numpy(batch.targets).float(),
            None if batch.windows is None else torch.from_numpy(batch.windows).float(),
            self._sighting(batch),
            self._given(batch),
        )

    def _seen(self, images: np.ndarray, camera: str) -> np.ndarray:
        """(N, H, W, 3), some of them grey."""
        if self._masks is None or camera not in self._spec.optional_cameras:
            return images
        is_grey = self._masks.random(len(images)) < MASKED_SHARE
        return np.where(is_grey[:, np.newaxis, np.newaxis, np.newaxis], np.uint8(GREY), images)

    def _sighting(self, batch: Batch) -> Sighting | None:
        truth = batch.truth
        if truth is None:
            return None
        cameras = self._spec.cameras
        return Sighting(
            torch.from_numpy(np.stack([truth.uv[camera] for camera in cameras], axis=1)).float(),
            torch.from_numpy(np.stack([truth.visible[camera] for camera in cameras], axis=1)).bool(),
            self._check_facts(torch.from_numpy(truth.facts).float()),
        )

    def _given(self, batch: Batch) -> Given | None:
        rehearsal = batch.rehearsal
        if rehearsal is None or not self._spec.head.readout:
            return None
        given = Given.of(rehearsal)
        self._check_facts(given.facts)
        return given

    def _check_facts(self, facts: torch.Tensor) -> torch.Tensor:
        names = self._spec.head.readout
        if names and facts.shape[1] != len(names):
            raise ValueError(
                f"the policy's readout has the {len(names)} values {list(names)}, the data {facts.shape[1]} facts"
            )
        return facts


@torch.inference_mode()
def measure(learner: Learner, batches: Sequence[Inputs]) -> dict[str, float]:
    """Held-out errors: median length (cm), mean fact (deviations), median joint target (rad or unit), right cells."""
    length, fact, joint, right, chunk = [], [], [], [], []
    lengths = [index for index, name in enumerate(learner.spec.head.readout) if name.endswith(LENGTH_UNIT)]
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
            right.append((outputs.cell_logits.argmax(dim=-1) == cell)[inputs.sighting.visible].float())
            if learner.spec.head.readout:
                errors = (outputs.values - inputs.sighting.facts).abs()
                fact.append((errors / learner.head.value_std).flatten())
                length.append(errors[:, lengths].flatten() * CM)
    parts = {
        "chunk": torch.cat(chunk).mean(),
        "joint": torch.cat(joint).median(),
        "joint_mean": torch.cat(joint).mean(),
    }
    if right:
        parts["cell"] = torch.cat(right).mean()
    if fact:
        parts["facts"] = torch.cat(fact).mean()
    if lengths and length:
        parts["length_cm"] = torch.cat(length).median()
    return {name: float(value) for name, value in parts.items()}
