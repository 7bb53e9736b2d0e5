"""Tiny real models for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from control.messages import Frames, Instruction
from tests.vla import squares
from vla import policy, weights
from vla.policy import action_head, view_aggregation, view_pooling
from vla.policy_spec import HeadChoice, PolicySpec, PoolingChoice
from vla.prompt import Prompter
from vla.qwen import QwenBackbone
from vla.tokenizer import build_tokenizer

CPU = torch.device("cpu")
SIDE = 56


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def prompter() -> Prompter:
    return Prompter(build_tokenizer(squares.WORDINGS))


@pytest.fixture(scope="session")
def tiny() -> QwenBackbone:
    return weights.random_weights("tiny", CPU, torch.float32).requires_grad_(False)


def tiny_spec(**changes: object) -> PolicySpec:
    """A policy of two 56 x 56 views over the tiny geometry."""
    fields: dict[str, object] = {
        "name": "tiny",
        "backbone": "backbone",
        "geometry": "tiny",
        "width": 32,
        "cameras": {"front": (SIDE, SIDE), "wrist": (SIDE, SIDE)},
        "state_names": squares.STATES,
        "action_names": squares.STATES,
        "horizon": 4,
        "period_s": 0.1,
        "pooling": PoolingChoice(view="attention", aggregation="concat"),
        "head": HeadChoice(kind="regression", hidden=16),
    }
    return PolicySpec.model_validate(fields | changes)


@pytest.fixture(scope="session")
def write_policy(tiny: QwenBackbone, prompter: Prompter) -> Callable[..., PolicySpec]:
    """Writes a whole policy folder with random weights; keyword arguments replace fields of policy.yaml."""

    def write(folder: Path, **changes: object) -> PolicySpec:
        spec = tiny_spec(**changes)
        torch.manual_seed(3)
        weights.save(tiny, folder / "backbone", torch.float16)
        prompter.save(folder / "backbone")
        parts = {"pool": view_pooling(spec), "aggregate": view_aggregation(spec)}
        head = {"head": action_head(spec)} if spec.head.kind != "hold" else {}
        policy.save(folder, spec, {**parts, **head})
        return spec

    return write


@pytest.fixture
def policy_folder(tmp_path: Path, write_policy: Callable[..., PolicySpec]) -> Path:
    write_policy(tmp_path / "policy")
    return tmp_path / "policy"


def edit_yaml(folder: Path, **changes: object) -> None:
    """Changes policy.yaml behind the policy's back, as a hand would."""
    file = folder / "policy.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))


def frames(seed: int = 0, cameras: tuple[str, ...] = ("front", "wrist"), side: int = SIDE) -> Frames:
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for name in cameras}
    return Frames(seq=7, stamp_ns=123, images=images)


def instruction(text: str = "pick up the red block", number: int = 3) -> Instruction:
    return Instruction(seq=1, stamp_ns=1, session=9, id=number, text=text)
