"""Trains the embedded backbone, pooling and head together, end to end, on one CPU thread.

Batches come from an iterator (dataset.py), so one loop serves demonstrations, recordings and labels on the policy's own
states. The averaged weights are what is measured and saved. A checkpoint is written beside the folder and then takes
its place, so what lies there is always a complete policy.
"""

from __future__ import annotations

import itertools
import math
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import transformers
from torch.optim.swa_utils import AveragedModel

from control.messages import RobotSpec
from vla import policy, weights
from vla.dataset import Batch
from vla.errors import TrainingFault
from vla.learner import Collator, Inputs, Learner, measure
from vla.policy import load_part
from vla.policy_spec import (
    HEAD_FILE,
    POLICY_FILE,
    HeadChoice,
    PolicySpec,
    PoolingChoice,
    backbone_folder,
    load_spec,
)
from vla.prompt import Prompter
from vla.tokenizer import build_tokenizer

BACKBONE_FOLDER = "backbone"
NORMALISE_BATCHES = 32
WARM_UP_STEPS = 100
LEARNING_RATE, WEIGHT_DECAY, MAX_GRADIENT = 1e-3, 0.02, 1.0
AVERAGE_DECAY = 0.998
NS_PER_MINUTE = 60e9


def train(
    batches: Iterable[Batch],
    validation_batches: Sequence[Batch],
    out_folder: Path,
    robot: RobotSpec,
    horizon: int,
    period_s: float,
    wordings: Sequence[str],
    max_minutes: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    log: Callable[[str], None] = print,
    start_from: Path | None = None,
    name: str = "embedded",
    learning_rate: float = LEARNING_RATE,
    log_every: int = 50,
    save_every_minutes: float = 3.0,
    overwrite: bool = False,
) -> dict[str, float]:
    """Writes a policy to `out_folder`, returns its held-out errors. Ends at `max_minutes`, `steps` or the last batch.

    `start_from` goes on from a policy of the same shape: its weights, tokenizer and normalisation. A policy that lies
    in `out_folder` already is replaced only with `overwrite`.
    """
    _check_length(max_minutes, steps)
    out_folder = _reserve(out_folder, overwrite)
    torch.manual_seed(seed)
    source = iter(batches)
    learner, prompter = _start(robot, horizon, period_s, wordings, seed, start_from, name)
    if start_from is None:
        first = list(itertools.islice(source, NORMALISE_BATCHES))
        if not first:
            raise TrainingFault("there is nothing to train on: `batches` is empty")
        learner.normalise_by(first)
        source = itertools.chain(first, source)
    collate = Collator(learner.spec, prompter)
    validation = [collate(batch) for batch in validation_batches]
    learner.train()
    average = AveragedModel(learner, avg_fn=_average, use_buffers=False)
    optimizer = torch.optim.AdamW(_groups(learner), lr=learning_rate, betas=(0.9, 0.98))
    log(f"{sum(p.numel() for p in learner.parameters()):,} parameters, head {_count(learner.head):,}, seed {seed}")

    began_ns = saved_ns = logged_ns = time.monotonic_ns()
    samples = total = step = 0
    age_low, age_high = math.inf, -math.inf
    sums: dict[str, float] = {}
    for batch in source:
        minutes = (time.monotonic_ns() - began_ns) / NS_PER_MINUTE
        progress = max(minutes / max_minutes if max_minutes else 0.0, step / steps if steps else 0.0)
        if progress >= 1.0:
            break
        rate = (
            learning_rate
            * min(1.0, (step + 1) / WARM_UP_STEPS)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = _step(learner, optimizer, collate(batch))
        average.update_parameters(learner)
        step += 1
        samples += len(batch.states)
        total += len(batch.states)
        age_low, age_high = min(age_low, batch.feature_age_ms.min()), max(age_high, batch.feature_age_ms.max())
        for part, value in losses.items():
            sums[part] = sums.get(part, 0.0) + value
        if step % log_every == 0:
            now_ns = time.monotonic_ns()
            rate_s = samples / ((now_ns - logged_ns) / 1e9)
            parts = " ".join(f"{part} {value / log_every:.3f}" for part, value in sums.items())
            log(f"{minutes:5.1f} min step {step:5d} {parts} | {_report(average, validation)} | {rate_s:.0f} samples/s")
            sums, samples, logged_ns = {}, 0, time.monotonic_ns()
        if (time.monotonic_ns() - saved_ns) / NS_PER_MINUTE >= save_every_minutes:
            _save(average, prompter, out_folder, seed, step, total, (age_low, age_high))
            saved_ns = time.monotonic_ns()
    policy_id = _save(average, prompter, out_folder, seed, step, total, (age_low, age_high))
    errors = measure(_averaged(average), validation) if validation else {}
    log(f"saved policy {policy_id} to {out_folder} after {step} steps, {total} samples: {_report(average, validation)}")
    return errors


def _start(
    robot: RobotSpec,
    horizon: int,
    period_s: float,
    wordings: Sequence[str],
    seed: int,
    start_from: Path | None,
    name: str,
) -> tuple[Learner, Prompter]:
    cpu = torch.device("cpu")
    if start_from is not None:
        spec = load_spec(start_from)
        if problems := spec.fits(robot):
            raise TrainingFault(f"cannot go on from {start_from}: {'; '.join(problems)}")
        if (spec.horizon, spec.period_s) != (horizon, period_s):
            raise TrainingFault(
                f"cannot go on from {start_from}: it has horizon {spec.horizon} at {spec.period_s} s,"
                f" asked for {horizon} at {period_s} s"
            )
        folder = backbone_folder(start_from, spec) or weights.resolve(spec.backbone)
        learner = Learner(spec, weights.load(folder, cpu, torch.float32).requires_grad_(True))
        load_part(start_from, "pool", learner.pool)
        load_part(start_from, "aggregate", learner.aggregate)
        load_part(start_from, "head", learner.head)
        return learner, Prompter.load(folder)
    backbone = weights.random_weights("embedded", cpu, torch.float32, seed)
    spec = PolicySpec(
        name=name,
        backbone=BACKBONE_FOLDER,
        geometry="embedded",
        width=backbone.width,
        cameras=dict(robot.cameras),
        state_names=robot.state_names,
        action_names=robot.action_names,
        horizon=horizon,
        period_s=period_s,
        pooling=PoolingChoice(view="attention", queries=1, aggregation="concat"),
        head=HeadChoice(kind="regression"),
    )
    return Learner(spec, backbone), Prompter(build_tokenizer(wordings))


def _step(learner: Learner, optimizer: torch.optim.Optimizer, inputs: Inputs) -> dict[str, float]:
    losses = learner.losses(inputs)
    total = torch.stack(list(losses.values())).sum()
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(learner.parameters(), MAX_GRADIENT)
    if not torch.isfinite(norm):
        raise ArithmeticError(
            f"training diverged: gradient norm {norm.item()}, losses { {k: v.item() for k, v in losses.items()} };"
            " lower the learning rate, or look for NaN in the batches"
        )
    optimizer.step()
    return {part: loss.item() for part, loss in losses.items()}


def _groups(learner: Learner) -> list[dict[str, object]]:
    """Weight decay on matrices only."""
    parameters = list(learner.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _average(averaged: torch.Tensor, parameter: torch.Tensor, seen: torch.Tensor | int) -> torch.Tensor:
    """Exponential average that is short at first, so that early checkpoints are not the random start."""
    count = float(seen)
    return averaged.lerp(parameter, 1.0 - min(AVERAGE_DECAY, (1.0 + count) / (10.0 + count)))


def _averaged(average: AveragedModel) -> Learner:
    learner = average.module
    assert isinstance(learner, Learner)
    return learner.eval()


def _report(average: AveragedModel, validation: Sequence[Inputs]) -> str:
    if not validation:
        return "no held-out batches"
    errors = measure(_averaged(average), validation)
    return (
        f"held out: {errors['position_cm']:.2f} cm, joint {errors['joint']:.4f} (mean {errors['joint_mean']:.4f}),"
        f" cell {errors['cell']:.0%}"
    )


def _save(
    average: AveragedModel,
    prompter: Prompter,
    folder: Path,
    seed: int,
    steps: int,
    samples: int,
    ages_ms: tuple[float, float],
) -> str:
    learner = _averaged(average)
    provenance: dict[str, str | int | float] = {
        "seed": seed,
        "steps": steps,
        "samples": samples,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    ages = (float(ages_ms[0]), float(ages_ms[1])) if steps else (0.0, 0.0)
    spec = learner.spec.model_copy(
        update={"backbone": BACKBONE_FOLDER, "provenance": provenance, "feature_age_ms": ages}
    )
    new = _beside(folder, "new")
    shutil.rmtree(new, ignore_errors=True)
    weights.save(learner.backbone, new / BACKBONE_FOLDER, torch.float16)
    prompter.save(new / BACKBONE_FOLDER)
    policy_id = policy.save(new, spec, {"pool": learner.pool, "aggregate": learner.aggregate, "head": learner.head})
    _replace(folder, new)
    return policy_id


def _check_length(max_minutes: float | None, steps: int | None) -> None:
    if max_minutes is None and steps is None:
        raise TrainingFault("give max_minutes or steps: the learning rate falls over one of them")
    if max_minutes is not None and not 0 < max_minutes < math.inf:
        raise TrainingFault(f"minutes of training must be a finite number above 0, got {max_minutes}")
    if steps is not None and steps < 1:
        raise TrainingFault(f"steps of training must be at least 1, got {steps}")


def _reserve(folder: Path, overwrite: bool) -> Path:
    """The absolute folder to fill: it exists, it and its neighbourhood can be written, and nothing is lost there."""
    folder = folder.resolve()
    probe = _beside(folder, "new")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.mkdir(exist_ok=True)
        shutil.rmtree(probe)
        holds = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise TrainingFault(
            f"{folder} cannot be written ({error.strerror}): likely a wrong path, or a folder of another user"
        ) from error
    if POLICY_FILE in holds and not overwrite:
        raise TrainingFault(f"{folder} holds a policy already: choose another folder, or allow to overwrite it")
    if foreign := [name for name in holds if name not in (POLICY_FILE, HEAD_FILE, BACKBONE_FOLDER)]:
        raise TrainingFault(
            f"{folder} holds '{foreign[0]}', which is no part of a policy and would be lost: choose another folder"
        )
    return folder


def _replace(folder: Path, new: Path) -> None:
    """`new` takes the place of `folder`: two renames, so at every moment one whole policy is on the disk."""
    old = _beside(folder, "old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old)


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
