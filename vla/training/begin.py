"""What a training begins with: random weights of the embedded backbone, or a policy that it goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from control.messages import RobotSpec
from vla import weights
from vla.errors import TrainingFault
from vla.policy import action_head, load_part
from vla.policy_spec import HeadChoice, PolicySpec, PoolingChoice, WindowChoice, backbone_folder, identify, load_spec
from vla.prompt import Prompter
from vla.sizes import model_size
from vla.tokenizer import build_tokenizer
from vla.training.checkpoint import BACKBONE_FOLDER
from vla.training.learner import Learner
from vla.training.provenance import BEGUN, begun_from
from vla.training.regrow import go_on_from


@dataclass(frozen=True, slots=True)
class Shape:
    """What an embedded policy is to be like; the rest follows from the robot."""

    horizon: int
    period_s: float
    name: str = "embedded"
    head: HeadChoice = HeadChoice(kind="regression", hidden=512, layers=3)
    queries: int = 2
    window: WindowChoice | None = None
    optional_cameras: tuple[str, ...] = ()  # to do without, where they fail


def begin(
    robot: RobotSpec, shape: Shape, wordings: Sequence[str], seed: int, start_from: Path | None, new_readout: bool
) -> tuple[Learner, Prompter]:
    """What is to be trained, and its prompts; see `train.train`. TrainingFault for a policy that does not fit."""
    cpu = torch.device("cpu")
    if start_from is not None:
        spec = check_start(start_from, shape.window, new_readout)
        if problems := spec.fits(robot):
            raise TrainingFault(f"cannot go on from {start_from}: {'; '.join(problems)}")
        if (spec.horizon, spec.period_s) != (shape.horizon, shape.period_s):
            raise TrainingFault(
                f"cannot go on from {start_from}: it has horizon {spec.horizon} at {spec.period_s} s,"
                f" asked for {shape.horizon} at {shape.period_s} s"
            )
        folder = backbone_folder(start_from, spec) or weights.resolve(spec.backbone)
        old = spec.head
        spec = spec.model_copy(update={"provenance": begun_from(identify(start_from), spec)})
        if new_readout:
            spec = spec.model_copy(update={"head": old.model_copy(update={"readout": shape.head.readout})})
        backbone = weights.load(folder, cpu, torch.float32, layers=spec.language_layers)
        learner = Learner(spec, backbone.requires_grad_(True))
        load_part(start_from, "pool", learner.pool)
        load_part(start_from, "aggregate", learner.aggregate)
        if spec.head == old:
            load_part(start_from, "head", learner.head)
        else:
            before = action_head(spec.model_copy(update={"head": old}))
            load_part(start_from, "head", before)
            go_on_from(learner.head, before, spec.head.readout, old.readout)
        return learner, Prompter.load(folder)
    if len({model_size(*size) for size in robot.cameras.values()}) != 1:
        got = ", ".join(f"{name} {height}x{width}" for name, (height, width) in robot.cameras.items())
        raise TrainingFault(
            f"a policy from nothing needs one image size for all cameras, got {got} (height x width): record them at"
            " one size, or go on with --from a policy whose image_size makes them one"
        )
    backbone = weights.random_weights("embedded", cpu, torch.float32, seed)
    spec = PolicySpec(
        name=shape.name,
        backbone=BACKBONE_FOLDER,
        geometry="embedded",
        width=backbone.width,
        cameras=dict(robot.cameras),
        state_names=robot.state_names,
        action_names=robot.action_names,
        horizon=shape.horizon,
        period_s=shape.period_s,
        pooling=PoolingChoice(view="attention", queries=shape.queries, aggregation="concat"),
        head=shape.head,
        window=shape.window,
        optional_cameras=shape.optional_cameras,
    )
    return Learner(spec, backbone), Prompter(build_tokenizer(wordings))


def check_start(start_from: Path, window: WindowChoice | None, needs_readout: bool) -> PolicySpec:
    """The policy that is to be gone on from. Raises TrainingFault for a head that cannot be taught with this data.

    `window` is what the data has of past states; `needs_readout`: a simulator teaches facts to be read.
    """
    spec = load_spec(start_from)
    cannot = f"cannot go on from {start_from}: its head"
    if spec.head.kind == "hold":
        raise TrainingFault(f"{cannot} is of kind 'hold', which was never trained: give it one with --data --head-only")
    if spec.pooling.view != "attention":
        raise TrainingFault(
            f"cannot go on from {start_from} end to end: its pooling.view is '{spec.pooling.view}', and only"
            " 'attention' is trained with the backbone: use --data --head-only"
        )
    if needs_readout and not spec.head.readout:
        raise TrainingFault(
            f"{cannot} has no readout, most likely because it was trained on recordings, and the simulator teaches"
            " through one: go on with --data, or train on the simulator from nothing, without --from"
        )
    if spec.window != window:
        instead = "leave --window out, or train a new head with --head-only"
        if spec.window:
            instead = f"use --data with --window {spec.window.samples} --window-hz {spec.window.rate_hz:g}"
        raise TrainingFault(f"{cannot} takes {_said(spec.window)}, asked for {_said(window)}: {instead}")
    return spec


def _said(window: WindowChoice | None) -> str:
    return f"a window of {window.samples} states at {window.rate_hz:g} Hz" if window else "no window of states"


def in_common(spec: PolicySpec, prompter: Prompter, start_from: Path | None, folder: Path) -> dict[str, str | None]:
    """What a training that goes on in `folder` must have in common with the one before, by name."""
    begun = spec.provenance.get(f"{BEGUN}_from") if start_from else None
    if start_from and start_from.resolve() == folder:
        begun = "the folder itself"  # which changes with every save
    return {
        "name": spec.name,
        "from": None if begun is None else str(begun),
        "head": spec.head.kind,
        "readout": ",".join(spec.head.readout),
        "window": f"{spec.window.samples} states at {spec.window.rate_hz:g} Hz" if spec.window else None,
        "optional_cameras": ",".join(spec.optional_cameras),
        "tokenizer": prompter.fingerprint,
    }
