"""Rounds of learning from a policy's own episodes: collect, label, train the head on all that was collected, again.

Knows files and the order of things; what collects is a command it is given, run in as many processes as asked for. All
that is done lies in files, so the same call goes on after an interrupt. Round 0 is driven mostly by the expert, the
later ones by the policy of the round before.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vla.errors import TrainingFault
from vla.policy_spec import HeadChoice, load_spec
from vla.training.features import FeatureSet
from vla.training.parts import HeadSchedule, TrainedParts, save_beside, train_parts
from vla.training.place import write_text, written

HELD_OUT = "held-out"
KEEP_NEWEST = 40  # files of features that a round trains on; older ones are left out


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """`rounds` of `frames` each; the head takes `steps` after each, `last_steps` after the last."""

    rounds: int = 8
    frames: int = 16000
    steps: int = 1500
    last_steps: int = 6000
    workers: int = 1
    batch: int = 1024
    max_age_ms: float = 1000.0
    seed: int = 0
    head: HeadChoice | None = None  # another one than the policy has: it begins anew


@dataclass(frozen=True, slots=True)
class Order:
    """What one collecting process is to do: frames from `seed` with the policy in `policy`, into `file`."""

    policy: Path
    file: Path
    seed: int
    frames: int
    expert_share: float  # chances a second that the expert takes over for a while


def aggregate(
    folder: Path,
    work: Path,
    plan: RoundPlan,
    command: Callable[[Order], list[str]],
    log: Callable[[str], None] = print,
) -> list[dict[str, float]]:
    """Improves the policy in `folder` round by round; returns the loss curve of the last one.

    `work` keeps features and what is done. Raises TrainingFault when a collecting process fails.
    """
    with written(work):
        work.mkdir(parents=True, exist_ok=True)
    done_file = work / "rounds.json"
    done = json.loads(done_file.read_text(encoding="utf-8")) if done_file.is_file() else {"rounds": 0}
    curve: list[dict[str, float]] = []
    held_out = work / f"{HELD_OUT}.safetensors"
    for number in range(done["rounds"], plan.rounds):
        orders = _orders(folder, work, plan, number)
        if not held_out.is_file():
            orders.append(Order(folder, held_out, plan.seed + 900_000, plan.frames // 8, 0.5))
        log(f"round {number + 1} of {plan.rounds}: {sum(order.frames for order in orders)} frames")
        _collect([order for order in orders if not order.file.is_file()], command, plan.workers)
        is_last = number + 1 == plan.rounds
        curve = _train(folder, work, plan, plan.last_steps if is_last else plan.steps, number, log)
        write_text(done_file, json.dumps({"rounds": number + 1}))
    return curve


def collected(work: Path, newest: int | None = None) -> tuple[FeatureSet, FeatureSet]:
    """What the rounds in `work` kept to train on, of the `newest` files or of all, and what they held out."""
    files = sorted(work.glob("round-*.safetensors"))
    if not files:
        raise TrainingFault(f"{work} holds no round-*.safetensors: expected the rounds folder of a training")
    kept = FeatureSet.joined([FeatureSet.load(file) for file in files[-newest if newest else 0 :]])
    return kept, FeatureSet.load(work / f"{HELD_OUT}.safetensors")


def _orders(folder: Path, work: Path, plan: RoundPlan, number: int) -> list[Order]:
    share = 1.5 if number == 0 else 0.25
    frames = plan.frames // plan.workers
    return [
        Order(
            folder,
            work / f"round-{number:02d}-{worker}.safetensors",
            plan.seed + 1000 * (number + 1) + worker,
            frames,
            share,
        )
        for worker in range(plan.workers)
    ]


def _collect(orders: Sequence[Order], command: Callable[[Order], list[str]], workers: int) -> None:
    """All orders, `workers` at a time; none is left running when one fails or the user interrupts."""
    waiting, running = list(orders), []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                order = waiting.pop(0)
                running.append((order, subprocess.Popen(command(order))))
            order, process = running[0]  # and still among them while it is waited for: an interrupt ends it too
            code = process.wait()
            running.pop(0)
            if code or not order.file.is_file():
                raise TrainingFault(f"collecting {order.file.name} ended with exit code {code}: see its message above")
    finally:
        for _, process in running:
            process.terminate()
            process.wait()


def _train(
    folder: Path, work: Path, plan: RoundPlan, steps: int, number: int, log: Callable[[str], None]
) -> list[dict[str, float]]:
    kept, held_out = collected(work, KEEP_NEWEST)
    spec = load_spec(folder)
    begins_anew = plan.head is not None and plan.head != spec.head
    if begins_anew:
        spec = spec.model_copy(update={"head": plan.head})
    parts = TrainedParts(spec, trains_pooling=False)
    if begins_anew:
        parts.load_pooling(folder)
    else:
        parts.load(folder)
    schedule = HeadSchedule(steps, plan.batch, max_age_ms=plan.max_age_ms, seed=plan.seed + number)
    curve = train_parts(parts, kept, held_out, schedule, log, renormalise=begins_anew)
    provenance = {**spec.provenance, "rounds": number + 1, "round_frames": len(kept), "round_seed": plan.seed}
    parts.spec = parts.spec.model_copy(update={"provenance": provenance})
    policy_id = save_beside(folder, folder, parts)
    log(f"round {number + 1}: policy {policy_id}, trained on {len(kept)} frames")
    return curve
