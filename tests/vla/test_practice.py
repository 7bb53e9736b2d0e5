"""A head that practises on facts it is told."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.vla import squares
from tests.vla.test_train import ROBOT, SHAPE, SIDE, VIEWS
from vla.errors import TrainingFault
from vla.head import RegressionHead
from vla.policy import load_head
from vla.policy_spec import load_spec
from vla.training import practice
from vla.training import train as train_module
from vla.training.checkpoint import Progress
from vla.training.dataset import Rehearsal
from vla.training.parallel import Group
from vla.training.practice import Actor, practise
from vla.training.train import Schedule, train


def head() -> RegressionHead:
    torch.manual_seed(0)
    return RegressionHead(2, 8, squares.STATES, squares.STATES, squares.HORIZON, 0.1, hidden=64, readout=squares.FACTS)


def situations(current: Callable[[], Actor | None] = lambda: None) -> Iterator[Rehearsal]:
    for batch in squares.batches(1, 64, 1, 14):
        assert batch.rehearsal is not None
        yield batch.rehearsal


def practised(
    minutes: float = 0.05, source: Callable = situations, **options: object
) -> tuple[RegressionHead, Progress, list[str]]:
    learning, progress, lines = head(), Progress(), []
    with Group(torch.device("cpu")) as group:
        practise(learning, source, group, progress, minutes, lines.append, lambda average: None, **options)  # type: ignore[arg-type]
    return learning, progress, lines


def error(acting: RegressionHead) -> float:
    """Of the last row, on situations that were not met."""
    told = next(itertools.islice(situations(), 10_000, None))
    targets = Actor(acting).act(told.facts, told.states, told.feature_age_ms)
    return float(np.abs(targets - told.targets).mean())


def test_practice_teaches_to_act_and_leaves_the_reading_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(practice, "TOLD_EVERY", 10)
    learnt, progress, lines = practised()
    fresh = head()
    assert progress.practised >= 10 and progress.minutes >= 0.05 and progress.step == 0
    assert error(learnt) < 0.6 * error(fresh)
    for name, value in learnt.named_parameters():
        untouched = name.startswith(("readout", "token_norm"))
        assert torch.equal(value, fresh.get_parameter(name)) is untouched, name
    assert lines and lines[0].split("rehearsed")[0].endswith("practice    10 ")
    assert [row["rehearsed"] > 0 for row in progress.curve] == [True] * len(lines)


def test_episodes_of_its_own_begin_after_the_first_steps_and_are_acted_by_the_averaged_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(practice, "FIRST_OWN", 3)
    met: list[Actor | None] = []

    def source(current: Callable[[], Actor | None]) -> Iterator[Rehearsal]:
        for told in situations():
            met.append(current())
            yield told

    practised(0.01, source)
    assert met[:3] == [None] * 3 and all(isinstance(actor, Actor) for actor in met[3:]) and len(met) > 4
    with pytest.raises(TypeError, match="sees nothing"):
        met[-1].features({}, [])  # type: ignore[union-attr]


def test_situations_with_nan_end_practice_with_the_reason() -> None:
    def damaged(current: Callable[[], Actor | None]) -> Iterator[Rehearsal]:
        for told in situations():
            yield replace(told, targets=np.full_like(told.targets, np.nan))  # type: ignore[type-var]

    with pytest.raises(TrainingFault, match="practice, step 0: the gradients hold NaN"):
        practised(1.0, damaged)


def test_practice_is_saved_as_it_goes_and_is_not_repeated_when_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []

    def run(batches: Callable, **options: bool) -> None:
        train(
            out_folder=tmp_path / "policy",
            batches=batches,
            validation_batches=[],
            robot=ROBOT,
            shape=SHAPE,
            wordings=squares.WORDINGS,
            schedule=Schedule(minutes=0.1, practice=0.4, save_every_minutes=0.0),
            log=lines.append,
            situations=lambda seed, current: situations(current),
            **options,
        )

    def batches(seed: int) -> Iterator[squares.SquaresBatch]:
        return squares.batches(seed + 1, 8, VIEWS, SIDE, acting=2)

    def interrupt(*arguments: object) -> Iterator[squares.SquaresBatch]:
        raise KeyboardInterrupt  # at the first batch of the training proper
        yield

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_module, "_watched", interrupt)
        run(batches)
    spec = load_spec(tmp_path / "policy")
    done = spec.provenance["practice_steps"]
    assert isinstance(done, int) and done > 5 and spec.head.readout == squares.FACTS
    assert 0.0 <= spec.feature_age_ms[0] < spec.feature_age_ms[1] <= 600.0  # those of the practice
    assert load_head(tmp_path / "policy").act(np.zeros((2, 128), np.float32), np.zeros(7), 0.0).shape == (8, 7)
    run(batches, resume=True)
    after = load_spec(tmp_path / "policy").provenance
    assert after["practice_steps"] == done and after["steps"] > 0
    assert any("going on at step" in line for line in lines)


@pytest.mark.parametrize(
    "wrong", [{"practice": 1.1}, {"practice": -0.1}, {"practice": 0.5, "minutes": None, "steps": 3}]
)
def test_a_share_of_practice_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(TrainingFault, match="practice must be a share of the minutes, 0 to 1, got"):
        Schedule(**({"minutes": 1.0} | wrong))  # type: ignore[arg-type]
