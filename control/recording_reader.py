"""Reading a recording: the nouns in the order of time, from a file that nobody vouches for.

Reads up to the last whole chunk of a file that was cut, and states what is lost. Refuses a file that is no recording of
Saccade, of another version, or damaged in the middle. Nothing in it can run code; every size is checked before memory
is taken, and images stay compressed until one is asked for. So much memory as the file is long is needed, times the
compression of its JSON: leave topics out that are not wanted.
"""

from __future__ import annotations

import dataclasses
import io
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from control.errors import ConfigError, WireError
from control.messages import ActionChunk, Cycle, Features, Instruction, RobotSpec, State
from control.recording_format import (
    CHANNELS,
    FORMAT_VERSION,
    IMAGES,
    PROFILE,
    Episode,
    Label,
    LogLine,
    Truth,
    from_json,
    require,
    spec_from_json,
)
from control.recording_images import StoredFrames, StoredImage, from_protobuf
from control.wire import WIRE_VERSION

_MAGIC = b"\x89MCAP0\r\n"
_HEADER, _CHUNK, _METADATA, _DATA_END = 0x01, 0x06, 0x0C, 0x0F
_KINDS = range(0x01, 0x10)
_MAX_CHUNK_BYTES = 256 << 20
_MOST_CUT_BYTES = 8 << 20  # a writer's chunk has 4 MiB at most and one capture
_SMALL_BYTES = 64 << 10
_MAX_RATIO = 1000  # of all unpacked bytes to the file; a still scene at 240 Hz reaches a quarter of it
_NAMES = {"truth": "truths"} | {topic: f"{topic}s" for topic in ("state", "instruction", "action", "cycle", "label")}
_NAMES |= {"episode": "episodes", "log": "logs", "frames": "frames", "features": "features"}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """One file. Each list is in the order of `log_ns[topic]`, the (N,) int64 stamps on the robot's clock."""

    file: Path
    spec: RobotSpec
    metadata: dict[str, str]
    frames: list[StoredFrames]
    states: list[State]
    instructions: list[Instruction]
    actions: list[ActionChunk]
    features: list[Features]
    cycles: list[Cycle]
    truths: list[Truth]
    labels: list[Label]
    episodes: list[Episode]
    logs: list[LogLine]
    log_ns: dict[str, np.ndarray]
    lost: str  # what is missing at the end, in words; empty when the file is whole
    lost_bytes: int  # after the last whole chunk

    def newest(self, topic: str, stamp_ns: int) -> int:
        """The index of the newest of `topic` at this stamp, -1 before the first."""
        return int(np.searchsorted(self.log_ns[topic], stamp_ns, side="right")) - 1


def read_recording(file: Path, topics: Collection[str] | None = None) -> Recording:
    """All of it, or only `topics` (`frames` are the images). Raises ConfigError for what is no whole start of one."""
    known = {"frames", *CHANNELS}
    wanted = known if topics is None else set(topics)
    if not wanted <= known:
        raise ConfigError(f"recording: unknown topics {', '.join(sorted(wanted - known))}; known: {', '.join(known)}")
    require("mcap")
    try:
        with file.open("rb") as opened:
            return _Reader(file, opened, wanted).read()
    except FileNotFoundError:
        raise ConfigError(f"recording {file} does not exist; `launch.py record` writes them") from None
    except OSError as error:
        raise ConfigError(f"recording {file} cannot be read: {error.strerror}") from None


class _Reader:
    def __init__(self, file: Path, opened: BinaryIO, wanted: set[str]) -> None:
        self._file, self._opened, self._wanted = file, opened, wanted
        self._size = opened.seek(0, io.SEEK_END)
        opened.seek(max(0, self._size - len(_MAGIC)))
        self._was_closed = opened.read() == _MAGIC and self._size > len(_MAGIC)
        opened.seek(0)
        self._whole = self._largest = 0  # bytes up to the end of the newest whole record, and of the largest chunk
        self._unpacked = 0
        self._spec: RobotSpec | None = None
        self._metadata: dict[str, str] = {}
        self._channels: dict[int, str] = {}
        self._pending: dict[str, tuple[int, StoredImage]] = {}  # images of the capture that is not yet closed
        self._nouns: dict[str, list[tuple[int, Any]]] = {topic: [] for topic in ("frames", *CHANNELS)}

    def read(self) -> Recording:
        ended = False
        for kind, content in self._records():
            if kind == _HEADER:
                self._check_header(content)
            elif kind == _METADATA and self._spec is None:
                self._take_metadata(content)
            elif kind == _CHUNK:
                self._take_chunk(content)
            elif kind == _DATA_END:
                ended = True
                break
        if self._spec is None:
            raise ConfigError(
                f"recording {self._file}: expected the robot's spec at its beginning, got {self._size:,} bytes without;"
                " it was cut before anything was recorded, or another program wrote it"
            )
        lost_bytes = 0 if ended else self._size - self._whole
        lost = ""
        if not ended:
            second = ", at most the last second" if lost_bytes <= max(_SMALL_BYTES, 2 * self._largest) else ""
            lost = f"{lost_bytes:,} bytes after the last whole chunk{second}" if lost_bytes else ""
            lost = f"{self._file} was not closed: {lost or 'what came after its last whole chunk'} is lost"
        return self._recording(lost, lost_bytes)

    def _records(self) -> Iterator[tuple[int, bytes]]:
        """Kind and content of each whole record; ends where the file was cut."""
        if (magic := self._opened.read(len(_MAGIC))) != _MAGIC:
            cut = "; it was cut before anything was recorded" if _MAGIC.startswith(magic) else ""
            raise ConfigError(
                f"recording {self._file}: expected an MCAP file, got one that begins with {magic!r}{cut or _KIND_HINT}"
            )
        self._whole = len(_MAGIC)
        while len(head := self._opened.read(9)) == 9:
            kind, length = struct.unpack("<BQ", head)
            if kind not in _KINDS:
                if kind == 0 and not any(head) and self._only_zeros_follow():
                    return  # a machine that lost power leaves a file longer than what was written
                raise self._damaged(f"no record of MCAP begins with {kind}")
            if length > (rest := self._size - self._whole - 9):
                # A cut file ends within a chunk, which is no longer than any chunk can be. What was closed was not cut.
                if self._was_closed or length > _MAX_CHUNK_BYTES or rest > max(_MOST_CUT_BYTES, 4 * self._largest):
                    raise self._damaged(f"a record of {length:,} bytes is said to follow, and {rest:,} do")
                return
            content = self._opened.read(length)
            yield kind, content
            self._whole += 9 + length
            self._largest = max(self._largest, length if kind == _CHUNK else 0)

    def _only_zeros_follow(self) -> bool:
        while block := self._opened.read(1 << 20):
            if any(block):
                return False
        return True

    def _check_header(self, content: bytes) -> None:
        from mcap.records import Header

        profile = self._parsed(Header, content).profile
        if profile != PROFILE:
            got = f"got '{profile[:60]}'{_KIND_HINT}"
            raise ConfigError(f"recording {self._file}: expected an MCAP file of profile '{PROFILE}', {got}")

    def _take_metadata(self, content: bytes) -> None:
        from mcap.records import Metadata

        metadata = self._parsed(Metadata, content)
        if metadata.name != PROFILE:
            return
        for key, ours in (("format_version", FORMAT_VERSION), ("wire_version", WIRE_VERSION)):
            theirs = metadata.metadata.get(key, "none")
            if theirs != str(ours):
                newer = theirs.isdigit() and int(theirs) > ours
                why = "a newer Saccade wrote it: update this one" if newer else "another Saccade wrote it"
                raise ConfigError(f"recording {self._file}: expected {key} {ours}, got {theirs[:20]}; {why}")
        try:
            self._spec = spec_from_json(metadata.metadata.get("robot", ""))
        except WireError as error:
            raise self._damaged(str(error)) from None
        self._metadata = metadata.metadata

    def _take_chunk(self, content: bytes) -> None:
        import zstandard
        from mcap.records import Channel, Chunk, Message
        from mcap.stream_reader import breakup_chunk

        if self._spec is None:
            raise self._damaged("expected the robot's spec before the first message")
        chunk = self._parsed(Chunk, content)
        size = chunk.uncompressed_size
        try:
            if chunk.compression != "zstd" or zstandard.frame_content_size(chunk.data) != size:
                raise ValueError(
                    f"expected zstd of {size} bytes, got {chunk.compression[:20] or 'plain'} of another size"
                )
            self._unpacked += size
            if size > _MAX_CHUNK_BYTES or self._unpacked > _MAX_RATIO * self._size:
                raise ValueError(f"expected at most {_MAX_CHUNK_BYTES} bytes unpacked, {_MAX_RATIO} times the file")
            records = breakup_chunk(chunk, validate_crc=True)
        except Exception as error:  # foreign bytes in third-party parsers: whatever they raise means damage
            raise self._damaged(str(error)) from None
        for record in records:
            if isinstance(record, Channel):
                self._channels[record.id] = record.topic
            elif isinstance(record, Message):
                self._take_message(record.channel_id, record.log_time, record.data)

    def _take_message(self, channel_id: int, log_ns: int, data: bytes) -> None:
        topic = self._channels.get(channel_id, "")
        assert self._spec is not None
        try:
            if topic.startswith(IMAGES):
                camera = topic.removeprefix(IMAGES)
                if camera not in self._spec.cameras:
                    raise WireError(f"unknown camera '{camera}'")
                if "frames" in self._wanted:
                    self._pending[camera] = from_protobuf(data, self._spec.cameras[camera])
            elif topic == "frames":
                if "frames" in self._wanted:
                    self._take_capture(log_ns, from_json(topic, data, self._spec))
            elif topic not in CHANNELS:
                raise WireError(f"unknown channel '{topic[:60]}'; known: frames, {', '.join(CHANNELS)}")
            elif topic in self._wanted:
                self._nouns[topic].append((log_ns, from_json(topic, data, self._spec)))
        except WireError as error:
            raise self._damaged(str(error)) from None

    def _take_capture(self, log_ns: int, line: dict[str, Any]) -> None:
        seq, stamp_ns, cameras = (line.get(key) for key in ("seq", "stamp_ns", "cameras"))
        if type(seq) is not int or stamp_ns != log_ns or type(cameras) is not list:
            raise WireError(f"frames: expected seq, cameras and stamp_ns {log_ns}, got {str(line)[:80]}")
        images, self._pending = self._pending, {}
        if list(images) != cameras or any(stamp != stamp_ns for stamp, _ in images.values()):
            raise WireError(f"frames {seq}: expected the images of {cameras}, got {list(images)}, or of another stamp")
        kept = {camera: image for camera, (_, image) in images.items()}
        captured_ns = self._by_camera(line, "captured_ns", int)
        self._nouns["frames"].append(
            (log_ns, StoredFrames(seq, log_ns, kept, captured_ns, self._by_camera(line, "faults", str)))
        )

    def _by_camera(self, line: dict[str, Any], key: str, kind: type) -> dict[str, Any]:
        """A field of the line that closes a capture; recordings of before have none."""
        found = line.get(key, {})
        assert self._spec is not None
        if type(found) is not dict or not found.keys() <= self._spec.cameras.keys():
            raise WireError(f"frames: expected {key} by camera, got {str(found)[:80]}")
        if any(type(value) is not kind for value in found.values()):
            raise WireError(f"frames: expected {key} as {kind.__name__}, got {str(found)[:80]}")
        return found

    def _recording(self, lost: str, lost_bytes: int) -> Recording:
        assert self._spec is not None
        lists: dict[str, list[Any]] = {}
        log_ns: dict[str, np.ndarray] = {}
        for topic, rows in self._nouns.items():
            if topic == "episode":  # an episode stands once for its begin and once, whole, for its end
                rows = list({(row.index, row.begin_ns): (row.begin_ns, row) for _, row in rows}.values())
            rows.sort(key=lambda row: row[0])
            lists[_NAMES[topic]] = [noun for _, noun in rows]
            log_ns[topic] = np.array([stamp for stamp, _ in rows], dtype=np.int64)
        return Recording(
            self._file, self._spec, self._metadata, log_ns=log_ns, lost=lost, lost_bytes=lost_bytes, **lists
        )

    def _parsed(self, kind: Any, content: bytes) -> Any:
        from mcap.data_stream import ReadDataStream

        try:
            return kind.read(ReadDataStream(io.BytesIO(content)))
        except Exception as error:  # foreign bytes in a third-party parser: whatever it raises means damage
            raise self._damaged(f"{kind.__name__} cannot be read: {error}") from None

    def _damaged(self, what: str) -> ConfigError:
        return ConfigError(f"recording {self._file} is damaged at byte {self._whole:,}: {what}")


_KIND_HINT = "; `launch.py record` writes recordings, other MCAP files are not read"
