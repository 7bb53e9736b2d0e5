"""How a recording holds each noun: a channel a topic in an MCAP file, so that Foxglove shows and plots it as it is.

Knows the bytes of one message; refuses to know files (recording.py writes them, recording_reader.py reads them).

Everything but images is JSON with a JSON schema, with values by the robot's own names (`state.values.waist`,
`action.targets.waist[0]`); Python writes a float64 so that it reads back exactly, and what is not finite is the text
"NaN", "Infinity" or "-Infinity". Other arrays are the wire's `{dtype, shape, data}` with base64.

Images are `foxglove.CompressedImage` in protobuf, a channel a camera, and a line on `frames` closes each capture.
Protobuf rather than JSON, because base64 makes 34 % more bytes, which zstd takes back at twice the time: 0.23 against
0.47 ms for a capture of five 224x224 JPEGs. Its four fields and their descriptor are written by hand in
recording_images.py, which saves a dependency.

Letters: S state values, A actions, H horizon.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import importlib
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from control.clock import NS_PER_S
from control.errors import ConfigError, WireError
from control.messages import ActionChunk, Cycle, Features, Instruction, RobotSpec, State
from control.wire import SCHEMAS, TOPICS, noun_of, plain

FORMAT_VERSION = 1
PROFILE = "saccade"
IMAGES = "images/"  # + camera: the channel of its images
MAX_TEXT_CHARS = 4000

_LIMITS = ("action_low", "action_high", "max_velocity", "max_acceleration")
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_LOG_LEVELS = {"debug": 1, "info": 2, "warning": 3, "error": 4, "fatal": 5}  # foxglove.LogLevel


@dataclass(frozen=True, slots=True)
class Truth:
    """What the simulator knows and no camera tells: floats a named object, poses or joints, in SI units."""

    stamp_ns: int
    objects: dict[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """What an expert would do from the state at `stamp_ns`; row 0 is due one period later."""

    stamp_ns: int
    targets: np.ndarray  # (H, A) float64


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a log; `level` is debug, info, warning, error or fatal."""

    stamp_ns: int
    level: str
    name: str  # of the process
    message: str


@dataclass(frozen=True, slots=True)
class Episode:
    """One attempt at one task. `end_ns` is None when the recording was cut before its end."""

    index: int
    task: str
    begin_ns: int
    end_ns: int | None = None
    seed: int | None = None
    success: bool | None = None


def require(module: str, extra: str = "record") -> Any:
    """A module of an extra. Raises ConfigError that names the extra where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"recordings need {error.name or module}, which is not installed: pip install 'saccade[{extra}]'"
        ) from None


def to_json(noun: Any, spec: RobotSpec) -> bytes:
    """The message of any noun but Frames. Raises ConfigError for NaN where JSON has no place for it."""
    if isinstance(noun, Label):
        fields = {"stamp_ns": noun.stamp_ns, **_targets_to_json(noun.targets, spec)}
    elif isinstance(noun, Truth):
        objects = {name: [_number(value) for value in values] for name, values in noun.objects.items()}
        fields = {"stamp_ns": noun.stamp_ns, "objects": objects}
    elif isinstance(noun, LogLine):
        stamp = dict(zip(("sec", "nsec"), divmod(noun.stamp_ns, NS_PER_S), strict=True))
        words = {"name": noun.name[:MAX_TEXT_CHARS], "message": noun.message[:MAX_TEXT_CHARS]}
        fields = {"timestamp": stamp, "level": _LOG_LEVELS[noun.level], **words, "file": "", "line": 0}
    elif isinstance(noun, Episode):
        fields = {"event": "begin" if noun.end_ns is None else "end"} | dataclasses.asdict(noun)
    else:
        fields = {name: _text_of_bytes(plain(getattr(noun, name))) for name in SCHEMAS[TOPICS[type(noun)]][1]}
        if isinstance(noun, State):
            names = _names(noun.values.shape[0], spec.state_names)
            fields["values"] = {name: _number(value) for name, value in zip(names, noun.values.tolist(), strict=True)}
        elif isinstance(noun, ActionChunk):
            fields |= _targets_to_json(noun.targets, spec)
    try:
        return json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise ConfigError(f"recording: {type(noun).__name__} cannot be written: {error}") from None


def from_json(topic: str, data: bytes, spec: RobotSpec) -> Any:
    """The noun of a message. Raises WireError that names the field, the expected and the got."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{topic}: expected a JSON object, got {len(data)} bytes that are not: {error}") from None
    if type(fields) is not dict:
        raise WireError(f"{topic}: expected a JSON object, got {type(fields).__name__}")
    try:
        if topic in SCHEMAS and topic != "frames":
            if topic == "state":
                fields["values"] = _state_from_json(fields["values"], spec)
            elif topic == "action":
                fields["targets"] = plain(_targets_from_json(fields, spec))
                del fields["horizon"]
            return noun_of(topic, _bytes_of_text(fields))
        if topic == "episode":
            return _episode_from_json(fields)
        if topic == "log":
            level = {number: name for name, number in _LOG_LEVELS.items()}[fields["level"]]
            stamp_ns = _integer(fields["timestamp"]["sec"]) * NS_PER_S + _integer(fields["timestamp"]["nsec"])
            return LogLine(stamp_ns, level, str(fields["name"]), str(fields["message"]))
        stamp_ns = _integer(fields["stamp_ns"])
        if topic == "label":
            return Label(stamp_ns, _targets_from_json(fields, spec))
        if topic == "truth":
            return Truth(stamp_ns, {str(name): tuple(map(_float, row)) for name, row in fields["objects"].items()})
        return fields
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, WireError):
            raise
        what = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
        raise WireError(f"{topic}: {what}") from None


def spec_to_json(spec: RobotSpec) -> str:
    fields = {item.name: plain(getattr(spec, item.name)) for item in dataclasses.fields(spec)}
    for name in _LIMITS:
        values = getattr(spec, name)
        fields[name] = None if values is None else [_number(value) for value in values.tolist()]
    return json.dumps(fields)


def spec_from_json(text: str) -> RobotSpec:
    """Raises WireError that names the field."""
    try:
        fields = json.loads(text)
        for name in _LIMITS:
            if name != "max_acceleration" or fields.get(name) is not None:
                fields[name] = plain(np.array([_float(value) for value in fields[name]], dtype=np.float64))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WireError(f"robot: expected the fields of a RobotSpec: {error}") from None
    return noun_of("robot", fields)


def _names(count: int, names: tuple[str, ...]) -> tuple[str, ...]:
    """Numbers where the robot's names do not fit: what was on the bus is recorded even when it was wrong."""
    return names if count == len(names) else tuple(str(index) for index in range(count))


def _targets_to_json(targets: np.ndarray, spec: RobotSpec) -> dict[str, Any]:
    names = _names(targets.shape[1], spec.action_names)
    columns = [[_number(value) for value in column] for column in targets.T.tolist()]
    return {"targets": dict(zip(names, columns, strict=True)), "horizon": targets.shape[0]}


def _targets_from_json(fields: dict[str, Any], spec: RobotSpec) -> np.ndarray:
    columns, horizon = fields["targets"], _integer(fields["horizon"])
    _expect_names("targets", columns, spec.action_names)
    if horizon > 256 or any(len(column) != horizon for column in columns.values()):
        raise ValueError(f"targets: expected {horizon} values for each action, at most 256")
    rows = [[_float(column[row]) for column in columns.values()] for row in range(horizon)]
    return np.array(rows, dtype=np.float64).reshape(horizon, len(columns))


def _state_from_json(values: dict[str, Any], spec: RobotSpec) -> dict[str, Any]:
    _expect_names("values", values, spec.state_names)
    return plain(np.array([_float(value) for value in values.values()], dtype=np.float64))


def _expect_names(where: str, values: dict[str, Any], names: tuple[str, ...]) -> None:
    expected = _names(len(values), names)
    if tuple(values) != expected:
        raise ValueError(f"{where}: expected the names {', '.join(expected)}, got {', '.join(values)}")


def _episode_from_json(fields: dict[str, Any]) -> Episode:
    begin_ns, end_ns = _integer(fields["begin_ns"]), fields["end_ns"]
    seed, success = fields["seed"], fields["success"]
    if success is not None and type(success) is not bool:
        raise ValueError(f"success: expected true, false or null, got {success!r}")
    return Episode(
        _integer(fields["index"]),
        str(fields["task"])[:MAX_TEXT_CHARS],
        begin_ns,
        None if end_ns is None else _integer(end_ns),
        None if seed is None else _integer(seed),
        success,
    )


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _float(value: Any) -> float:
    if type(value) is str and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    if type(value) not in (int, float):
        raise ValueError(f"expected a number, got {value!r:.60}")
    return float(value)


def _integer(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"expected an integer from 0, got {value!r:.60}")
    return value


def _text_of_bytes(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {key: _text_of_bytes(item) for key, item in value.items()}
    return value


def _bytes_of_text(fields: dict[str, Any]) -> dict[str, Any]:
    """The data of each array field back from base64."""

    def decoded(value: Any) -> Any:
        if type(value) is not dict or value.keys() != {"dtype", "shape", "data"} or type(value["data"]) is not str:
            return value
        try:
            return value | {"data": base64.b64decode(value["data"], validate=True)}
        except binascii.Error as error:
            raise ValueError(f"expected base64, got {error}") from None

    return {name: decoded(value) for name, value in fields.items()}


# topic -> noun and name of the schema; `frames` is the line that closes a capture
CHANNELS: dict[str, tuple[type, str]] = {
    "state": (State, "saccade.State"),
    "instruction": (Instruction, "saccade.Instruction"),
    "action": (ActionChunk, "saccade.ActionChunk"),
    "features": (Features, "saccade.Features"),
    "cycle": (Cycle, "saccade.Cycle"),
    "truth": (Truth, "saccade.Truth"),
    "label": (Label, "saccade.Label"),
    "episode": (Episode, "saccade.Episode"),
    "log": (LogLine, "foxglove.Log"),
}
