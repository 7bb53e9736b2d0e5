"""What a training leaves on the disk: the policy folder, and beside it all that is needed to go on after an interrupt.

A new state is written next to the old one and then takes its place, so an interrupt at any moment leaves a whole one.
Tensors are safetensors, the rest is JSON: nothing that is loaded can run code.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vla.errors import TrainingFault
from vla.policy_spec import HEAD_FILE, POLICY_FILE
from vla.training.place import beside, written

BACKBONE_FOLDER = "backbone"
_TENSORS, _STATE = "state.safetensors", "state.json"


@dataclass(slots=True)
class Progress:
    """How far a training is; saved with its tensors. `ages_ms` is the range of feature ages met so far."""

    practised: int = 0  # steps of the head alone, before the first step of all
    step: int = 0
    samples: int = 0
    minutes: float = 0.0
    ages_ms: tuple[float, float] = (float("inf"), 0.0)
    best: float = float("inf")  # validation loss
    stale: int = 0  # measurements since then
    curve: list[dict[str, float]] = field(default_factory=list)

    def met(self, youngest_ms: float, oldest_ms: float) -> None:
        self.ages_ms = (min(self.ages_ms[0], youngest_ms), max(self.ages_ms[1], oldest_ms))


def clear(folder: Path) -> None:
    """Removes what an interrupt may have left."""
    shutil.rmtree(folder, ignore_errors=True)


def save_state(
    folder: Path, parts: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, progress: Progress, options: dict
) -> None:
    """Everything `load_state` needs, in `folder`. `options` is what a resumed training must have in common.

    Raises TrainingFault where the disk is full; the state before stays.
    """
    tensors = {
        f"{part}.{name}": tensor.detach().cpu().contiguous().clone()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value).detach().cpu().clone()
    record = {name: getattr(progress, name) for name in Progress.__slots__}
    with replacing(folder) as new:
        new.mkdir(parents=True)
        save_file(tensors, new / _TENSORS)
        (new / _STATE).write_text(json.dumps({"progress": record, "options": options}), encoding="utf-8")


def load_state(
    folder: Path, parts: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, options: dict
) -> Progress | None:
    """Fills `parts` and the optimizer from `folder`; None where no state lies there.

    Raises TrainingFault for a damaged state, and for one of a training with other options, naming what differs.
    """
    if not (folder / _STATE).is_file():
        return None
    try:
        record = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        tensors = load_file(folder / _TENSORS)
        progress, saved = Progress(**record["progress"]), record["options"]
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise TrainingFault(f"{folder}: not a whole training state ({error}); remove it to begin anew") from error
    expect_same(folder, saved, options)
    progress.ages_ms = (progress.ages_ms[0], progress.ages_ms[1])
    try:
        for part, module in parts.items():
            mine = {key.removeprefix(f"{part}."): value for key, value in tensors.items() if key.startswith(f"{part}.")}
            module.load_state_dict(mine)
    except RuntimeError as error:
        raise TrainingFault(f"{folder}: the state is of another shape: {error}") from error
    _fill(optimizer, tensors)
    return progress


def expect_same(place: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """That what lies at `place` is of a training with these options. Raises TrainingFault naming what differs."""
    wanted = json.loads(json.dumps(dict(wanted)))
    different = sorted(name for name in wanted.keys() | saved.keys() if wanted.get(name) != saved.get(name))
    if different:
        unknown = "not noted by the version that saved it"
        said = [f"{name} was {saved.get(name, unknown)}, is now {wanted.get(name)}" for name in different]
        raise TrainingFault(
            f"{place} holds the state of another training: {'; '.join(said[:3])};"
            " ask for the same, or begin anew with --overwrite"
        )


def _fill(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def reserve(folder: Path, overwrite: bool) -> Path:
    """The absolute folder to fill: it exists, it and its neighbourhood can be written, and nothing is lost there."""
    folder = folder.resolve()
    probe = beside(folder, "new")
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


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A name beside `folder` to fill, which then takes its place. Raises TrainingFault where the disk is full.

    What lies in `folder` stays until the new one is whole.
    """
    new = beside(folder, "new")
    clear(new)
    try:
        with written(new):
            yield new
            _replace(folder, new)
    finally:
        clear(new)  # what an error left of it fills the disk


def _replace(folder: Path, new: Path) -> None:
    """`new` takes the place of `folder`: two renames, so at every moment one whole folder is on the disk."""
    old = beside(folder, "old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
