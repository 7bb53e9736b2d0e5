"""Camera images in a recording: compressed one by one, as `foxglove.CompressedImage` in protobuf, read with suspicion.

Measured on one core for a capture of five views. `jpeg` (quality 95, 4:4:4), the way for real cameras: 112x112 0.4 ms
and 26 KB, 224x224 1.1 ms and 48 KB (134 KB when noisy). `webp`, which is lossless: the simulator's flat colours at
112x112 1.2 ms and 6 KB, 224x224 3.9 ms and 52 KB, noisy 5.9 ms and 462 KB. There is no PNG: at its fastest level it is
larger and takes 1.1, 5.3 and 23 ms. Decoding takes 0.5 ms (112x112) to 2 ms (224x224) in both.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from control.clock import NS_PER_S
from control.errors import ConfigError, WireError
from control.messages import Frames
from control.recording_format import require

Format = Literal["jpeg", "webp"]
_STAMP, _DATA, _FORMAT, _FRAME_ID = 1, 2, 3, 4  # the fields of foxglove.CompressedImage
_NUMBER, _BYTES = 0, 2  # protobuf's wire types
_TIMESTAMP = ".google.protobuf.Timestamp"


@dataclass(frozen=True, slots=True)
class ImageCodec:
    """How images are compressed: `jpeg` with a quality of 1..100, or `webp`, which keeps every bit."""

    format: Format = "jpeg"
    quality: int = 95

    def __post_init__(self) -> None:
        if self.format not in get_args(Format) or not 1 <= self.quality <= 100:
            known = " or ".join(get_args(Format))
            raise ConfigError(f"images: expected {known} with a quality of 1..100, got {self.format} {self.quality}")

    def __str__(self) -> str:
        return f"jpeg quality {self.quality} 4:4:4" if self.format == "jpeg" else "webp lossless"

    def encode(self, image: np.ndarray) -> bytes:
        """(H, W, 3) uint8 to the bytes of a file."""
        buffer = io.BytesIO()
        picture = require("PIL.Image").fromarray(image)
        if self.format == "jpeg":
            picture.save(buffer, "JPEG", quality=self.quality, subsampling=0)
        else:
            picture.save(buffer, "WEBP", lossless=True, quality=0, method=0)
        return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image as it lies in the file."""

    format: Format
    size: tuple[int, int]  # (height, width) that the robot's spec promises
    data: bytes

    def decode(self) -> np.ndarray:
        """(H, W, 3) uint8. Raises WireError for what is no such image; the size is checked before any pixel."""
        image_module = require("PIL.Image")
        height, width = self.size
        try:
            with image_module.open(io.BytesIO(self.data), formats=[self.format.upper()]) as picture:
                if picture.size != (width, height) or picture.mode != "RGB":
                    got = f"{picture.mode} of {picture.size[0]}x{picture.size[1]}"
                    raise WireError(f"expected RGB of {width}x{height}, got {got}")
                return np.asarray(picture)
        except WireError:
            raise
        except Exception as error:  # a decoder of foreign bytes may raise anything
            raise WireError(
                f"expected a {self.format} image, got {len(self.data)} bytes that are not: {error}"
            ) from None


@dataclass(frozen=True, slots=True, eq=False)
class StoredFrames:
    """One capture, still compressed."""

    seq: int
    stamp_ns: int
    images: dict[str, StoredImage]  # by camera
    captured_ns: dict[str, int] = field(default_factory=dict)  # the drivers' own stamps
    faults: dict[str, str] = field(default_factory=dict)  # cameras that failed, and how

    def decode(self, *cameras: str) -> Frames:
        """The capture as the encoder got it, all cameras or the named ones. Raises ConfigError naming the image."""
        images = {}
        for camera in cameras or self.images:
            if camera not in self.images:
                raise ConfigError(
                    f"frame {self.seq} has no image of camera '{camera}'; it has {', '.join(self.images)}"
                )
            try:
                images[camera] = self.images[camera].decode()
            except WireError as error:
                raise ConfigError(f"frame {self.seq}, camera '{camera}': {error}; was the file changed?") from None
        return Frames(self.seq, self.stamp_ns, images, captured_ns=dict(self.captured_ns), faults=dict(self.faults))


def to_protobuf(camera: str, stamp_ns: int, image_format: str, data: bytes) -> bytes:
    """The message of one image."""
    seconds, nanos = divmod(stamp_ns, NS_PER_S)
    stamp = _number_field(1, seconds) + _number_field(2, nanos)
    parts = ((_STAMP, stamp), (_DATA, data), (_FORMAT, image_format.encode()), (_FRAME_ID, camera.encode()))
    return b"".join(_bytes_field(number, part) for number, part in parts)


def from_protobuf(data: bytes, size: tuple[int, int]) -> tuple[int, StoredImage]:
    """Stamp and image of a message, in whichever order its fields stand. Raises WireError."""
    fields = _fields(data)
    stamp = _fields(fields.get(_STAMP, b""))
    image_format = fields.get(_FORMAT, b"")
    known = {name.encode(): name for name in get_args(Format)}
    if image_format not in known or not isinstance(fields.get(_DATA), bytes):
        raise WireError(f"expected an image as {' or '.join(get_args(Format))}, got format {image_format!r:.40}")
    numbers = [stamp.get(1, 0), stamp.get(2, 0)]
    if any(not isinstance(number, int) for number in numbers):
        raise WireError("expected a stamp of seconds and nanoseconds")
    return numbers[0] * NS_PER_S + numbers[1], StoredImage(known[image_format], size, fields[_DATA])


def descriptor_set() -> bytes:
    """The FileDescriptorSet of foxglove.CompressedImage and what it imports, as Foxglove wants it for a schema."""
    int64, int32, text, message, raw = 3, 5, 9, 11, 12  # FieldDescriptorProto.Type
    timestamp = _file(
        "google/protobuf/timestamp.proto", "google.protobuf", "Timestamp", [("seconds", 1, int64), ("nanos", 2, int32)]
    )
    image = _file(
        "foxglove/CompressedImage.proto",
        "foxglove",
        "CompressedImage",
        [
            ("timestamp", _STAMP, message),
            ("data", _DATA, raw),
            ("format", _FORMAT, text),
            ("frame_id", _FRAME_ID, text),
        ],
        imports="google/protobuf/timestamp.proto",
    )
    return _bytes_field(1, timestamp) + _bytes_field(1, image)


def _file(name: str, package: str, message: str, fields: list[tuple[str, int, int]], imports: str = "") -> bytes:
    """A FileDescriptorProto with one message; a field of type message is a Timestamp."""
    body = _bytes_field(1, message.encode())
    for label, number, kind in fields:
        type_name = _bytes_field(6, _TIMESTAMP.encode()) if kind == 11 else b""
        one = _bytes_field(1, label.encode()) + _number_field(3, number) + _number_field(4, 1) + _number_field(5, kind)
        body += _bytes_field(2, one + type_name)
    dependency = _bytes_field(3, imports.encode()) if imports else b""
    head = _bytes_field(1, name.encode()) + _bytes_field(2, package.encode()) + dependency
    return head + _bytes_field(4, body) + _bytes_field(12, b"proto3")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number_field(number: int, value: int) -> bytes:
    return _varint(number << 3 | _NUMBER) + _varint(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise WireError("expected a protobuf message, got one that ends in the middle of a number")


def _fields(data: Any) -> dict[int, Any]:
    """Numbers and bytes of a protobuf message by field number."""
    fields: dict[int, Any] = {}
    at = 0
    if not isinstance(data, bytes):
        raise WireError("expected a protobuf message inside, got a number")
    while at < len(data):
        key, at = _read_varint(data, at)
        value, at = _read_varint(data, at)
        if key & 7 == _BYTES:
            if at + value > len(data):
                raise WireError(f"expected {value} bytes in field {key >> 3}, got {len(data) - at}")
            fields[key >> 3] = data[at : at + value]
            at += value
        elif key & 7 == _NUMBER:
            fields[key >> 3] = value
        else:
            raise WireError(f"expected numbers and bytes in a protobuf message, got wire type {key & 7}")
    return fields
