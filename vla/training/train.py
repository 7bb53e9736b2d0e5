"""Trains backbone, pooling and head together, end to end.

Batches come from an iterator (dataset.py), so one loop serves demonstrations, recordings and labels on the policy's own
states. The averaged weights are what is measured and saved. What lies in the folder is always a complete policy; the
state beside it lets the same command go on after an interrupt. Several processes: parallel.py.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel

from control.messages import RobotSpec
from vla import policy, weights
from vla.errors import TrainingFault
from vla.head import TrainedHead
from vla.policy_spec import PolicySpec, load_spec
from vla.prompt import Prompter
from vla.training import checkpoint
from vla.training.begin import Shape, begin, in_common
from vla.training.checkpoint import BACKBONE_FOLDER, Progress
from vla.training.curve import save_curve
from vla.training.dataset import Batch, Rehearsal
from vla.training.learner import Collator, Inputs, Learner, measure
from vla.training.pace import average_decay, learning_rate
from vla.training.parallel import Group
from vla.training.place import work_folder
from vla.training.practice import Actor, practise
from vla.training.provenance import begun_in, rounded, versions

NORMALISE_BATCHES = 32
LEARNING_RATE, WEIGHT_DECAY, MAX_GRADIENT = 1e-3, 0.02, 1.0
MAX_BAD_STEPS = 10  # in a row whose gradients are not finite
NS_PER_MINUTE = 60e9


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long, how fast and how closely watched. Ends at `minutes`, `steps`, the last batch, or without progress."""

    minutes: float | None = None
    steps: int | None = None
    learning_rate: float = LEARNING_RATE
    measure_every: int = 50  # steps
    save_every_minutes: float = 3.0
    patience: int | None = None  # measurements without a better held-out chunk; None: go on
    seed: int = 0
    practice: float = 0.0  # the share of the minutes in which the head alone practises first, where it can

    def __post_init__(self) -> None:
        if self.minutes is None and self.steps is None:
            raise TrainingFault("give minutes or steps: the learning rate falls over one of them")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise TrainingFault(f"minutes of training must be a finite number above 0, got {self.minutes}")
        if not 0 <= self.practice <= 1 or (self.practice and self.minutes is None):
            raise TrainingFault(f"practice must be a share of the minutes, 0 to 1, got {self.practice}")
        if self.steps is not None and self.steps < 1:
            raise TrainingFault(f"steps of training must be at least 1, got {self.steps}")

    def in_common(self) -> dict[str, Any]:
        """What a training that goes on must have in common with the one before, by name."""
        return {"seed": self.seed, "minutes": self.minutes, "steps": self.steps, "practice": self.practice}

    def done(self, progress: Progress) -> float:
        """From 0 to 1."""
        by_time = progress.minutes / self.minutes if self.minutes else 0.0
        return max(by_time, progress.step / self.steps if self.steps else 0.0)

    def rate(self, progress: Progress) -> float:
        """The learning rate."""
        return learning_rate(self.learning_rate, progress.step, self.done(progress))


def train(
    batches: Callable[[int], Iterable[Batch]],
    validation_batches: Sequence[Batch],
    out_folder: Path,
    robot: RobotSpec,
    shape: Shape,
    wordings: Sequence[str],
    schedule: Schedule,
    log: Callable[[str], None] = print,
    start_from: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    device: str = "cpu",
    situations: Callable[[int, Callable[[], Actor | None]], Iterable[Rehearsal]] | None = None,
    new_readout: bool = False,
    made_of: Mapping[str, str | float] | None = None,
) -> dict[str, float]:
    """Writes a policy to `out_folder`, returns its held-out errors.

    `batches` is asked once for an iterator, with a seed that differs between processes and after every resume.
    `start_from` goes on from a policy of the same shape: its weights, tokenizer and normalisation; with
    `new_readout` its head reads what the head of `shape` reads, and keeps what it knew of that. A policy that lies
    in `out_folder` already is replaced only with `overwrite`, or with `resume` where the state beside it is of the same
    training. Raises TrainingFault for what cannot begin or go on. `situations` is what a head with a readout practises
    on for the `practice` share of the schedule; it is given a seed, and what tells the head as it is. `made_of` says
    what the batches are, by name: a training that goes on must be of the same, and policy.yaml tells it.
    """
    with Group(torch.device(device)) as group:
        folder = checkpoint.reserve(out_folder, overwrite or resume) if group.is_first else out_folder.resolve()
        state_folder = work_folder(folder) / "state"
        torch.manual_seed(schedule.seed)
        learner, prompter = begin(robot, shape, wordings, schedule.seed, start_from, new_readout)
        options = schedule.in_common() | in_common(learner.spec, prompter, start_from, folder) | dict(made_of or {})
        optimizer = torch.optim.AdamW(_groups(learner.to(group.device)), lr=1e-3, betas=(0.9, 0.98))
        average = AveragedModel(learner, avg_fn=_average, use_buffers=False)
        progress = (
            checkpoint.load_state(state_folder, {"learner": learner, "average": average}, optimizer, options)
            if resume
            else None
        )
        source = iter(batches(_stream_seed(schedule.seed, group.rank, progress)))
        if progress is None:
            progress = Progress()
            if start_from is not None:
                progress.met(*load_spec(start_from).feature_age_ms)
            else:
                source = _normalised(learner, source)
                group.share(learner)
            average = AveragedModel(learner, avg_fn=_average, use_buffers=False)
        else:
            log(f"going on at step {progress.step}, {progress.minutes:.1f} min")
        if not group.is_first:
            log = _silent
        collate = Collator(learner.spec, prompter)
        masks = np.random.default_rng(_stream_seed(schedule.seed, group.rank, progress))
        collate_masked = Collator(learner.spec, prompter, masks)
        run = _Run(learner, average, optimizer, group, schedule, progress, log)
        run.held_out = [collate(batch).to(group.device) for batch in validation_batches]

        def save() -> str:
            checkpoint.save_state(state_folder, {"learner": learner, "average": average}, optimizer, progress, options)
            return save_policy(
                averaged(average), prompter, folder, progress, {"seed": schedule.seed, **(made_of or {})}
            )

        if situations is not None and progress.minutes < (until := schedule.practice * (schedule.minutes or 0.0)):
            ask = partial(situations, _stream_seed(schedule.seed, group.rank, progress))
            keep = _head_saver(average, save)
            practise(learner.head, ask, group, progress, until, log, keep, schedule.save_every_minutes)
            average = run.average = AveragedModel(learner, avg_fn=_average, use_buffers=False)
            if group.is_first:
                save()
        run.loop((collate_masked(batch) for batch in _watched(source, progress, learner.spec)), save)
        progress.ages_ms = group.widest(progress.ages_ms)
        if not group.is_first:
            return {}
        policy_id = save()
        if progress.curve:
            log(save_curve(progress.curve, work_folder(folder) / "curve"))
        log(f"saved policy {policy_id} to {folder} after {progress.step} steps, {progress.samples} samples")
        return measure(averaged(average), run.held_out) if run.held_out else {}


class _Run:
    """The loop itself: steps, measurements, saves, and when to end."""

    def __init__(
        self,
        learner: Learner,
        average: AveragedModel,
        optimizer: torch.optim.Optimizer,
        group: Group,
        schedule: Schedule,
        progress: Progress,
        log: Callable[[str], None],
    ) -> None:
        self.learner, self.average, self.optimizer = learner, average, optimizer
        self.group, self.schedule, self.progress, self.log = group, schedule, progress, log
        self.held_out: list[Inputs] = []
        self._wrapped = group.wrap(learner)
        self._bad = 0

    def loop(self, inputs: Iterator[Inputs], save: Callable[[], str]) -> None:
        schedule, progress = self.schedule, self.progress
        count = sum(p.numel() for p in self.learner.parameters())
        self.log(f"{count:,} parameters, seed {schedule.seed}, {self.group.size} process(es)")
        self.learner.train()
        began_ns, before = time.monotonic_ns(), progress.minutes
        saved = progress.minutes
        sums: dict[str, float] = {}
        since, counted = time.monotonic_ns(), 0
        while True:
            # One clock for all: at the very end another process' own might say that it is over, or not yet.
            progress.minutes = self.group.agree(before + (time.monotonic_ns() - began_ns) / NS_PER_MINUTE)
            is_over = schedule.done(progress) >= 1.0 or self._is_stale()
            batch = None if is_over else next(inputs, None)
            if self.group.agree(float(batch is None)):
                break
            if batch is None:
                raise TrainingFault("this process has no more batches while the first one has: give all as many")
            for part, value in self._step(batch.to(self.group.device)).items():
                sums[part] = sums.get(part, 0.0) + value
            counted += len(batch.states)
            progress.step += 1
            progress.samples += len(batch.states) * self.group.size
            if progress.step % schedule.measure_every == 0 and self.group.is_first:
                speed = counted * self.group.size / ((time.monotonic_ns() - since) / 1e9)
                self._tell({part: value / schedule.measure_every for part, value in sums.items()}, speed)
                sums, since, counted = {}, time.monotonic_ns(), 0
            if progress.minutes - saved >= schedule.save_every_minutes and self.group.is_first:
                save()
                saved = progress.minutes

    def _step(self, batch: Inputs) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.progress)
        losses: dict[str, torch.Tensor] = self._wrapped(batch)
        total = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.learner.parameters(), MAX_GRADIENT)
        self._bad = 0 if torch.isfinite(norm) else self._bad + 1
        if self._bad >= MAX_BAD_STEPS:
            raise TrainingFault(
                f"the gradients of {self._bad} steps in a row hold NaN or infinity: training has diverged, or the data"
                " holds such values; try a lower learning rate"
            )
        if not self._bad:
            self.optimizer.step()
            self.average.update_parameters(self.learner)
        return {part: float(loss.detach()) for part, loss in losses.items()}

    def _tell(self, losses: dict[str, float], speed: float) -> None:
        progress = self.progress
        row = {"step": progress.step, "minutes": progress.minutes, **losses}
        said = " ".join(f"{part} {value:.3f}" for part, value in losses.items())
        if self.held_out:
            errors = measure(averaged(self.average), self.held_out)
            self.learner.train()
            row |= {f"held_out_{name}": value for name, value in errors.items()}
            said += " | held out: " + describe(errors)
            is_better = errors["chunk"] < progress.best * 0.999
            progress.best, progress.stale = min(progress.best, errors["chunk"]), 0 if is_better else progress.stale + 1
        progress.curve.append(row)
        self.log(f"{progress.minutes:5.1f} min step {progress.step:5d} {said} | {speed:.0f} samples/s")

    def _is_stale(self) -> bool:
        patience = self.schedule.patience
        return patience is not None and self.progress.stale >= patience


def _head_saver(average: AveragedModel, save: Callable[[], object]) -> Callable[[TrainedHead], None]:
    """Saves all with another head among the averaged weights."""

    def saver(head: TrainedHead) -> None:
        average.module.head.load_state_dict(head.state_dict())
        save()

    return saver


def describe(errors: dict[str, float]) -> str:
    """Held-out errors in words."""
    seen = f"{errors['length_cm']:.2f} cm, " if "length_cm" in errors else ""
    seen += f"facts {errors['facts']:.3f}, " if "facts" in errors else ""
    seen += f"cell {errors['cell']:.0%}, " if "cell" in errors else ""
    return f"{seen}chunk {errors['chunk']:.4f}, joint {errors['joint']:.4f} (mean {errors['joint_mean']:.4f})"


def averaged(average: AveragedModel) -> Learner:
    """The averaged weights, ready to be measured."""
    learner = average.module
    assert isinstance(learner, Learner)
    return learner.eval()


def save_policy(
    learner: Learner, prompter: Prompter, folder: Path, progress: Progress, made_with: Mapping[str, str | int | float]
) -> str:
    """Writes the folder whole and returns the policy's id. `made_with` is told among its provenance."""
    provenance: dict[str, str | int | float] = {
        **begun_in(learner.spec.provenance),
        **made_with,
        "practice_steps": progress.practised,
        "steps": progress.step,
        "samples": progress.samples,
        "minutes": round(progress.minutes, 1),
        **versions(),
    }
    spec = learner.spec.model_copy(
        update={
            "backbone": BACKBONE_FOLDER,
            "provenance": provenance,
            "feature_age_ms": rounded(progress.ages_ms),
        }
    )
    with checkpoint.replacing(folder) as new:
        weights.save(learner.backbone, new / BACKBONE_FOLDER, torch.float16)
        prompter.save(new / BACKBONE_FOLDER)
        return policy.save(new, spec, {"pool": learner.pool, "aggregate": learner.aggregate, "head": learner.head})


def _normalised(learner: Learner, source: Iterator[Batch]) -> Iterator[Batch]:
    first = list(itertools.islice(source, NORMALISE_BATCHES))
    if not first:
        raise TrainingFault("there is nothing to train on: `batches` is empty")
    learner.normalise_by(first)
    return itertools.chain(first, source)


def _watched(source: Iterator[Batch], progress: Progress, spec: PolicySpec) -> Iterator[Batch]:
    """Refuses batches that would teach nonsense, and remembers the feature ages."""
    for batch in source:
        for name, array in (("states", batch.states), ("targets", batch.targets), ("ages", batch.feature_age_ms)):
            if not np.isfinite(array).all():
                raise TrainingFault(f"a batch holds NaN or infinity in its {name}: the data is damaged, look there")
        ages = batch.feature_age_ms.ravel()
        if batch.rehearsal is not None and spec.head.readout:
            ages = np.concatenate([ages, batch.rehearsal.feature_age_ms])
        progress.met(float(ages.min()), float(ages.max()))
        yield batch


def _stream_seed(seed: int, rank: int, progress: Progress | None) -> int:
    """A resumed training does not meet the same batches again."""
    return seed * 1_000_003 + rank * 1009 + ((progress.step + progress.practised) * 7919 if progress else 0)


def _groups(learner: Learner) -> list[dict[str, object]]:
    """Weight decay on matrices only: not on norms, biases, learned positions or queries."""
    kept = {"pool.positions", "pool.queries", "backbone.language.embed_tokens.weight"}
    named = [(name, p) for name, p in learner.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if p.ndim > 1 and name not in kept]
    rest = [p for name, p in named if p.ndim <= 1 or name in kept]
    return [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]


def _average(averaged: torch.Tensor, parameter: torch.Tensor, seen: torch.Tensor | int) -> torch.Tensor:
    return averaged.lerp(parameter, 1.0 - average_decay(float(seen)))


def _silent(line: str) -> None:
    """The other processes of a group say nothing."""
