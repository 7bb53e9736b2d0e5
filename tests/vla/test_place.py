"""One training at a time in a folder, whatever becomes of the one before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vla.errors import TrainingFault
from vla.training.curriculum import prepare
from vla.training.place import trained_by_one, work_folder
from vla.training.train_command import train_app

ROOT = Path(__file__).resolve().parents[2]
HOLDING = """
import sys, time
from pathlib import Path
from vla.training.place import trained_by_one
with trained_by_one(Path(sys.argv[1]), is_stage=len(sys.argv) > 2):
    print("held", flush=True)
    time.sleep(100)
"""


@contextmanager
def holding(out: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that trains into `out`, or a stage of it."""
    command = [sys.executable, "-c", HOLDING, str(out), *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_training_into_a_folder_is_refused_until_the_first_one_is_gone(tmp_path: Path) -> None:
    out = tmp_path / "policy"
    with holding(out) as first:
        with (
            pytest.raises(TrainingFault, match=rf"policy is being trained already, by process {first.pid}: wait for"),
            trained_by_one(out),
        ):
            pass
        with trained_by_one(tmp_path / "other"):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        with trained_by_one(out):
            pass


def test_a_stage_goes_on_beside_its_training_and_keeps_the_next_one_out_when_that_was_killed(tmp_path: Path) -> None:
    out = tmp_path / "policy"
    with holding(out) as first, holding(out, "stage") as stage:
        first.send_signal(signal.SIGKILL)
        first.wait()
        with pytest.raises(TrainingFault, match=f"already, by process {stage.pid}: wait"), trained_by_one(out):
            pass
        stage.send_signal(signal.SIGKILL)
        stage.wait()
        with trained_by_one(out):
            pass


def test_beginning_anew_removes_all_but_the_lock(tmp_path: Path) -> None:
    out = tmp_path / "policy"
    with trained_by_one(out):
        (work_folder(out) / "rounds").mkdir()
        (work_folder(out) / "backbone.json").write_text("{}")
        prepare(out, overwrite=True)
        assert [path.name for path in work_folder(out).iterdir()] == ["lock"]
        with pytest.raises(TrainingFault, match=f"by process {os.getpid()}: wait"), trained_by_one(out):
            pass


def test_the_command_trains_nothing_where_another_one_is_at_work(tmp_path: Path) -> None:
    app = train_app(lambda tasks, max_age_ms: None, "touch")  # type: ignore[arg-type, return-value]
    with trained_by_one(tmp_path / "policy"):
        result = CliRunner().invoke(app, ["--out", str(tmp_path / "policy"), "--data", str(tmp_path)])
    assert isinstance(result.exception, TrainingFault)
    assert "policy is being trained already, by process" in str(result.exception)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(TrainingFault, match=r"file/.policy.training cannot be written \(Not a directory\)"),
        trained_by_one(tmp_path / "file" / "policy"),
    ):
        pass
