"""Training on recordings: what is taken from them, what is refused, and both ways of training."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from control.clock import NS_PER_MS
from control.messages import Frames, Instruction, RobotSpec, State
from control.recording import RecordingWriter
from control.recording_format import Label
from control.recording_images import ImageCodec
from tests.recordings import action
from tests.vla import squares
from tests.vla.conftest import edit_yaml
from tests.vla.test_parts import toy
from vla.errors import TrainingFault
from vla.policy import load_head
from vla.policy_spec import HeadChoice, WindowChoice, load_spec, verify
from vla.training.commands import TrainOptions, train_on_recordings
from vla.training.features import FeatureSet
from vla.training.from_recordings import train_end_to_end, train_head_only, train_on_kept
from vla.training.parts import HeadSchedule
from vla.training.recorded import Recorded, batches, held_out_batches, load_recordings
from vla.training.train import Schedule

ROOT = Path(__file__).resolve().parents[2]
SIDE, HORIZON = 56, 8
ROBOT = squares.robot(2, SIDE)
WINDOW = WindowChoice(samples=5, rate_hz=100.0)


def quiet(line: str) -> None:
    pass


def record(
    file: Path, episodes: int = 3, labels: bool = True, robot: RobotSpec = ROBOT, ticks: int = 12, window: int = 0
) -> Path:
    """Episodes with a frame and a tick every 100 ms; state value 0 of tick i is i / 10, its target 1 further. With a
    `window` each state but the first one of an episode has one, which counts up to it in hundredths.
    """
    rng = np.random.default_rng(len(file.name))
    stamp = 5_000_000_000
    with RecordingWriter(file, robot, images=ImageCodec("webp")) as writer:
        for number in range(episodes):
            text = squares.WORDINGS[number % len(squares.WORDINGS)]
            writer.begin_episode(stamp, number, text, seed=number)
            writer.write(Instruction(number, stamp, 1, number + 1, text))
            for tick in range(ticks):
                stamp += 100 * NS_PER_MS
                images = {
                    name: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for name, size in robot.cameras.items()
                }
                writer.write(Frames(tick, stamp, images))
                values = np.full(len(robot.state_names), tick / 10)
                rows = np.arange(1 - window, 1)[:, None] / 100 + values
                writer.write(State(tick, stamp, values, rows if window and tick else None))
                chunk = np.tile(values + 1, (HORIZON, 1)) + np.arange(HORIZON)[:, None] / 10
                if labels:
                    writer.write(Label(stamp, chunk[:4]))
                else:
                    writer.write(action(tick, stamp, chunk, instruction_id=number + 1))
            writer.end_episode(stamp + 1, success=True)
            stamp += 3_000_000_000
    return file


def test_labels_become_chunks_that_go_on_with_their_last_row(tmp_path: Path) -> None:
    found = load_recordings([record(tmp_path / "a.mcap")], HORIZON, quiet)
    assert len(found.episodes) == 2 and len(found.held_out) == 1 and found.period_s == 0.1
    episode = found.episodes[0]
    np.testing.assert_allclose(episode.targets[3, :, 0], [1.3, 1.4, 1.5, 1.6, 1.6, 1.6, 1.6, 1.6], atol=1e-6)
    assert episode.text in squares.WORDINGS and len(episode.frames) == 12


def test_without_labels_the_chunk_is_what_was_commanded_next(tmp_path: Path) -> None:
    found = load_recordings([record(tmp_path / "a.mcap", labels=False)], HORIZON, quiet)
    targets = found.episodes[0].targets
    np.testing.assert_allclose(targets[0, :, 0], 1 + np.arange(8) / 10, atol=1e-6)
    np.testing.assert_allclose(targets[10, :, 0], [2.0, *[2.1] * 7], atol=1e-6)


def test_a_batch_pairs_frames_with_later_states_of_their_episode(tmp_path: Path) -> None:
    found = load_recordings([record(tmp_path / "a.mcap")], HORIZON, quiet)
    batch = next(batches(found.episodes, 0, 16, 5, 300.0))
    assert batch.states.shape == (16, 5, 7) and batch.targets.shape == (16, 5, 8, 7)
    assert set(np.unique(batch.feature_age_ms)) == {0.0, 100.0, 200.0, 300.0}
    frame_s = batch.states[:, :, 0] - batch.feature_age_ms / 1000
    np.testing.assert_allclose(frame_s, np.repeat(frame_s[:, :1], 5, axis=1), atol=1e-6)
    again = next(batches(found.episodes, 0, 16, 5, 300.0))
    np.testing.assert_array_equal(batch.images["view0"], again.images["view0"])
    held_out = held_out_batches(found, 300.0)[0]
    assert set(held_out.instructions) == {found.held_out[0].text}


def test_windows_are_those_of_the_states_that_are_acted_on(tmp_path: Path) -> None:
    found = load_recordings([record(tmp_path / "a.mcap", window=5)], HORIZON, quiet, window=WINDOW)
    episode = found.episodes[0]
    assert episode.windows is not None and episode.windows.shape == (11, 5, 7)  # the first state has none
    batch = next(batches(found.episodes, 0, 16, 3, 300.0))
    assert batch.windows is not None and batch.windows.shape == (16, 3, 5, 7)
    np.testing.assert_array_equal(batch.windows[:, :, -1], batch.states)
    np.testing.assert_allclose(batch.windows[:, :, 0], batch.states - 0.04, atol=1e-6)


@pytest.mark.parametrize(("recorded", "said"), [(0, "got none"), (7, "got 7")])
def test_recordings_without_the_window_that_is_asked_for_are_refused(tmp_path: Path, recorded: int, said: str) -> None:
    record(tmp_path / "a.mcap", window=recorded)
    with pytest.raises(TrainingFault, match=f"a window of 5 samples, {said}: record a run with --set robot.history"):
        load_recordings([tmp_path], HORIZON, quiet, window=WINDOW)


@pytest.mark.parametrize("head_only", [False, True])
def test_a_head_learns_to_use_its_window(tmp_path: Path, write_policy: Callable[..., object], head_only: bool) -> None:
    found = load_recordings([record(tmp_path / "a.mcap", episodes=4, window=5)], HORIZON, quiet, window=WINDOW)
    head, window = HeadChoice(kind="regression", hidden=32), WINDOW
    if head_only:
        cameras = {"view0": (SIDE, SIDE), "view1": (SIDE, SIDE)}
        write_policy(tmp_path / "begin", cameras=cameras, pooling={"view": "mean"}, head={"kind": "hold"})
        steps = HeadSchedule(50, 64, max_age_ms=300.0)
        train_head_only(tmp_path / "out", found, tmp_path / "begin", head, HORIZON, steps, quiet, window=window)
    else:
        schedule = Schedule(steps=3, measure_every=1)
        train_end_to_end(tmp_path / "out", found, head, HORIZON, schedule, 300.0, quiet, window=window)
    spec = verify(tmp_path / "out")
    assert spec.window == window and load_head(tmp_path / "out").window_samples == 5
    tokens = np.zeros((spec.tokens, spec.width), np.float32)
    rest, rising = np.full((5, 7), 0.5), 0.5 + np.arange(-4, 1)[:, None] * np.full((1, 7), 0.1)
    chunks = [load_head(tmp_path / "out").act(tokens, np.full(7, 0.5), 100.0, rows) for rows in (rest, rising)]
    assert chunks[0].shape == (8, 7) and not np.allclose(*chunks)


def test_recordings_of_two_robots_are_not_mixed(tmp_path: Path) -> None:
    record(tmp_path / "a.mcap")
    record(tmp_path / "b.mcap", robot=squares.robot(1, SIDE))
    with pytest.raises(ValueError, match=r"b.mcap: expected cameras .* as in the recordings before"):
        load_recordings([tmp_path], HORIZON, quiet)


def test_recordings_at_another_rate_than_the_robots_are_refused(tmp_path: Path) -> None:
    faster = replace(ROBOT, action_period_s=0.05)
    live, labelled = record(tmp_path / "a.mcap", labels=False, robot=faster), record(tmp_path / "b.mcap", robot=faster)
    with pytest.raises(
        TrainingFault, match=r"a.mcap: expected actions every 0.05 s, as robot 'squares' says, got 0.1 s"
    ):
        load_recordings([live], HORIZON, quiet)
    assert load_recordings([labelled], HORIZON, quiet).period_s == 0.05  # labels have the robot's own period
    with pytest.raises(ValueError, match=r"c.mcap: expected action_period_s 0.05 as in the recordings before, got 0.1"):
        load_recordings([labelled, record(tmp_path / "c.mcap")], HORIZON, quiet)


def rising(file: Path, host_hz: float, samples: int = 20) -> Path:
    """A run whose states rise, 50 a second, each with a window of what was measured `host_hz` times a second."""
    with RecordingWriter(file, ROBOT, images=ImageCodec("webp")) as writer:
        writer.write(Instruction(1, 10**9, 1, 1, squares.WORDINGS[0]))
        for count in range(60):
            stamp, now_s = 10**9 + count * 20 * NS_PER_MS, count / 50
            rows = now_s - np.arange(samples - 1, -1, -1)[:, None] / host_hz
            writer.write(State(count, stamp, np.full(7, now_s), np.tile(rows, (1, 7)) if count > 30 else None))
            if count % 5 == 0:
                images = {name: np.zeros((*size, 3), np.uint8) for name, size in ROBOT.cameras.items()}
                writer.write(Frames(count, stamp, images))
                writer.write(action(count, stamp, np.full((1, 7), now_s)))
    return file


def test_windows_at_another_rate_than_is_asked_for_are_refused(tmp_path: Path) -> None:
    window = WindowChoice(samples=20, rate_hz=100.0)
    said: list[str] = []
    found = load_recordings([rising(tmp_path / "a.mcap", 100.0)], HORIZON, said.append, window)
    assert found.episodes[0].windows is not None and not any("do not tell the rate" in line for line in said)
    with pytest.raises(TrainingFault, match=r"b.mcap: expected windows of states at 100 Hz, got about 200 Hz: give"):
        load_recordings([rising(tmp_path / "b.mcap", 200.0)], HORIZON, quiet, window)
    load_recordings([record(tmp_path / "c.mcap", window=5)], HORIZON, said.append, WINDOW)
    assert any("do not tell the rate of their windows; taken to be 100 Hz" in line for line in said)


def test_nothing_to_train_on_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingFault, match="no recording in .*`launch.py record` writes"):
        load_recordings([tmp_path], HORIZON, quiet)
    record(tmp_path / "empty.mcap", episodes=0)
    with pytest.raises(TrainingFault, match="hold no episode to train on"):
        load_recordings([tmp_path], HORIZON, quiet)


def test_a_cut_recording_is_trained_on_up_to_its_end_and_the_loss_is_said(tmp_path: Path) -> None:
    file = record(tmp_path / "a.mcap", episodes=6)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 3])
    said: list[str] = []
    found = load_recordings([file], HORIZON, said.append)
    assert 0 < len(found.episodes) + len(found.held_out) < 6
    assert any("a.mcap" in line and "lost" in line or "missing" in line for line in said)


def test_end_to_end_on_recordings_leaves_a_policy_that_acts(tmp_path: Path) -> None:
    found = load_recordings([record(tmp_path / "a.mcap")], HORIZON, quiet)
    head = HeadChoice(kind="regression", hidden=32)
    train_end_to_end(tmp_path / "policy", found, head, HORIZON, Schedule(steps=3, measure_every=1), 300.0, quiet)
    spec = verify(tmp_path / "policy")
    assert spec.fits(ROBOT) == [] and spec.feature_age_ms == (0.0, 300.0)
    assert str(spec.provenance["recordings"]).startswith("a.mcap ") and str(tmp_path) not in str(spec.provenance)
    assert (spec.provenance["episodes"], spec.provenance["frames"], spec.provenance["max_age_ms"]) == (2, 24, 300.0)
    assert load_head(tmp_path / "policy").act(np.zeros((2, 128), np.float32), np.zeros(7), 100.0).shape == (8, 7)


def test_a_training_goes_on_with_the_same_recordings_and_ages_only(tmp_path: Path) -> None:
    def train(max_age_ms: float = 300.0) -> None:
        found = load_recordings([tmp_path / "demos"], HORIZON, quiet)
        head = HeadChoice(kind="regression", hidden=32)
        train_end_to_end(tmp_path / "policy", found, head, HORIZON, Schedule(steps=1), max_age_ms, quiet)

    (tmp_path / "demos").mkdir()
    record(tmp_path / "demos" / "a.mcap", episodes=2)
    train()
    train()
    with pytest.raises(TrainingFault, match=r"max_age_ms was 300.0, is now 200.0"):
        train(200.0)
    record(tmp_path / "demos" / "b.mcap", episodes=2)
    with pytest.raises(TrainingFault, match=r"recordings was a.mcap \w{12}, is now a.mcap \w{12}, b.mcap \w{12}"):
        train()


def test_recordings_are_trained_on_in_several_processes_for_so_many_steps(tmp_path: Path) -> None:
    record(tmp_path / "a.mcap", episodes=2)
    options = TrainOptions(
        out=tmp_path / "policy",
        start_from=None,
        head_only=False,
        minutes=9.0,
        rounds=0,
        frames=64,
        max_age_ms=300.0,
        head=None,
        patience=None,
        workers=2,
        device="cpu",
        seed=1,
        overwrite=False,
        steps=1,
    )
    train_on_recordings(options, [tmp_path / "a.mcap"], ROOT / "launch.py", quiet, "")
    provenance = load_spec(tmp_path / "policy").provenance
    assert provenance["steps"] == 1 and provenance["samples"] == 2 * 24


def test_many_recordings_are_told_by_their_number_and_one_hash(tmp_path: Path) -> None:
    files = tuple((f"{number}.mcap", f"{number:012d}") for number in range(100))
    told = [Recorded(ROBOT, 0.1, [], [], chosen).described for chosen in (files, files[:99])]
    assert told[0].startswith("100 files ") and told[0].endswith("7.mcap 000000000007 and so on")
    assert told[0].split(":")[0].split()[-1] != told[1].split(":")[0].split()[-1]


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_head_is_trained_on_a_backbone_that_stays(
    tmp_path: Path, write_policy: Callable[..., object], pooling: str
) -> None:
    begin = tmp_path / "begin"
    write_policy(
        begin,
        cameras={"view0": (SIDE, SIDE), "view1": (SIDE, SIDE)},
        pooling={"view": pooling, "aggregation": "concat"},
        head={"kind": "hold"},
    )
    found = load_recordings([record(tmp_path / "a.mcap", episodes=4)], HORIZON, quiet)
    head, schedule = HeadChoice(kind="regression", hidden=32), HeadSchedule(200, 64, max_age_ms=300.0)
    said: list[str] = []
    curve = train_head_only(tmp_path / "out", found, begin, head, HORIZON, schedule, said.append)
    assert curve[-1]["held_out_joint_mean"] < 0.1  # where to go follows from the state
    spec = load_spec(tmp_path / "out")
    assert spec.head == head and spec.horizon == HORIZON
    assert spec.feature_age_ms == (0.0, 300.0)
    told = spec.provenance
    assert (told["recordings"], told["episodes"], told["frames"]) == (found.described, 3, 36)
    assert (told["seed"], told["head_steps"], told["head_frames"]) == (0, 200, 36)
    assert told["torch"] == torch.__version__ and {"transformers", "python", "features_of"} <= told.keys()
    before, after = (folder / "backbone" / "model.safetensors" for folder in (begin, tmp_path / "out"))
    assert before.read_bytes() == after.read_bytes()
    chunk = load_head(tmp_path / "out").act(np.zeros((2, 32), np.float32), np.full(7, 0.5), 100.0)
    np.testing.assert_allclose(chunk[0], 1.5, atol=0.25)
    files = sorted((tmp_path / ".out.training").rglob("*.safetensors"))
    stamps = [file.stat().st_mtime_ns for file in files]
    train_head_only(tmp_path / "out", found, begin, head, HORIZON, schedule, said.append, overwrite=True)
    assert [file.stat().st_mtime_ns for file in files] == stamps and len(files) == 4
    assert all(isinstance(FeatureSet.load(file), FeatureSet) for file in itertools.islice(files, 1))


def test_a_head_on_kept_features_says_what_it_learned_from_and_which_ages_it_met(
    tmp_path: Path, policy_folder: Path
) -> None:
    edit_yaml(policy_folder, provenance={"seed": 3, "torch": "1.0"})
    for name in ("round-00-0", "held-out"):
        toy(1, 40).save(tmp_path / f"{name}.safetensors")  # ticks up to 150 ms after each frame
    schedule = HeadSchedule(5, 64, max_age_ms=1000.0, seed=9)
    head = HeadChoice(kind="regression", hidden=32)
    train_on_kept(tmp_path / "out", policy_folder, tmp_path, head, schedule, quiet)
    spec = verify(tmp_path / "out")
    assert spec.feature_age_ms == (0.0, 150.0)
    told = spec.provenance
    assert (told["seed"], told["head_seed"], told["head_steps"], told["head_frames"]) == (3, 9, 5, 40)
    assert told["torch"] == torch.__version__ and {"transformers", "python", "features_of"} <= told.keys()


def test_a_policy_that_does_not_fit_the_recordings_is_refused(tmp_path: Path, policy_folder: Path) -> None:
    found = load_recordings([record(tmp_path / "a.mcap")], HORIZON, quiet)
    with pytest.raises(TrainingFault, match="does not fit the recordings: the policy needs camera 'front'"):
        train_head_only(
            tmp_path / "out", found, policy_folder, HeadChoice(kind="regression"), HORIZON, HeadSchedule(1), quiet
        )
