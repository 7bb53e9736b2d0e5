"""Training of what comes after a backbone that stays as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.vla.conftest import tiny_spec
from vla.errors import TrainingFault
from vla.policy import load_head
from vla.policy_spec import HeadChoice, identify, load_spec
from vla.training.features import FeatureSet
from vla.training.parts import HeadSchedule, TrainedParts, held_out_error, train_parts


def toy(seed: int, frames: int = 400, unpooled: bool = False) -> FeatureSet:
    """Frames whose first token value says where joint 1 is to go from wherever it is; a tick 0 to 150 ms later."""
    rng = np.random.default_rng(seed)
    shape = (frames, 2, 4, 32) if unpooled else (frames, 2, 32)
    tokens = rng.normal(size=shape).astype(np.float16)
    goal = np.tanh(tokens.reshape(frames, -1)[:, 0].astype(np.float32))
    ticks = np.repeat(np.arange(frames), 4)
    states = rng.normal(0.0, 0.5, (4 * frames, 7)).astype(np.float32)
    targets = np.repeat(states[:, None], 4, axis=1)
    targets[:, :, 0] = goal[ticks, None]
    stamps = np.tile(np.arange(4) * 50.0, frames) + 1e4 * ticks
    first = np.arange(frames) * 4
    return FeatureSet(tokens, first, first + 3, np.concatenate([stamps[first], stamps]), states, targets)


def quiet(line: str) -> None:
    pass


@pytest.mark.parametrize("kind", ["regression", "flow-matching"])
def test_a_head_learns_what_kept_features_say(kind: str) -> None:
    parts = TrainedParts(tiny_spec(head=HeadChoice(kind=kind, hidden=64)), trains_pooling=False)  # type: ignore[arg-type]
    kept, held_out = toy(1, 2000), toy(2)
    guess = float(np.abs(held_out.targets[:, 0] - held_out.states).mean())
    curve = train_parts(parts, kept, held_out, HeadSchedule(600, 128, 3e-3), quiet, renormalise=True)
    assert curve[-1]["held_out_joint_mean"] < 0.3 * guess
    assert [row["step"] for row in curve] == [200, 400, 600]


def test_pooling_is_trained_where_image_tokens_are_kept() -> None:
    torch.manual_seed(0)
    parts = TrainedParts(tiny_spec(head=HeadChoice(kind="regression", hidden=64)), trains_pooling=True)
    before = {name: value.clone() for name, value in parts.state_dict().items()}
    train_parts(parts, toy(1, unpooled=True), None, HeadSchedule(20, 64), quiet, renormalise=True)
    moved = {name for name, value in parts.state_dict().items() if not torch.equal(value, before[name])}
    assert {"pool.queries", "pool.positions", "head.out.weight"} <= moved


def test_a_backbones_pooling_stays_where_only_the_head_is_trained() -> None:
    parts = TrainedParts(tiny_spec(), trains_pooling=False)
    before = parts.pool.queries.detach().clone()
    train_parts(parts, toy(1), None, HeadSchedule(20, 64), quiet)
    assert torch.equal(parts.pool.queries, before)


def test_training_ends_early_without_progress_and_refuses_nothing() -> None:
    parts = TrainedParts(tiny_spec(), trains_pooling=False)
    curve = train_parts(parts, toy(1), toy(2), HeadSchedule(4000, 32, 1e-9, patience=2), quiet, renormalise=True)
    assert 600 <= curve[-1]["step"] < 4000
    with pytest.raises(TrainingFault, match="nothing to train: 0 steps"):
        train_parts(parts, toy(1), None, HeadSchedule(0), quiet)


def test_the_saved_policy_acts_as_the_parts_that_were_trained(policy_folder: Path) -> None:
    spec = load_spec(policy_folder)
    parts = TrainedParts(spec, trains_pooling=False)
    parts.load(policy_folder)
    train_parts(parts, toy(1), None, HeadSchedule(30, 64), quiet)
    before = identify(policy_folder)
    assert parts.save(policy_folder, spec) == identify(policy_folder) != before
    drawn = toy(3).draw(np.random.default_rng(0), 1, 0.0)
    head = parts.head
    steps = head.predict(drawn["tokens"], drawn["states"], drawn["age_ms"])[0] * head.step_std + head.step_mean
    chunk = load_head(policy_folder).act(
        drawn["tokens"][0].numpy(), drawn["states"][0].numpy().astype(np.float64), float(drawn["age_ms"][0])
    )
    np.testing.assert_allclose(chunk, drawn["states"][0].numpy() + steps.numpy(), atol=5e-3)
    assert held_out_error(parts, toy(4), 100.0)["joint"] >= 0
