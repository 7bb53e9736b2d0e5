"""`launch.py export`: recordings in, a LeRobot dataset out, and what it says about it."""

import json
from pathlib import Path

import pytest
from recordings import TWO_CAMERAS, record_episodes
from rig import two_joint_spec
from typer.testing import CliRunner

from control.errors import ConfigError
from control.record_commands import app


@pytest.fixture
def folder(tmp_path) -> Path:
    spec = two_joint_spec(cameras=TWO_CAMERAS)
    (tmp_path / "demos").mkdir()
    for number in range(2):
        record_episodes(tmp_path / "demos" / f"{number}.mcap", spec, first=2 * number)
    (tmp_path / "demos" / "plan.json").write_text("{}")
    return tmp_path / "demos"


def export(*words) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def episodes_in(dataset: Path) -> int:
    return json.loads((dataset / "meta" / "info.json").read_text())["total_episodes"]


def test_a_folder_stands_for_all_its_recordings(folder, tmp_path):
    said = export(folder, "--out", tmp_path / "dataset")
    assert "4 episodes, 54 rows from 2 files, LeRobot v3.0" in said
    assert episodes_in(tmp_path / "dataset") == 4


def test_only_successes_leaves_the_others_out(folder, tmp_path):
    assert "1 episodes" in export(folder / "0.mcap", "--out", tmp_path / "dataset", "--only-successes")
    assert episodes_in(tmp_path / "dataset") == 1


def test_what_was_lost_of_a_cut_file_is_told(folder, tmp_path):
    whole = (folder / "1.mcap").read_bytes()
    (folder / "1.mcap").write_bytes(whole[: len(whole) * 2 // 5])
    assert "1.mcap was not closed" in export(folder, "--out", tmp_path / "dataset").replace("\n", " ")


def test_a_folder_without_recordings_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no \*.mcap in .*; `launch.py record` writes them"):
        export(tmp_path, "--out", tmp_path / "dataset")


def test_an_existing_dataset_is_not_touched(folder, tmp_path):
    (tmp_path / "dataset").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        export(folder, "--out", tmp_path / "dataset")
