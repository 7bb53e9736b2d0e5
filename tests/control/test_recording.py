from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import struct
import subprocess
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
from control.errors import ConfigError, RecordingError, WireError
from control.messages import Frames, Mode, State
from control.recording import RecordingWriter
from control.recording_format import Episode, Label, LogLine, Truth, from_json, to_json
from control.recording_images import ImageCodec, StoredImage
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


def test_the_metadata_tells_the_origin_of_the_stamps(tmp_path, spec):
    recording = write_all(tmp_path / "a.mcap", spec, [], notes={"seed": "7"})
    assert recording.metadata["seed"] == "7" and recording.metadata["wire_version"] == "1"
    assert recording.metadata["images"] == "jpeg quality 95 4:4:4"
    assert recording.metadata["wall_clock"].startswith("20") and int(recording.metadata["monotonic_ns"]) > 0


@pytest.mark.parametrize("seed", range(4))
def test_a_file_cut_anywhere_is_read_up_to_its_last_whole_chunk(tmp_path, spec, seed):
    whole = record_episodes(tmp_path / "a.mcap", spec, steps=30).read_bytes()
    full = read_recording(tmp_path / "a.mcap")
    file, rng = tmp_path / "cut.mcap", random.Random(seed)
    counts = []
    for size in sorted(rng.sample(range(len(whole)), 60)):
        file.write_bytes(whole[:size])
        try:
            cut = read_recording(file)
        except ConfigError as error:
            assert "cut before anything was recorded" in str(error) and size < 3000
            continue
        assert [s.seq for s in cut.states] == [s.seq for s in full.states[: len(cut.states)]]
        assert all(list(stored.images) == ["front", "wrist"] for stored in cut.frames)
        assert [e for e in cut.episodes if e.end_ns] == full.episodes[: len([e for e in cut.episodes if e.end_ns])]
        if len(cut.states) < len(full.states):
            assert f"{cut.lost_bytes:,} bytes after the last whole chunk" in cut.lost or cut.lost_bytes == 0
            assert "was not closed" in cut.lost and cut.lost_bytes < 60_000
        counts.append(len(cut.states))
    assert counts == sorted(counts) and counts[-1] > 40


def test_a_file_that_power_loss_filled_with_zeros_states_them_as_lost(tmp_path, spec):
    with RecordingWriter(tmp_path / "b.mcap", spec) as writer:
        writer.write(State(1, START_NS, np.zeros(2)))
        writer.flush()
        size = writer.bytes_written
    data = (tmp_path / "b.mcap").read_bytes()[:size] + bytes(5000)
    (tmp_path / "b.mcap").write_bytes(data)
    recording = read_recording(tmp_path / "b.mcap")
    assert len(recording.states) == 1 and recording.lost_bytes == 5000
    (tmp_path / "b.mcap").write_bytes(data + b"x")
    with pytest.raises(ConfigError, match="is damaged at byte .*: no record of MCAP begins with 0"):
        read_recording(tmp_path / "b.mcap")


@pytest.mark.parametrize("seed", range(3))
def test_a_changed_byte_is_refused_or_stated_and_never_a_crash(tmp_path, spec, seed):
    file = record_episodes(tmp_path / "a.mcap", spec)
    whole, full, rng = file.read_bytes(), read_recording(file), random.Random(seed)
    refused = 0
    for _ in range(60):
        at = rng.randrange(len(whole))
        file.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :])
        try:
            changed = read_recording(file)
        except ConfigError as error:
            refused += 1
            assert str(file) in str(error)
            continue
        states = [state.values.tobytes() for state in changed.states]
        assert states == [state.values.tobytes() for state in full.states[: len(states)]]
        assert len(states) == len(full.states) or changed.lost
    assert refused > 20


def test_killed_in_mid_run_it_loses_at_most_the_last_second(tmp_path, spec):
    script = f"""
import os, sys
sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]!r}
from recordings import *
from rig import two_joint_spec
writer = RecordingWriter(Path({str(tmp_path / "a.mcap")!r}), two_joint_spec(cameras=TWO_CAMERAS))
for seq in range(57):
    writer.write(frames(two_joint_spec(cameras=TWO_CAMERAS), seq, seq * 100_000_000))
os.kill(os.getpid(), 9)
"""
    result = subprocess.run([sys.executable, "-c", script], timeout=60)
    assert result.returncode == -signal.SIGKILL
    recording = read_recording(tmp_path / "a.mcap")
    assert 57 - 10 <= len(recording.frames) < 57 and "was not closed" in recording.lost


def test_a_full_disk_ends_the_recording_with_what_was_written_whole(tmp_path, spec):
    script = f"""
import resource, sys
sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]!r}
from recordings import *
from control.errors import RecordingError
from rig import two_joint_spec
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
spec = two_joint_spec(cameras=TWO_CAMERAS)
with RecordingWriter(Path({str(tmp_path / "a.mcap")!r}), spec) as writer:
    try:
        for seq in range(2000):
            writer.write(frames(spec, seq, seq * 100_000_000))
    except RecordingError as error:
        print(error, error.exit_code)
    else:
        sys.exit("no error")
"""
    result = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "cannot be written on: File too large; its first" in result.stdout and result.stdout.endswith("full? 1\n")
    recording = read_recording(tmp_path / "a.mcap")
    assert len(recording.frames) >= 20 and recording.lost_bytes == 0 and "was not closed" in recording.lost
    assert (tmp_path / "a.mcap").stat().st_size <= 60_000


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_device_without_room_is_a_clear_error(spec):
    with pytest.raises(RecordingError, match="/dev/full cannot be written on: No space left on device; its first 0 by"):
        RecordingWriter(Path("/dev/full"), spec, overwrite=True)


def foreign(file, profile="", metadata=None):
    from mcap.writer import Writer

    with file.open("wb") as opened:
        writer = Writer(opened)
        writer.start(profile)
        if metadata is not None:
            writer.add_metadata("saccade", metadata)
        writer.finish()
    return file


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected an MCAP file, got one that begins with b''; it was cut before anything was recorded"),
        (b"PK\x03\x04 a zip of some kind", "expected an MCAP file, got one that begins with b'PK"),
        (os.urandom(100), "expected an MCAP file"),
        (b"\x89MCAP0\r\n" + b"\xff" * 50, "is damaged at byte 8: no record of MCAP begins with 255"),
        (b"\x89MCAP0\r\n", "it was cut before anything was recorded, or another program wrote it"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path, content, said):
    (tmp_path / "x.mcap").write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_recording(tmp_path / "x.mcap")
    assert str(error.value).startswith(f"recording {tmp_path / 'x.mcap'}") and said in str(error.value)


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; `launch.py record` writes them"):
        read_recording(tmp_path / "none.mcap")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_recording(tmp_path)


def test_another_programs_mcap_and_another_version_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected an MCAP file of profile 'saccade', got 'ros2'"):
        read_recording(foreign(tmp_path / "x.mcap", "ros2"))
    with pytest.raises(ConfigError, match="expected the robot's spec at its beginning"):
        read_recording(foreign(tmp_path / "x.mcap", "saccade"))
    versions = {"format_version": "1", "wire_version": "2"}
    with pytest.raises(ConfigError, match="expected wire_version 1, got 2; a newer Saccade wrote it: update this one"):
        read_recording(foreign(tmp_path / "x.mcap", "saccade", versions))
    with pytest.raises(ConfigError, match="expected format_version 1, got none; another Saccade wrote it"):
        read_recording(foreign(tmp_path / "x.mcap", "saccade", {}))
    versions = {"format_version": "1", "wire_version": "1", "robot": "{}"}
    with pytest.raises(ConfigError, match="is damaged at byte .*: robot: expected the fields of a RobotSpec"):
        read_recording(foreign(tmp_path / "x.mcap", "saccade", versions))


def with_chunk(file, spec, size, data):
    """A recording whose one chunk says what it likes."""
    with RecordingWriter(file, spec):
        pass
    whole = file.read_bytes()
    content = struct.pack("<QQQI", 0, 0, size, 0) + struct.pack("<I", 4) + b"zstd" + struct.pack("<Q", len(data)) + data
    begin = 8
    for _ in range(2):  # the header and the metadata stay
        begin += 9 + struct.unpack("<Q", whole[begin + 1 : begin + 9])[0]
    file.write_bytes(whole[:begin] + b"\x06" + struct.pack("<Q", len(content)) + content + whole[begin:])
    return file


def test_a_compression_bomb_is_refused_before_it_is_unpacked(tmp_path, spec):
    import zstandard

    bomb = zstandard.compress(bytes(200 << 20))
    with pytest.raises(ConfigError, match="expected at most 268435456 bytes unpacked, 1000 times the file"):
        read_recording(with_chunk(tmp_path / "x.mcap", spec, 200 << 20, bomb))
    with pytest.raises(ConfigError, match="expected zstd of 100 bytes, got zstd of another size"):
        read_recording(with_chunk(tmp_path / "y.mcap", spec, 100, bomb))


def test_an_image_of_another_size_or_kind_is_not_unpacked():
    wide = ImageCodec("webp").encode(np.zeros((64, 4000, 3), np.uint8))
    with pytest.raises(WireError, match="expected RGB of 4x4, got RGB of 4000x64"):
        StoredImage("webp", (4, 4), wide).decode()
    with pytest.raises(WireError, match="expected a jpeg image, got .* bytes that are not"):
        StoredImage("jpeg", (64, 4000), wide).decode()
    with pytest.raises(WireError, match="expected a webp image"):
        StoredImage("webp", (64, 4000), wide[:20]).decode()


@pytest.mark.parametrize(
    ("topic", "data", "said"),
    [
        ("state", b"[1]", "state: expected a JSON object, got list"),
        ("state", b"\xff\xfe", "state: expected a JSON object, got 2 bytes"),
        ("state", b"[" * 100_000, "state: expected a JSON object"),
        ("state", b'{"seq": 1, "stamp_ns": 1}', "state: 'values' is missing"),
        ("state", b'{"seq": 1, "stamp_ns": 1, "values": {"a": 1, "c": 2}}', "expected the names a, b, got a, c"),
        ("state", b'{"seq": -1, "stamp_ns": 1, "values": {"a": 1, "b": 2}}', "state.seq: expected an integer"),
        ("action", b'{"targets": {"a": [1], "b": [2]}, "horizon": 999999999}', "targets: expected 999999999 values"),
        ("action", b'{"targets": {}, "horizon": 99999999}', "expected 99999999 values for each action, at"),
        ("truth", b'{"stamp_ns": 1, "objects": {"a": ["x"]}}', "truth: expected a number, got 'x'"),
        ("features", b'{"tokens": {"dtype": "object", "shape": [1], "data": "AAAA"}}', "features: missing"),
        ("features", b'{"tokens": {"dtype": "float32", "shape": [1], "data": "A!"}}', "features: expected base64"),
        ("episode", b'{"index":0,"begin_ns":1,"end_ns":null,"seed":null,"task":"x","success":3}', "success"),
        ("log", b'{"level": 9, "timestamp": {"sec": 1, "nsec": 0}}', "log: '9' is missing"),
    ],
)
def test_a_malformed_message_names_what_was_expected(spec, topic, data, said):
    with pytest.raises(WireError) as error:
        from_json(topic, data, spec)
    assert said in str(error.value)


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
