"""The exported dataset is read back with pyarrow alone, against the layout of LeRobot 3.0."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from recordings import START_NS, TWO_CAMERAS, action, features, frames, image, instruction, record_episodes
from rig import two_joint_spec

from control.clock import NS_PER_MS
from control.errors import ConfigError
from control.lerobot import export
from control.lerobot_files import aggregate, image_stats, vector_stats
from control.messages import Frames, Mode, State
from control.recording import RecordingWriter
from control.recording_images import ImageCodec

ROOT = Path(__file__).resolve().parents[2]
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture
def spec():
    return two_joint_spec(cameras=TWO_CAMERAS)


@pytest.fixture
def dataset(tmp_path, spec):
    """Two files of two episodes, one with JPEGs, and what is in them."""
    files = [
        record_episodes(tmp_path / "a.mcap", spec),
        record_episodes(tmp_path / "b.mcap", spec, first=2, images=ImageCodec("jpeg")),
    ]
    exported = export(files, tmp_path / "out")
    assert (exported.episodes, exported.rows, exported.dropped, exported.lost) == (4, 12 + 13 + 14 + 15, 0, [])
    return tmp_path / "out"


def test_info_describes_every_column(dataset):
    info = json.loads((dataset / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v3.0", 10, "two-joint")
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (4, 54, 2)
    assert info["splits"] == {"train": "0:4"} and info["video_path"] is None
    features = info["features"]
    assert features["action"] == {"dtype": "float32", "shape": [2], "names": ["a", "b"]}
    assert features["observation.images.front"]["dtype"] == "image"
    assert features["observation.images.front"]["shape"] == [24, 32, 3]
    data = pq.read_table(dataset / info["data_path"].format(chunk_index=0, file_index=0))
    assert data.column_names == list(features) and data.num_rows == 54
    shown = json.loads(data.schema.metadata[b"huggingface"])["info"]["features"]
    assert shown["observation.images.wrist"] == {"_type": "Image"} and list(shown) == list(features)
    assert str(data.schema.field("action").type) == "fixed_size_list<element: float>[2]"
    assert str(data.schema.field("timestamp").type) == "float" and str(data.schema.field("index").type) == "int64"


def test_rows_are_what_was_recorded(dataset):
    rows = pq.read_table(dataset / DATA).to_pylist()
    assert [row["index"] for row in rows] == list(range(54))
    assert [row["episode_index"] for row in rows] == [0] * 12 + [1] * 13 + [2] * 14 + [3] * 15
    assert [row["frame_index"] for row in rows[12:25]] == list(range(13))
    np.testing.assert_allclose([row["timestamp"] for row in rows[12:25]], np.arange(13) / 10, atol=1e-6)
    row = rows[12 + 7]
    np.testing.assert_allclose(row["observation.state"], [0.7, 1 + 1 / 3], atol=1e-6)
    np.testing.assert_allclose(row["action"], [7 / 7, -1 / 7], atol=1e-6)  # the label's first row, not the action's
    assert row["observation.images.front"]["path"] == "frame-000007.webp"
    picture = Image.open(io.BytesIO(row["observation.images.front"]["bytes"]))
    np.testing.assert_array_equal(np.asarray(picture), image((24, 32), 12 + 8))
    assert rows[30]["observation.images.front"]["path"].endswith(".jpg")


def test_episodes_and_tasks_point_at_their_rows(dataset):
    episodes = pq.read_table(dataset / EPISODES).to_pylist()
    assert [episode["length"] for episode in episodes] == [12, 13, 14, 15]
    ends = [(episode["dataset_from_index"], episode["dataset_to_index"]) for episode in episodes]
    assert ends == [(0, 12), (12, 25), (25, 39), (39, 54)]
    assert [episode["tasks"] for episode in episodes[:2]] == [["touch block 0"], ["touch block 1"]]
    places = {(one["data/chunk_index"], one["data/file_index"], one["meta/episodes/file_index"]) for one in episodes}
    assert places == {(0, 0, 0)}
    tasks = pq.read_table(dataset / "meta/tasks.parquet")
    assert tasks.column("__index_level_0__").to_pylist() == ["touch block 0", "touch block 1"]
    assert tasks.column("task_index").to_pylist() == [0, 1]
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]
    data = pq.read_table(dataset / DATA, columns=["task_index", "episode_index"]).to_pylist()
    assert {(row["episode_index"], row["task_index"]) for row in data} == {(0, 0), (1, 1), (2, 0), (3, 1)}


def test_statistics_are_those_of_the_rows(dataset):
    stats = json.loads((dataset / "meta/stats.json").read_text())
    rows = pq.read_table(dataset / DATA).to_pylist()
    for name in ("observation.state", "action"):
        values = np.array([row[name] for row in rows])
        for key, expected in (("min", values.min(0)), ("max", values.max(0)), ("mean", values.mean(0))):
            np.testing.assert_allclose(stats[name][key], expected, rtol=1e-6)
        np.testing.assert_allclose(stats[name]["std"], values.std(0), rtol=1e-6)
    assert stats["action"]["count"] == [54] and stats["index"]["max"] == [53]
    pixels = [np.asarray(Image.open(io.BytesIO(row["observation.images.wrist"]["bytes"]))) for row in rows]
    mean = np.concatenate([one.reshape(-1, 3) for one in pixels]).mean(0) / 255
    np.testing.assert_allclose(np.array(stats["observation.images.wrist"]["mean"])[:, 0, 0], mean, rtol=1e-6)
    first = pq.read_table(dataset / EPISODES).to_pylist()[0]
    np.testing.assert_allclose(first["stats/action/max"], np.array([row["action"] for row in rows[:12]]).max(0))
    assert first["stats/observation.images.front/count"] == [12]


def test_a_full_file_is_followed_by_another(tmp_path, spec, monkeypatch):
    monkeypatch.setattr("control.lerobot_files._FILE_BYTES", 6000)
    monkeypatch.setattr("control.lerobot_files._FILES_A_CHUNK", 2)
    file = record_episodes(tmp_path / "a.mcap", spec, episodes=6)
    export([file], tmp_path / "out")
    episodes = pq.read_table(tmp_path / "out" / EPISODES).to_pylist()
    places = [(one["data/chunk_index"], one["data/file_index"]) for one in episodes]
    assert places[0] == (0, 0) and places[-1][0] >= 1 and places == sorted(places)
    for one, (chunk, number) in zip(episodes, places, strict=True):
        table = pq.read_table(tmp_path / "out" / f"data/chunk-{chunk:03d}/file-{number:03d}.parquet").to_pylist()
        rows = [row for row in table if row["episode_index"] == one["episode_index"]]
        assert [rows[0]["index"], rows[-1]["index"] + 1] == [one["dataset_from_index"], one["dataset_to_index"]]


def test_the_histogram_gives_the_statistics_of_the_pixels():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256 // part, (40, 30, 3), dtype=np.uint8) for part in (1, 2, 3)]
    pixels = np.concatenate([one.reshape(-1, 3) for one in images]) / 255
    found = image_stats(images)
    for key in ("min", "max", "mean", "std"):
        expected = getattr(pixels, key)(0)
        np.testing.assert_allclose(found[key][:, 0, 0], expected, atol=1e-9)
    np.testing.assert_allclose(found["q90"][:, 0, 0], np.quantile(pixels, 0.9, axis=0), atol=1 / 255)
    assert found["q01"].shape == (3, 1, 1) and found["count"].tolist() == [3]


def test_statistics_of_parts_add_up_to_those_of_the_whole():
    values = np.random.default_rng(0).normal(size=(50, 3))
    whole, parts = vector_stats(values), aggregate([vector_stats(values[:13]), vector_stats(values[13:])])
    for key in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(parts[key], whole[key], rtol=1e-9)


def live(file, spec, modes, texts=None, skipped=()):
    """A live recording without episodes: an action each 100 ms, each mode held for that tick."""
    with RecordingWriter(file, spec, images=ImageCodec("webp")) as writer:
        for tick, mode in enumerate(modes):
            now_ns = START_NS + tick * 100 * NS_PER_MS
            for part in range(5):
                stamp_ns = now_ns + (part * 20 - 90) * NS_PER_MS
                writer.write(State(tick * 5 + part + 1, stamp_ns, np.array([0.1, 0.2])))
            writer.write(frames(spec, tick + 1, now_ns - 30 * NS_PER_MS))
            id_ = 1 + tick // 20
            writer.write(instruction(id_, now_ns - 1, texts[id_ - 1] if texts else f"touch {id_}"))
            if tick not in skipped:
                writer.write(action(tick + 1, now_ns, [[tick / 10, 0.0]], id_, mode))
    return file


def test_a_live_recording_is_one_episode_an_instruction(tmp_path, spec):
    exported = export([live(tmp_path / "a.mcap", spec, [Mode.RUN] * 50)], tmp_path / "out")
    assert (exported.episodes, exported.rows, exported.pauses) == (3, 50, 0)
    episodes = pq.read_table(tmp_path / "out" / EPISODES).to_pylist()
    found = [(one["length"], *one["tasks"]) for one in episodes]
    assert found == [(20, "touch 1"), (20, "touch 2"), (10, "touch 3")]
    rows = pq.read_table(tmp_path / "out" / DATA).to_pylist()
    np.testing.assert_allclose(rows[21]["action"], [2.1, 0.0], atol=1e-6)


def test_only_what_moved_the_robot_is_exported_and_a_pause_ends_an_episode(tmp_path, spec):
    modes = [Mode.INIT] * 3 + [Mode.RUN] * 5 + [Mode.HOLD] * 4 + [Mode.RUN] * 6
    exported = export([live(tmp_path / "a.mcap", spec, modes, skipped=(15,))], tmp_path / "out")
    assert (exported.episodes, exported.rows, exported.pauses) == (3, 10, 2)
    rows = pq.read_table(tmp_path / "out" / DATA, columns=["frame_index", "action"]).to_pylist()
    assert [round(row["action"][0] * 10) for row in rows] == [3, 4, 5, 6, 7, 12, 13, 14, 16, 17]
    assert [row["frame_index"] for row in rows] == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1]


def test_a_controller_that_began_again_keeps_its_instructions_apart(tmp_path, spec):
    with RecordingWriter(tmp_path / "a.mcap", spec, images=ImageCodec("webp")) as writer:
        for tick in range(10):
            now_ns = START_NS + tick * 100 * NS_PER_MS
            writer.write(State(tick, now_ns, np.zeros(2)))
            writer.write(frames(spec, tick, now_ns))
            if tick in (0, 6):
                writer.write(instruction(1, now_ns, f"touch {tick}"))
            writer.write(action(tick, now_ns, [[0.0, 0.0]]))
    export([tmp_path / "a.mcap"], tmp_path / "out")
    episodes = pq.read_table(tmp_path / "out" / EPISODES).to_pylist()
    assert [(one["length"], one["tasks"]) for one in episodes] == [(6, ["touch 0"]), (4, ["touch 6"])]


def test_actions_without_a_young_state_or_capture_are_dropped_and_counted(tmp_path, spec):
    with RecordingWriter(tmp_path / "a.mcap", spec) as writer:
        writer.write(instruction(1, START_NS, "touch"))
        for tick in range(20):
            now_ns = START_NS + tick * 100 * NS_PER_MS
            writer.write(State(tick, now_ns, np.zeros(2)))
            if tick in (2, 3, 4):
                writer.write(frames(spec, tick, now_ns))
            writer.write(action(tick, now_ns, [[0.0, 0.0]]))
    exported = export([tmp_path / "a.mcap"], tmp_path / "out")
    assert (exported.rows, exported.dropped) == (8, 12)  # from tick 2 to 500 ms after tick 4


def test_only_successes_leaves_the_others_out(tmp_path, spec):
    file = record_episodes(tmp_path / "a.mcap", spec, episodes=3)
    assert export([file], tmp_path / "out", only_successes=True).episodes == 2
    with pytest.raises(ConfigError, match="no episode to export in .*a.mcap: no episode is a success"):
        unjudged = live(tmp_path / "l-a.mcap", spec, [Mode.RUN] * 3)
        export([unjudged], tmp_path / "o2", only_successes=True)


def test_a_cut_recording_is_exported_and_the_loss_is_stated(tmp_path, spec):
    file = record_episodes(tmp_path / "a.mcap", spec, episodes=1, steps=50)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * 0.6)])
    exported = export([file], tmp_path / "out")
    assert 0 < exported.rows < 50 and "was not closed" in exported.lost[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "other"}, "expected name two-joint as in the recordings before, got other"),
        (
            {"action_names": ("a", "c")},
            r"expected action_names \('a', 'b'\) as in .* before, got \('a', 'c'\)",
        ),
        ({"state_names": ("a", "c")}, "expected state_names"),
        ({"cameras": {"front": (24, 32)}}, "expected cameras"),
    ],
)
def test_recordings_of_different_robots_are_not_mixed(tmp_path, spec, changes, said):
    files = [record_episodes(tmp_path / "a.mcap", spec)]
    files.append(record_episodes(tmp_path / "b.mcap", dataclasses.replace(spec, **changes)))
    with pytest.raises(ConfigError, match=f"b.mcap: {said}"):
        export(files, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mcap", "b.mcap"]


def test_recordings_at_different_rates_are_not_mixed(tmp_path, spec):
    with RecordingWriter(tmp_path / "b.mcap", spec) as writer:
        writer.write(instruction(1, START_NS, "touch"))
        for tick in range(5):
            writer.write(action(tick, START_NS + tick * 50 * NS_PER_MS, [[0.0, 0.0]]))
    with pytest.raises(ConfigError, match="b.mcap: expected actions every 0.1 s as before, got 0.05 s"):
        export([record_episodes(tmp_path / "a.mcap", spec), tmp_path / "b.mcap"], tmp_path / "out")


@pytest.mark.parametrize(
    ("state", "target", "said"),
    [
        ([0.0, np.nan], 0.0, "state at .* ns is NaN or infinite in b"),
        ([0.0, 1e300], 0.0, "state at .* ns is NaN or infinite in b"),
        ([0.0, 0.0], np.inf, "action at .* ns is NaN or infinite in a"),
        ([0.0, 0.0, 0.0], 0.0, "state at .* ns: expected 2 values, got 3"),
    ],
)
def test_nan_or_a_wrong_width_is_refused_by_name(tmp_path, spec, state, target, said):
    with RecordingWriter(tmp_path / "a.mcap", spec) as writer:
        writer.write(instruction(1, START_NS, "touch"))
        for tick in range(3):
            now_ns = START_NS + tick * 100 * NS_PER_MS
            writer.write(State(tick, now_ns, np.array(state)))
            writer.write(frames(spec, tick, now_ns))
            writer.write(action(tick, now_ns, [[target, 0.0]]))
    with pytest.raises(ConfigError, match=f"a.mcap: {said}"):
        export([tmp_path / "a.mcap"], tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_a_missing_camera_is_refused_by_name(tmp_path, spec):
    with RecordingWriter(tmp_path / "a.mcap", spec) as writer:
        writer.write(instruction(1, START_NS, "touch"))
        for tick in range(3):
            now_ns = START_NS + tick * 100 * NS_PER_MS
            writer.write(State(tick, now_ns, np.zeros(2)))
            writer.write(Frames(tick, now_ns, {"front": image((24, 32), tick)}))
            writer.write(action(tick, now_ns, [[0.0, 0.0]]))
    with pytest.raises(ConfigError, match="a.mcap: frame 0 has no image of camera wrist"):
        export([tmp_path / "a.mcap"], tmp_path / "out")


def test_nothing_to_export_is_said_with_its_reason(tmp_path, spec):
    with pytest.raises(ConfigError, match="nothing to export: name at least one recording"):
        export([], tmp_path / "out")
    with RecordingWriter(tmp_path / "a.mcap", spec) as writer:
        writer.write(features(1, START_NS))
    with pytest.raises(ConfigError, match="no episode to export in .*a.mcap: they hold no labels, and no act"):
        export([tmp_path / "a.mcap"], tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="out exists already; name another folder"):
        export([tmp_path / "a.mcap"], tmp_path / "out")


def test_a_full_disk_leaves_no_half_dataset(tmp_path, spec):
    file = record_episodes(tmp_path / "a.mcap", spec, steps=60)
    script = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from control.errors import RecordingError
from control.lerobot import export
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    export([Path({str(file)!r})], Path({str(tmp_path / "out")!r}))
except RecordingError as error:
    print(error, error.exit_code)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "cannot be written" in result.stdout and result.stdout.endswith("is the disk full? 1\n"), result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.mcap"]


def test_a_missing_pyarrow_names_its_extra(tmp_path, spec, monkeypatch):
    file = record_episodes(tmp_path / "a.mcap", spec)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'saccade\[lerobot\]'"):
        export([file], tmp_path / "out")
