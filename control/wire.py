"""Nouns to bytes and back, with every limit. Knows nothing of who listens.

One message is one msgpack map: `v` (wire version), `topic`, and the noun's fields. An array is `{dtype, shape, data}`
with raw little-endian C-order bytes. Nothing on the wire is executable: no pickle, no extension types, no object arrays
(`np.ndarray(buffer, dtype="|O")` crashes the interpreter, so dtypes come from an allow-list), and every size is capped
before memory is taken. Decoding checks form only; whether numbers are finite or fresh is the loop's to judge.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import msgpack
import numpy as np

from control.errors import WireError
from control.messages import (
    MAX_COMMAND_CHARS,
    MAX_COMMANDS,
    MAX_FAULT_CHARS,
    ActionChunk,
    Command,
    Cycle,
    Features,
    Frames,
    Instruction,
    Mode,
    Reply,
    RobotSpec,
    State,
)

WIRE_VERSION = 1
MAX_INSTRUCTION_CHARS = 1000
MAX_NAME_CHARS = 64
MAX_TEXT_CHARS = 4000
MAX_CAMERAS = 16
MAX_AXES = 128
MAX_IMAGE_SIDE = 4096

_DTYPES = {"uint8": np.dtype("u1"), "float32": np.dtype("<f4"), "float64": np.dtype("<f8")}
_MAX_INT = 2**63 - 1

Check: TypeAlias = Callable[[Any, str], Any]


def integer(low: int = 0, high: int = _MAX_INT) -> Check:
    def check(value: Any, where: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise WireError(f"{where}: expected an integer in {low}..{high}, got {_shown(value)}")
        return value

    return check


def number(low: float = -math.inf) -> Check:
    def check(value: Any, where: str) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or value < low:
            floor = "" if low == -math.inf else f" from {low:g}"
            raise WireError(f"{where}: expected a finite number{floor}, got {_shown(value)}")
        return float(value)

    return check


def text(max_chars: int = MAX_NAME_CHARS, min_chars: int = 0) -> Check:
    def check(value: Any, where: str) -> str:
        if type(value) is not str or not min_chars <= len(value) <= max_chars:
            raise WireError(f"{where}: expected text of {min_chars}..{max_chars} characters, got {_shown(value)}")
        return value

    return check


def flag(value: Any, where: str) -> bool:
    if type(value) is not bool:
        raise WireError(f"{where}: expected true or false, got {_shown(value)}")
    return value


def mode(value: Any, where: str) -> Mode:
    if type(value) is not str or value not in Mode.__members__:
        raise WireError(f"{where}: expected one of {', '.join(Mode)}, got {_shown(value)}")
    return Mode(value)


def scalar(value: Any, where: str) -> Any:
    if value is None or type(value) in (bool, int) or (type(value) is str and len(value) <= MAX_TEXT_CHARS):
        return value
    return number()(value, where)


def optional(check: Check) -> Check:
    return lambda value, where: None if value is None else check(value, where)


def sequence(check: Check, most: int) -> Check:
    def check_all(value: Any, where: str) -> tuple[Any, ...]:
        if type(value) is not list or len(value) > most:
            raise WireError(f"{where}: expected a list of at most {most}, got {_shown(value)}")
        return tuple(check(item, f"{where}[{index}]") for index, item in enumerate(value))

    return check_all


def mapping(check: Check, most: int) -> Check:
    def check_all(value: Any, where: str) -> dict[str, Any]:
        if type(value) is not dict or len(value) > most:
            raise WireError(f"{where}: expected a map of at most {most}, got {_shown(value)}")
        name = text(MAX_NAME_CHARS, min_chars=1)
        return {name(key, where): check(item, f"{where}.{key}") for key, item in value.items()}

    return check_all


def array(dtype: str, shape: tuple[int, ...]) -> Check:
    """Shape gives the most allowed along each dimension."""

    def check(value: Any, where: str) -> np.ndarray:
        if type(value) is not dict or value.keys() != {"dtype", "shape", "data"}:
            raise WireError(f"{where}: expected an array {{dtype, shape, data}}, got {_shown(value)}")
        if value["dtype"] != dtype:
            raise WireError(f"{where}: expected dtype {dtype}, got {_shown(value['dtype'])}")
        got = value["shape"]
        if (
            type(got) is not list
            or len(got) != len(shape)
            or any(type(n) is not int or not 0 <= n <= most for n, most in zip(got, shape, strict=True))
        ):
            raise WireError(f"{where}: expected a shape of at most {list(shape)}, got {_shown(got)}")
        data = value["data"]
        expected = math.prod(got) * _DTYPES[dtype].itemsize
        if type(data) is not bytes or len(data) != expected:
            size = len(data) if type(data) is bytes else _shown(data)
            raise WireError(f"{where}: expected {expected} bytes for {dtype} {got}, got {size}")
        return np.frombuffer(data, dtype=_DTYPES[dtype]).reshape(got)

    return check


def image(value: Any, where: str) -> np.ndarray:
    pixels = array("uint8", (MAX_IMAGE_SIDE, MAX_IMAGE_SIDE, 3))(value, where)
    if pixels.size == 0 or pixels.shape[2] != 3:
        raise WireError(f"{where}: expected an RGB image (height, width, 3), got shape {list(pixels.shape)}")
    return pixels


def camera_size(value: Any, where: str) -> tuple[int, int]:
    size = sequence(integer(1, MAX_IMAGE_SIDE), 2)(value, where)
    if len(size) != 2:
        raise WireError(f"{where}: expected [height, width], got {_shown(value)}")
    return size


_AXIS_VALUES = array("float64", (MAX_AXES,))
_MS = number(0.0)
_NAMES = sequence(text(MAX_NAME_CHARS, min_chars=1), MAX_AXES)
_CAMERA_FAULTS = mapping(text(200, min_chars=1), MAX_CAMERAS)
_HEADER = {"seq": integer(), "stamp_ns": integer()}

# topic -> noun, how each field is checked, most bytes of a message
SCHEMAS: dict[str, tuple[type, dict[str, Check], int]] = {
    "robot": (
        RobotSpec,
        {
            "name": text(min_chars=1),
            "cameras": mapping(camera_size, MAX_CAMERAS),
            "state_names": _NAMES,
            "action_names": _NAMES,
            "action_low": _AXIS_VALUES,
            "action_high": _AXIS_VALUES,
            "max_velocity": _AXIS_VALUES,
            "action_period_s": number(0.0),
            "max_acceleration": optional(_AXIS_VALUES),
        },
        64 << 10,
    ),
    "frames": (
        Frames,
        _HEADER
        | {
            "images": mapping(image, MAX_CAMERAS),
            "published_ns": optional(integer()),
            "captured_ns": mapping(integer(), MAX_CAMERAS),
            "faults": _CAMERA_FAULTS,
        },
        64 << 20,
    ),
    "state": (
        State,
        _HEADER
        | {
            "values": _AXIS_VALUES,
            "history": optional(array("float64", (1024, MAX_AXES))),
            "task_instruction_id": integer(),
            "task_done": optional(flag),
            "camera_faults": _CAMERA_FAULTS,
        },
        2 << 20,
    ),
    "instruction": (
        Instruction,
        _HEADER | {"session": integer(), "id": integer(1), "text": text(MAX_INSTRUCTION_CHARS, min_chars=1)},
        16 << 10,
    ),
    "features": (
        Features,
        _HEADER
        | {
            "frame_seq": integer(),
            "frame_stamp_ns": integer(),
            "session": integer(),
            "instruction_id": integer(1),
            "encoder_epoch": integer(),
            "policy_id": text(min_chars=1),
            "tokens": array("float32", (4096, 16384)),
            "view_age_ms": mapping(_MS, MAX_CAMERAS),
            "encode_ms": _MS,
            "stage_ms": mapping(_MS, 16),
            "frame_published_ns": optional(integer()),
            "fault": text(MAX_FAULT_CHARS),
        },
        16 << 20,
    ),
    "action": (
        ActionChunk,
        _HEADER
        | {
            "instruction_id": integer(),
            "feature_age_ms": optional(_MS),
            "mode": mode,
            "targets": array("float64", (256, MAX_AXES)),
            "period_s": number(0.0),
            "valid_until_ns": integer(),
        },
        1 << 20,
    ),
    "cycle": (
        Cycle,
        _HEADER
        | {
            "deadline_ns": integer(),
            "lateness_ms": number(),
            "cycle_ms": _MS,
            "stage_ms": mapping(_MS, 16),
            "state_age_ms": optional(number()),
            "feature_age_ms": optional(number()),
            "feature_seq": optional(integer()),
            "encoder_epoch": optional(integer()),
            "encode_ms": optional(_MS),
            "instruction_id": integer(),
            "pending_id": optional(integer(1)),
            "mode": mode,
            "reason": text(MAX_TEXT_CHARS),
            "limits": sequence(text(200), 4 * MAX_AXES),
            "missed_ticks": integer(),
            "switch_ms": optional(_MS),
            "rejected": integer(),
            "task_done": optional(flag),
            "task_instruction_id": integer(),
            "feature_arrived_ns": optional(integer()),
            "commands": sequence(text(MAX_COMMAND_CHARS), MAX_COMMANDS),
        },
        256 << 10,
    ),
    "command": (
        Command,
        {"request_id": integer(), "verb": text(min_chars=1), "text": text(20 * MAX_INSTRUCTION_CHARS)},
        256 << 10,
    ),
    "reply": (
        Reply,
        {
            "request_id": integer(),
            "outcome": text(min_chars=1),
            "message": text(MAX_TEXT_CHARS),
            "values": mapping(scalar, 128),
        },
        256 << 10,
    ),
}
TOPICS = {noun: topic for topic, (noun, _, _) in SCHEMAS.items()}
_REQUIRED = {
    topic: {
        item.name
        for item in dataclasses.fields(noun)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    for topic, (noun, _, _) in SCHEMAS.items()
}


def max_bytes(topic: str) -> int:
    return SCHEMAS[topic][2]


def encode(noun: Any) -> bytes:
    """The bytes of a message. Form is the sender's own responsibility: the receiver checks it."""
    topic = TOPICS[type(noun)]
    fields: dict[str, Any] = {"v": WIRE_VERSION, "topic": topic}
    for name in SCHEMAS[topic][1]:
        fields[name] = plain(getattr(noun, name))
    data = msgpack.packb(fields)
    assert data is not None
    return data


def decode(topic: str, data: bytes) -> Any:
    """The noun of `topic` in these bytes. Raises WireError that names the field, the expected and the got."""
    most = max_bytes(topic)
    if len(data) > most:
        raise WireError(f"{topic}: expected at most {most} bytes, got {len(data)}")
    try:
        fields = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=20 * MAX_INSTRUCTION_CHARS * 4,
            max_bin_len=most,
            max_array_len=4 * MAX_AXES,
            max_map_len=4 * MAX_AXES,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"{topic}: expected one msgpack map, got {len(data)} bytes that are not: {error}") from None
    if type(fields) is not dict:
        raise WireError(f"{topic}: expected a msgpack map, got {_shown(fields)}")
    if fields.pop("v", None) != WIRE_VERSION:
        raise WireError(f"{topic}: expected wire version v={WIRE_VERSION}; the sender runs another version of Saccade")
    if fields.pop("topic", None) != topic:
        raise WireError(f"{topic}: the message names another topic; is a socket connected to the wrong address?")
    return noun_of(topic, fields)


def noun_of(topic: str, fields: dict[str, Any]) -> Any:
    """The noun of `topic` from its plain fields, each checked. Raises WireError that names the field."""
    noun, checks, _ = SCHEMAS[topic]
    for name in fields.keys() - checks.keys():
        near = difflib.get_close_matches(str(name), checks, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(checks)}"
        raise WireError(f"{topic}: unknown field {_shown(name)}{hint}")
    missing = _REQUIRED[topic] - fields.keys()
    if missing:
        raise WireError(f"{topic}: missing {', '.join(sorted(missing))}")
    values = {name: checks[name](value, f"{topic}.{name}") for name, value in fields.items()}
    try:
        return noun(**values)
    except ValueError as error:
        raise WireError(f"{topic}: {error}") from None


def plain(value: Any) -> Any:
    """What msgpack can hold: maps, lists, numbers, text and bytes."""
    if isinstance(value, np.ndarray):
        little = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
        return {"dtype": value.dtype.name, "shape": list(value.shape), "data": little.tobytes()}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _shown(value: Any) -> str:
    shown = repr(value) if not isinstance(value, bytes | dict) else f"{type(value).__name__} of {len(value)}"
    return shown if len(shown) <= 60 else f"{type(value).__name__} {shown[:57]}..."
