"""Policies that a training cannot go on from, said before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.vla.conftest import edit_yaml
from tests.vla.test_parts import toy
from tests.vla.test_recorded import WINDOW, quiet
from vla.errors import TrainingFault
from vla.policy_spec import HeadChoice, load_spec
from vla.training.begin import check_start
from vla.training.from_recordings import train_on_kept
from vla.training.parts import HeadSchedule
from vla.training.train_command import train_app

OTHER = {"samples": 50, "rate_hz": 200.0}


@pytest.mark.parametrize(
    ("policy", "words", "said"),
    [
        (
            {},
            (),
            "policy: its head has no readout, most likely because it was trained on recordings, and the simulator"
            " teaches through one: go on with --data, or train on the simulator from nothing, without --from",
        ),
        ({"head": {"kind": "hold"}}, (), "policy: its head is of kind 'hold', which was never trained: give it one"),
        (
            {"pooling": {"view": "mean"}},
            ("--data", "d"),
            "policy end to end: its pooling.view is 'mean', and only 'attention' is trained with the backbone: use",
        ),
        (
            {},
            ("--data", "d", "--window", "5"),
            "policy: its head takes no window of states, asked for a window of 5 states at 100 Hz: leave --window out",
        ),
        (
            {"window": OTHER},
            ("--data", "d", "--workers", "2"),
            "its head takes a window of 50 states at 200 Hz, asked for no window of states: use --data with"
            " --window 50 --window-hz 200",
        ),
        (
            {"window": OTHER},
            ("--data", "d", "--window", "50"),
            "a window of 50 states at 200 Hz, asked for a window of 50 states at 100 Hz: use --data with --window 50",
        ),
    ],
)
def test_a_head_that_the_data_cannot_teach_is_refused(
    tmp_path: Path, write_policy: Callable[..., object], policy: dict[str, object], words: tuple[str, ...], said: str
) -> None:
    write_policy(tmp_path / "policy", **policy)
    app = train_app(lambda tasks, max_age_ms: object(), "touch")  # type: ignore[arg-type, return-value]
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "out"), "--from", str(tmp_path / "policy"), *words])
    assert isinstance(result.exception, TrainingFault)
    assert said in str(result.exception) and "cannot go on from" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_policy_of_the_same_window_is_gone_on_from(tmp_path: Path, write_policy: Callable[..., object]) -> None:
    write_policy(tmp_path / "policy", window=WINDOW.model_dump())
    assert check_start(tmp_path / "policy", WINDOW, needs_readout=False) == load_spec(tmp_path / "policy")


def test_kept_features_without_the_window_that_a_policy_takes_are_refused(tmp_path: Path, policy_folder: Path) -> None:
    edit_yaml(policy_folder, window=OTHER)
    for name in ("round-00-0", "held-out"):
        toy(1, 4).save(tmp_path / f"{name}.safetensors")
    with pytest.raises(TrainingFault, match=r"policy takes a window of 50 states, which the features in .* lack"):
        train_on_kept(tmp_path / "out", policy_folder, tmp_path, HeadChoice(kind="regression"), HeadSchedule(1), quiet)
