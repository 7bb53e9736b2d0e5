"""Recordings that were cut, damaged, foreign or made to do harm."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from recordings import START_NS, TWO_CAMERAS, record_episodes
from rig import two_joint_spec

from control.errors import ConfigError, RecordingError, WireError
from control.messages import State
from control.recording import RecordingWriter
from control.recording_format import from_json
from control.recording_images import ImageCodec, StoredImage
from control.recording_reader import read_recording

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def spec():
    return two_joint_spec(cameras=TWO_CAMERAS, max_velocity=np.array([1.0, np.inf]))


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


def _lengths(data):
    """Where the length of each chunk stands."""
    found, at = [], 8
    while at + 9 <= len(data) - 8:
        kind, length = struct.unpack_from("<BQ", data, at)
        found += [at + 1] if kind == 0x06 else []
        at += 9 + length
    return found


@pytest.mark.parametrize("bit", [20, 24, 40, 62])
def test_a_chunk_that_claims_to_be_longer_than_the_file_is_damage_and_not_a_cut(tmp_path, spec, bit):
    file = tmp_path / "a.mcap"
    with RecordingWriter(file, spec, images=ImageCodec("webp")) as writer:
        for seq in range(60):
            writer.write(State(seq, START_NS + seq * 100_000_000, np.zeros(2)))
    data = bytearray(file.read_bytes())
    third = _lengths(data)[2]
    data[third + bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=r"is damaged at byte [\d,]+: a record of [\d,]+ bytes is said to follow"):
        read_recording(file)


def test_a_cut_is_the_last_second_only_where_what_is_left_is_no_more_than_that(tmp_path, spec):
    file = tmp_path / "a.mcap"
    with RecordingWriter(file, spec) as writer:
        writer.write(State(1, START_NS, np.zeros(2)))
        writer.flush()
        size = writer.bytes_written
    whole = file.read_bytes()[:size]
    cases = ((5_000, ", at most the last second"), (1_000_000, " is lost"), (9_000_000, ""))
    for rest, said in cases:
        file.write_bytes(whole + struct.pack("<BQ", 0x06, rest + 1) + bytes(rest))
        if said:
            assert f"bytes after the last whole chunk{said}" in read_recording(file).lost
        else:
            with pytest.raises(ConfigError, match="is damaged at byte"):
                read_recording(file)


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
