"""Writing a recording: one MCAP file that Foxglove opens, readable up to its last whole chunk whatever ends it.

Knows the file; refuses to know where the nouns come from. A chunk is one second or 4 MiB of messages, compressed with
zstd, and goes to the operating system as soon as it is whole: a killed writer loses at most that. Memory is one chunk;
the index that the end of the file needs waits on disk.

Stamps stay what they are everywhere in Saccade, monotonic nanoseconds; the metadata record `saccade` says which wall
clock time belongs to which stamp, and holds the robot's spec and the versions. What is read back: recording_reader.py.
"""

from __future__ import annotations

import dataclasses
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from control.clock import NS_PER_S
from control.errors import ConfigError, RecordingError
from control.messages import ActionChunk, Features, Frames, RobotSpec, State
from control.recording_format import (
    CHANNELS,
    FORMAT_VERSION,
    IMAGES,
    PROFILE,
    Episode,
    Label,
    require,
    spec_to_json,
    to_json,
)
from control.recording_images import ImageCodec, descriptor_set, to_protobuf
from control.recording_output import Output, SpilledIndex
from control.wire import WIRE_VERSION

_CHUNK_NS = NS_PER_S
_CHUNK_BYTES = 4 << 20
_INDEX = "_Writer__chunk_indices"  # where mcap's writer keeps it
_TOPICS = {noun: topic for topic, (noun, _) in CHANNELS.items()}


class RecordingWriter:
    """One recording. Use it in a `with`; leaving writes the index, without which the file is read all the same.

    `notes` are free words for the metadata, such as seeds or the policy. Raises ConfigError for a file that exists or
    cannot be made and for nouns that do not fit `spec`, RecordingError when the disk is full or fails; then the file is
    cut back to its last whole chunk and closed.
    """

    def __init__(
        self,
        file: Path,
        spec: RobotSpec,
        *,
        images: ImageCodec | None = None,
        notes: dict[str, str] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.file, self._spec, self._codec = file, spec, images or ImageCodec()
        require("PIL.Image")
        mcap = require("mcap.writer")
        self._output = Output(file, overwrite)
        self._writer = mcap.Writer(self._output, chunk_size=2**62, compression=mcap.CompressionType.ZSTD)
        with self._output.explained():
            self._index = SpilledIndex(file.parent)
        if hasattr(self._writer, _INDEX):  # another mcap may name it otherwise, and would keep it in memory
            setattr(self._writer, _INDEX, self._index)
        self._pending_bytes = 0
        self._chunk_begin_ns: int | None = None
        self._episode: Episode | None = None
        self._channels: dict[str, int] = {}
        self.messages = 0
        with self._output.explained():
            self._writer.start(PROFILE, f"saccade {FORMAT_VERSION}")
            self._writer.add_metadata(PROFILE, self._metadata(notes or {}))
            self._output.commit()
        self._register()

    @property
    def bytes_written(self) -> int:
        """On disk, whole chunks only."""
        return self._output.committed

    def write(self, noun: Any, received_ns: int | None = None) -> None:
        """Any noun of messages.py that stands in CHANNELS, Frames, Truth, Label or LogLine.

        It is placed at its own stamp on the file's time line. Features are placed at `received_ns` (the robot's clock)
        where that is given: their stamp is the encoder's clock, which may be another machine's.
        """
        if isinstance(noun, Frames):
            self._write_frames(noun)
            return
        topic = _TOPICS.get(type(noun))
        if topic is None or isinstance(noun, Episode):
            known = ", ".join(kind.__name__ for kind in (Frames, *_TOPICS) if kind is not Episode)
            raise ConfigError(f"recording {self.file}: expected one of {known}, got {type(noun).__name__}")
        self._check_axes(noun)
        log_ns = received_ns if isinstance(noun, Features) and received_ns is not None else noun.stamp_ns
        self._add(topic, log_ns, to_json(noun, self._spec), getattr(noun, "seq", 0))
        self._flush_if_due()

    def begin_episode(self, stamp_ns: int, index: int, task: str, seed: int | None = None) -> None:
        """The next messages belong to this episode."""
        if self._episode is not None:
            raise ConfigError(f"recording {self.file}: episode {self._episode.index} was begun and has not ended")
        self._episode = Episode(index, task, stamp_ns, None, seed)
        self._add("episode", stamp_ns, to_json(self._episode, self._spec))

    def end_episode(self, stamp_ns: int, success: bool | None = None) -> None:
        """`success` is None where nobody judges."""
        if self._episode is None:
            raise ConfigError(f"recording {self.file}: no episode was begun")
        ended = dataclasses.replace(self._episode, end_ns=stamp_ns, success=success)
        self._episode = None
        self._add("episode", stamp_ns, to_json(ended, self._spec))

    def flush(self) -> None:
        """Make a chunk of what is pending and give it to the operating system."""
        with self._output.explained():
            self._writer.flush()
            self._output.commit()
        self._pending_bytes, self._chunk_begin_ns = 0, None

    def close(self) -> None:
        """Write what is pending and the index. Twice is fine."""
        if self._output.is_closed:
            return
        self.flush()
        with self._output.explained():
            self._writer.finish()
            self._output.commit()
            self._output.close()
        self._index.close()

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_frames(self, frames: Frames) -> None:
        for camera, image in frames.images.items():
            size = self._spec.cameras.get(camera)
            if size is None:
                known = ", ".join(self._spec.cameras)
                raise ConfigError(f"recording {self.file}: unknown camera '{camera}'; the robot has {known}")
            if image.dtype != np.uint8 or image.shape != (*size, 3):
                got = f"{image.shape} {image.dtype}"
                raise ConfigError(f"recording {self.file}: camera '{camera}': expected {(*size, 3)} uint8, got {got}")
        for camera, image in frames.images.items():
            data = to_protobuf(camera, frames.stamp_ns, self._codec.format, self._codec.encode(image))
            self._add(IMAGES + camera, frames.stamp_ns, data, frames.seq)
        line = {"seq": frames.seq, "stamp_ns": frames.stamp_ns, "cameras": list(frames.images)}
        line |= {name: of for name in ("captured_ns", "faults") if (of := getattr(frames, name))}
        self._add("frames", frames.stamp_ns, json.dumps(line).encode(), frames.seq)
        self._flush_if_due()

    def _check_axes(self, noun: Any) -> None:
        if isinstance(noun, State) and noun.values.ndim != 1:
            raise ConfigError(f"recording {self.file}: state: expected values (S,), got shape {noun.values.shape}")
        if isinstance(noun, ActionChunk | Label) and noun.targets.ndim != 2:
            raise ConfigError(f"recording {self.file}: expected targets (H, A), got shape {noun.targets.shape}")
        if isinstance(noun, Label) and noun.targets.shape[1] != len(self._spec.action_names):
            actions = len(self._spec.action_names)
            raise ConfigError(f"recording {self.file}: label: expected {actions} actions, got {noun.targets.shape[1]}")

    def _add(self, topic: str, log_ns: int, data: bytes, seq: int = 0) -> None:
        if self._output.is_closed:
            raise RecordingError(f"recording {self.file} is closed")
        self._writer.add_message(self._channels[topic], log_ns, data, log_ns, seq & 0xFFFFFFFF)
        self._pending_bytes += len(data)
        self._chunk_begin_ns = log_ns if self._chunk_begin_ns is None else min(log_ns, self._chunk_begin_ns)
        self._chunk_end_ns = log_ns
        self.messages += 1

    def _flush_if_due(self) -> None:
        """Between nouns only, so that a capture is whole or not in the file."""
        begin_ns = self._chunk_begin_ns
        if self._pending_bytes >= _CHUNK_BYTES or (begin_ns is not None and self._chunk_end_ns - begin_ns >= _CHUNK_NS):
            self.flush()

    def _register(self) -> None:
        image_schema = self._writer.register_schema("foxglove.CompressedImage", "protobuf", descriptor_set())
        for camera in self._spec.cameras:
            self._channels[IMAGES + camera] = self._writer.register_channel(IMAGES + camera, "protobuf", image_schema)
        nouns = {topic: name for topic, (_, name) in CHANNELS.items()} | {"frames": "saccade.Frames"}
        for topic, name in nouns.items():
            schema = self._writer.register_schema(name, "jsonschema", json.dumps(_schema(topic, self._spec)).encode())
            self._channels[topic] = self._writer.register_channel(topic, "json", schema)

    def _metadata(self, notes: dict[str, str]) -> dict[str, str]:
        return notes | {
            "format_version": str(FORMAT_VERSION),
            "wire_version": str(WIRE_VERSION),
            "robot": spec_to_json(self._spec),
            "images": str(self._codec),
            "wall_clock": datetime.now(UTC).isoformat(),
            "monotonic_ns": str(time.monotonic_ns()),
        }


def _schema(topic: str, spec: RobotSpec) -> dict[str, Any]:
    """The JSON schema of a channel. Foxglove takes the names that it offers for plots from here."""
    number, numbers = {"type": "number"}, {"type": "array", "items": {"type": "number"}}
    by_name = {"type": "object", "additionalProperties": number}
    properties: dict[str, Any] = {}
    if topic == "frames":
        properties = {"seq": {"type": "integer"}, "stamp_ns": {"type": "integer"}}
        properties["cameras"] = {"type": "array", "items": {"type": "string"}}
        properties["captured_ns"] = {"type": "object", "additionalProperties": {"type": "integer"}}
        properties["faults"] = {"type": "object", "additionalProperties": {"type": "string"}}
    elif topic == "log":
        parts = {"sec": {"type": "integer"}, "nsec": {"type": "integer"}}
        properties = {"timestamp": {"type": "object", "title": "time", "properties": parts}}
        properties |= {"level": {"type": "integer"}, "line": {"type": "integer"}}
        properties |= {name: {"type": "string"} for name in ("message", "name", "file")}
    else:
        kinds = {"int": {"type": "integer"}, "float": number, "bool": {"type": "boolean"}, "dict[str, float]": by_name}
        array = {"shape": {"type": "array", "items": {"type": "integer"}}, "dtype": {"type": "string"}}
        array["data"] = {"type": "string", "contentEncoding": "base64"}
        kinds["np.ndarray"] = {"type": "object", "properties": array}
        kinds["tuple[str, ...]"] = {"type": "array", "items": {"type": "string"}}
        kinds["dict[str, tuple[float, ...]]"] = {"type": "object", "additionalProperties": numbers}
        for item in dataclasses.fields(CHANNELS[topic][0]):
            properties[item.name] = kinds.get(str(item.type).removesuffix(" | None"), {"type": "string"})
        if topic == "state":
            properties["values"] = {"type": "object", "properties": dict.fromkeys(spec.state_names, number)}
        if topic in ("action", "label"):
            properties["targets"] = {"type": "object", "properties": dict.fromkeys(spec.action_names, numbers)}
            properties["horizon"] = {"type": "integer"}
        if topic == "episode":
            properties["event"] = {"type": "string"}
    return {"title": topic, "type": "object", "properties": properties}
