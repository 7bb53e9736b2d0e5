from __future__ import annotations

import dataclasses
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import START_NS, TWO_CAMERAS, action, cycle, features, frames, instruction, record_episodes
from rig import two_joint_spec

from control.clock import NS_PER_MS, NS_PER_S
from control.errors import ConfigError, RecordingError
from control.messages import Frames, Mode, State
from control.recording import RecordingWriter
from control.recording_format import Episode, Label, LogLine, Truth, from_json, to_json
from control.recording_images import ImageCodec, StoredImage
from control.recording_output import SpilledIndex
from control.recording_reader import read_recording

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def spec():
    return two_joint_spec(cameras=TWO_CAMERAS, max_velocity=np.array([1.0, np.inf]))


def same(ours, theirs):
    """Every field equal, to the bit."""
    for item in dataclasses.fields(ours):
        one, other = getattr(ours, item.name), getattr(theirs, item.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes(), item.name
        else:
            assert one == other and type(one) is type(other), item.name
    return True


def write_all(file, spec, nouns, **options):
    with RecordingWriter(file, spec, **options) as writer:
        for noun in nouns:
            writer.write(noun)
    return read_recording(file)


AWKWARD = [0.1 + 0.2, 5e-324, -0.0, 1e308, np.nan, np.inf, -np.inf]


def test_every_noun_comes_back_to_the_bit(tmp_path, spec):
    s, many = START_NS, two_joint_spec(state_names=tuple("abcdefg"), cameras=TWO_CAMERAS)
    state = State(2**40, s + 3, np.array(AWKWARD), np.array([AWKWARD, AWKWARD]), 4, True)
    nouns = {
        "states": state,
        "instructions": instruction(3, s + 4, "lege «das» \x07 rote\nKlötzchen 🟥 <b>"),
        "actions": action(2**33, s + 5, [[0.1, np.nan], [np.inf, -0.0]]),
        "features": features(6, s + 6),
        "cycles": cycle(7, s + 7, Mode.HOLD, "features 700 ms old", switch_ms=49.5, task_done=False),
        "labels": Label(s + 8, np.array([[1 / 3, 2 / 3]])),
        "truths": Truth(s + 9, {"red block": (0.1, 1 / 3, np.inf), "gripper": ()}),
        "logs": LogLine(s + 10, "warning", "encoder", "slow"),
    }
    recording = write_all(tmp_path / "a.mcap", many, nouns.values())
    for name, noun in nouns.items():
        (back,) = getattr(recording, name)
        assert same(noun, back)
    assert recording.lost == "" and recording.lost_bytes == 0 and recording.spec.equals(many)


@given(
    st.lists(st.floats(width=64), min_size=2, max_size=2),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.lists(st.lists(st.floats(), min_size=2, max_size=2), max_size=4),
)
def test_any_float_and_any_stamp_survives(values, seq, stamp_ns, targets):
    robot = two_joint_spec()
    state = State(seq, stamp_ns, np.array(values))
    back = from_json("state", to_json(state, robot), robot)
    np.testing.assert_array_equal(back.values, state.values)
    assert (back.seq, back.stamp_ns) == (seq, stamp_ns)
    chunk = action(seq, 0, np.array(targets).reshape(-1, 2))
    np.testing.assert_array_equal(from_json("action", to_json(chunk, robot), robot).targets, chunk.targets)


@pytest.mark.parametrize("shape", [(0, 0), (0, 2), (1, 3), (2, 0)])
def test_an_action_that_does_not_fit_the_robot_is_recorded_as_it_was(tmp_path, spec, shape):
    chunk = action(1, START_NS, np.full(shape, 0.5), mode=Mode.STOP)
    (back,) = write_all(tmp_path / "a.mcap", spec, [chunk]).actions
    assert back.targets.shape == shape and back.mode is Mode.STOP


def test_lossless_images_keep_every_bit_with_their_seq_and_stamp(tmp_path, spec):
    captures = [frames(spec, 2**32 + seq, START_NS + seq) for seq in range(5)]
    recording = write_all(tmp_path / "a.mcap", spec, captures, images=ImageCodec("webp"))
    assert recording.log_ns["frames"].tolist() == [START_NS + seq for seq in range(5)]
    for capture, stored in zip(captures, recording.frames, strict=True):
        back = stored.decode()
        assert (back.seq, back.stamp_ns) == (capture.seq, capture.stamp_ns)
        for camera, pixels in capture.images.items():
            np.testing.assert_array_equal(back.images[camera], pixels)
        assert list(stored.decode("wrist").images) == ["wrist"]


def test_what_the_drivers_said_of_a_capture_is_kept(tmp_path, spec):
    images = frames(spec, 1, START_NS).images
    captures = [
        Frames(1, START_NS, images, captured_ns={"front": START_NS - 7, "wrist": START_NS - 9}),
        Frames(2, START_NS + 1, {"front": images["front"]}, faults={"wrist": "is black"}),
    ]
    back = [stored.decode() for stored in write_all(tmp_path / "a.mcap", spec, captures).frames]
    assert [(one.captured_ns, one.faults) for one in back] == [(one.captured_ns, one.faults) for one in captures]
    assert list(back[1].images) == ["front"]


def test_jpeg_is_close_and_not_subsampled(tmp_path, spec):
    sharp = np.zeros((24, 32, 3), dtype=np.uint8)
    sharp[:, ::2, 0], sharp[:, 1::2, 2] = 255, 255  # red and blue columns: gone under 4:2:0
    capture = Frames(1, START_NS, {"front": sharp})
    (stored,) = write_all(tmp_path / "a.mcap", spec, [capture]).frames
    assert np.abs(stored.decode().images["front"].astype(int) - sharp).max() < 12
    assert list(stored.images) == ["front"]


def test_foxglove_finds_its_schemas(tmp_path, spec):
    from mcap.reader import make_reader

    write_all(tmp_path / "a.mcap", spec, [frames(spec, 1, START_NS), LogLine(START_NS, "info", "run", "hello")])
    with (tmp_path / "a.mcap").open("rb") as opened:
        reader = make_reader(opened, validate_crcs=True)
        summary = reader.get_summary()
        found = {channel.topic: summary.schemas[channel.schema_id] for channel in summary.channels.values()}
        messages = {channel.topic: message for _, channel, message in reader.iter_messages()}
    assert found["images/front"].name == "foxglove.CompressedImage" and found["images/front"].encoding == "protobuf"
    assert b"foxglove/CompressedImage.proto" in found["images/front"].data
    assert found["log"].name == "foxglove.Log"
    assert list(json.loads(found["state"].data)["properties"]["values"]["properties"]) == ["a", "b"]
    assert all(schema.encoding in ("protobuf", "jsonschema") for schema in found.values())
    assert messages["images/wrist"].log_time == START_NS and messages["images/wrist"].sequence == 1


def test_an_image_message_is_the_bytes_that_protobuf_would_write():
    from control.recording_images import descriptor_set, from_protobuf, to_protobuf

    data = to_protobuf("front", 3 * NS_PER_S + 300, "jpeg", b"\xff" * 130)
    stamp = b"\x0a\x05\x08\x03\x10\xac\x02"
    assert data == stamp + b"\x12\x82\x01" + b"\xff" * 130 + b"\x1a\x04jpeg" + b"\x22\x05front"
    assert from_protobuf(data, (4, 4)) == (3 * NS_PER_S + 300, StoredImage("jpeg", (4, 4), b"\xff" * 130))
    assert zlib.crc32(descriptor_set()) == 3205865984  # of the set that protobuf's own library accepts


def test_episodes_and_the_nouns_between_their_marks(tmp_path, spec):
    recording = read_recording(record_episodes(tmp_path / "a.mcap", spec))
    first, second = recording.episodes
    assert first == Episode(0, "touch block 0", START_NS, START_NS + 1200 * NS_PER_MS, 100, True)
    assert (second.seed, second.success, second.index) == (101, False, 1)
    assert len(recording.labels) == len(recording.states) == len(recording.frames) == 12 + 13
    assert recording.newest("state", first.begin_ns - 1) == -1
    assert recording.newest("state", first.begin_ns + 250 * NS_PER_MS) == 2


def test_nouns_come_in_the_order_of_time_and_remote_features_at_their_arrival(tmp_path, spec):
    with RecordingWriter(tmp_path / "a.mcap", spec) as writer:
        writer.write(features(1, 5), received_ns=START_NS + 2)
        for stamp in (3, 1, 2):
            writer.write(State(stamp, START_NS + stamp, np.zeros(2)))
    recording = read_recording(tmp_path / "a.mcap")
    assert [state.seq for state in recording.states] == [1, 2, 3]
    assert recording.log_ns["features"].tolist() == [START_NS + 2] and recording.features[0].stamp_ns == 5


def test_only_the_wanted_topics_are_read(tmp_path, spec):
    recording = read_recording(record_episodes(tmp_path / "a.mcap", spec), topics=["state"])
    assert len(recording.states) == 25 and not recording.frames and not recording.episodes
    with pytest.raises(ConfigError, match="unknown topics stat; known: "):
        read_recording(tmp_path / "a.mcap", topics=["stat"])


def test_the_index_of_the_file_waits_on_disk_and_is_that_of_mcap_itself(tmp_path, spec, monkeypatch):
    """Without it a reader has to go through the whole file; in memory it made a recorder grow by 3.5 MB an hour."""
    from mcap.reader import make_reader

    def written(name):
        with RecordingWriter(tmp_path / name, spec) as writer:
            for seq in range(30):  # a chunk a second
                writer.write(State(seq, START_NS + seq * NS_PER_S // 2, np.zeros(2)))
                writer.write(cycle(seq, stamp_ns=START_NS + seq * NS_PER_S // 2))
            kept = writer._writer._Writer__chunk_indices
        with (tmp_path / name).open("rb") as file:
            return kept, make_reader(file).get_summary().chunk_indexes

    spilled, found = written("spilled.mcap")
    monkeypatch.setattr("control.recording._INDEX", "elsewhere")
    plain, expected = written("plain.mcap")
    assert isinstance(spilled, SpilledIndex) and isinstance(plain, list)
    assert len(expected) > 10 and len(expected[0].message_index_offsets) == 2
    times = [(one.message_start_time, one.message_end_time, one.message_index_length) for one in expected]
    assert [(one.message_start_time, one.message_end_time, one.message_index_length) for one in found] == times
    assert [set(one.message_index_offsets) for one in found] == [set(one.message_index_offsets) for one in expected]
    assert all(a.chunk_start_offset < b.chunk_start_offset for a, b in zip(found, found[1:], strict=False))


def test_the_metadata_tells_the_origin_of_the_stamps(tmp_path, spec):
    recording = write_all(tmp_path / "a.mcap", spec, [], notes={"seed": "7"})
    assert recording.metadata["seed"] == "7" and recording.metadata["wire_version"] == "1"
    assert recording.metadata["images"] == "jpeg quality 95 4:4:4"
    assert recording.metadata["wall_clock"].startswith("20") and int(recording.metadata["monotonic_ns"]) > 0


def test_what_does_not_fit_the_robot_is_not_written(tmp_path, spec):
    with RecordingWriter(tmp_path / "a.mcap", spec) as writer:
        for noun, said in [
            (
                Frames(1, 1, {"rear": np.zeros((4, 4, 3), np.uint8)}),
                "unknown camera 'rear'; the robot has front, wrist",
            ),
            (Frames(1, 1, {"front": np.zeros((4, 4, 3), np.uint8)}), r"expected \(24, 32, 3\) uint8, got \(4, 4, 3\)"),
            (Label(1, np.zeros((1, 3))), "label: expected 2 actions, got 3"),
            (State(1, 1, np.zeros((2, 2))), r"state: expected values \(S,\)"),
            ("words", "expected one of Frames, State"),
        ]:
            with pytest.raises(ConfigError, match=said):
                writer.write(noun)
        with pytest.raises(ConfigError, match="no episode was begun"):
            writer.end_episode(1)
        writer.begin_episode(1, 0, "touch")
        with pytest.raises(ConfigError, match="episode 0 was begun and has not ended"):
            writer.begin_episode(2, 1, "touch")
    (cut,) = read_recording(tmp_path / "a.mcap").episodes
    assert cut.end_ns is None and cut.task == "touch"


def test_a_recording_is_never_written_over_by_mistake(tmp_path, spec):
    with RecordingWriter(tmp_path / "a.mcap", spec):
        pass
    with pytest.raises(ConfigError, match="exists already; name another file, or remove it first"):
        RecordingWriter(tmp_path / "a.mcap", spec)
    with pytest.raises(ConfigError, match="cannot be made: No such file or directory"):
        RecordingWriter(tmp_path / "none" / "a.mcap", spec)
    with RecordingWriter(tmp_path / "a.mcap", spec, overwrite=True) as writer:
        writer.write(State(1, 1, np.zeros(2)))
    with pytest.raises(RecordingError, match="is closed"):
        writer.write(State(1, 1, np.zeros(2)))


def test_a_missing_extra_is_named(spec, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mcap.writer", None)
    with pytest.raises(
        ConfigError, match=r"recordings need mcap.writer, which is not installed: pip install 'saccade\["
    ):
        RecordingWriter(tmp_path / "a.mcap", spec)


@pytest.mark.parametrize("codec", [("png", 95), ("jpeg", 0)])
def test_an_unknown_codec_is_refused(codec):
    with pytest.raises(ConfigError, match="expected jpeg or webp with a quality of 1..100, got"):
        ImageCodec(*codec)
