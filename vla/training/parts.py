"""Trains the head, and the pooling where it is learned, on features that are kept: the backbone stays as it is.

Seconds to minutes on one core, so it can be done again after every round of a policy's own episodes.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vla import policy
from vla.errors import TrainingFault
from vla.head import TrainedHead
from vla.policy import Part, action_head, load_part, view_aggregation, view_pooling
from vla.policy_spec import HEAD_FILE, POLICY_FILE, PolicySpec
from vla.training import checkpoint
from vla.training.features import FeatureSet
from vla.training.learner import normalise
from vla.training.pace import average_decay, learning_rate
from vla.training.provenance import rounded

WEIGHT_DECAY, MAX_GRADIENT = 0.01, 1.0


@dataclass(frozen=True, slots=True)
class HeadSchedule:
    """`steps` of `batch` samples with ages up to `max_age_ms`; the learning rate falls over them."""

    steps: int
    batch: int = 512
    learning_rate: float = 1e-3
    max_age_ms: float = 1000.0
    state_noise: float = 0.002  # standard deviation, in the unit of the states
    patience: int | None = None  # measurements (every 200 steps) without a better held-out error
    seed: int = 0


class TrainedParts(nn.Module):
    """Pooling, aggregation and head of a policy, over kept tokens."""

    def __init__(self, spec: PolicySpec, trains_pooling: bool) -> None:
        super().__init__()
        self.spec, self.trains_pooling = spec, trains_pooling
        self.pool, self.aggregate = view_pooling(spec), view_aggregation(spec)
        self.head: TrainedHead = action_head(spec)

    def load(self, folder: Path) -> None:
        """The parts of a trained policy."""
        self.load_pooling(folder)
        load_part(folder, "head", self.head)

    def load_pooling(self, folder: Path) -> None:
        """All but the head, which begins anew."""
        load_part(folder, "pool", self.pool)
        load_part(folder, "aggregate", self.aggregate)

    def save(self, folder: Path, spec: PolicySpec) -> str:
        """Writes policy.yaml and the head's file into `folder` and returns the policy's id."""
        parts: dict[Part, nn.Module] = {"pool": self.pool, "aggregate": self.aggregate, "head": self.head}
        (folder / HEAD_FILE).unlink(missing_ok=True)
        return policy.save(folder, spec, parts)

    def features(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, D) from (B, T, D), or from (B, V, I, D) where the pooling is trained."""
        return self.aggregate(self.pool(tokens)) if self.trains_pooling else tokens

    def loss(self, drawn: dict[str, torch.Tensor]) -> torch.Tensor:
        features = self.features(drawn["tokens"])
        return self.head.loss(features, drawn["states"], drawn["age_ms"], drawn["targets"], drawn.get("windows")).mean()

    def trained(self) -> list[nn.Parameter]:
        parts = [self.pool, self.aggregate, self.head] if self.trains_pooling else [self.head]
        return [parameter for part in parts for parameter in part.parameters()]


def save_beside(policy: Path, folder: Path, parts: TrainedParts) -> str:
    """Everything of `policy` but its head and description, with `parts`, into `folder`; returns the policy's id."""
    with checkpoint.replacing(folder) as new:
        shutil.copytree(policy, new, ignore=shutil.ignore_patterns(POLICY_FILE, HEAD_FILE))
        return parts.save(new, parts.spec)


@torch.inference_mode()
def held_out_error(parts: TrainedParts, held_out: FeatureSet, max_age_ms: float, count: int = 4096) -> dict[str, float]:
    """Mean and median joint error on samples that are always the same."""
    drawn = held_out.draw(np.random.default_rng(0), count, max_age_ms)
    head = parts.head
    steps = head.predict(parts.features(drawn["tokens"]), drawn["states"], drawn["age_ms"], drawn.get("windows"))
    wanted = head.displacement(drawn["states"], drawn["targets"])
    errors = ((steps - wanted) * head.step_std).abs()
    return {
        "joint": float(errors.median()),
        "joint_mean": float(errors.mean()),
        "joint_now": float(errors[:, 0].mean()),
    }


def train_parts(
    parts: TrainedParts,
    kept: FeatureSet,
    held_out: FeatureSet | None,
    schedule: HeadSchedule,
    log: Callable[[str], None] = print,
    renormalise: bool = False,
) -> list[dict[str, float]]:
    """Trains `parts` in place, ends with their averaged weights, and returns the loss curve.

    Their spec then says which feature ages were met. `renormalise` takes means and deviations from `kept`: for a head
    that begins anew, which has met no others. Raises TrainingFault when the loss is not finite.
    """
    if schedule.steps < 1 or len(kept) == 0:
        raise TrainingFault(f"nothing to train: {schedule.steps} steps on {len(kept)} frames")
    rng = np.random.default_rng([schedule.seed, 0x4EAD])
    torch.manual_seed(schedule.seed)
    if renormalise:
        normalise(parts.head, kept.states, kept.targets)
    parts.train()
    average = copy.deepcopy(parts).requires_grad_(False)
    optimizer = torch.optim.AdamW(parts.trained(), schedule.learning_rate, (0.9, 0.98), weight_decay=WEIGHT_DECAY)
    curve: list[dict[str, float]] = []
    began_ns, total, best, stale = time.monotonic_ns(), 0.0, math.inf, 0
    youngest, oldest = (math.inf, 0.0) if renormalise else parts.spec.feature_age_ms
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule.learning_rate, step, step / schedule.steps)
        drawn = kept.draw(rng, schedule.batch, schedule.max_age_ms)
        youngest, oldest = min(youngest, float(drawn["age_ms"].min())), max(oldest, float(drawn["age_ms"].max()))
        drawn["states"] = drawn["states"] + schedule.state_noise * torch.randn_like(drawn["states"])
        loss = parts.loss(drawn)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parts.trained(), MAX_GRADIENT)
        if not torch.isfinite(norm):
            raise TrainingFault(f"step {step}: the gradients hold NaN or infinity; try a lower learning rate")
        optimizer.step()
        for kept_value, value in zip(average.parameters(), parts.parameters(), strict=True):
            kept_value.lerp_(value.detach(), 1.0 - average_decay(step))
        total += float(loss.detach())
        if (step + 1) % 200 == 0 or step + 1 == schedule.steps:
            count = (step % 200) + 1
            row = {"step": step + 1.0, "minutes": (time.monotonic_ns() - began_ns) / 60e9, "chunk": total / count}
            if held_out is not None:
                errors = held_out_error(average.eval(), held_out, schedule.max_age_ms)
                row |= {f"held_out_{name}": value for name, value in errors.items()}
                better = row["held_out_joint_mean"] < best * 0.999
                best, stale = min(best, row["held_out_joint_mean"]), 0 if better else stale + 1
            curve.append(row)
            log(" ".join(f"{name} {value:.4f}" for name, value in row.items()))
            total = 0.0
            if schedule.patience is not None and stale >= schedule.patience:
                break
    parts.load_state_dict(average.state_dict())
    parts.spec = parts.spec.model_copy(update={"feature_age_ms": rounded((youngest, oldest))})
    parts.eval()
    return curve
