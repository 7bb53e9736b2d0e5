"""Random and mutated messages of every topic, as many as wanted: each is decoded or refused, and nothing else happens.

`python -m tests.fuzz.messages --count 10000000` prints how many a second, and ends with the first message that does
anything but that: another exception, or memory beyond the caps (the address space is limited to a little more than what
a message of the largest size may take). tests/fuzz/guided.py follows coverage instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import resource
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack

from control.errors import WireError
from control.messages import Mode
from control.wire import SCHEMAS, decode, encode, max_bytes
from tests.nouns import EXAMPLES

_SPARE = 512 << 20  # bytes, over what the process has at the start: the largest message is 64 MiB, and is held twice

# Values that parsers stumble over, by type: large and negative sizes, numbers that are none, deep and long things.
_ODD: list[Any] = [
    None, True, -1, 0, 2**31, 2**53, 2**63 - 1, -(2**63), 2**64 - 1, float("nan"), float("inf"), -float("inf"), -0.0,
    "", "RUN", "\x00", "é" * 70, "x" * 5000, b"", b"\x00" * 64, [], [[]], [None] * 600, {}, {"": {}}, [[[[[[]]]]]],
    {"dtype": "|O", "shape": [1], "data": b"\x00" * 8}, {"dtype": "float64", "shape": [2**31, 2**31], "data": b""},
    {"dtype": "uint8", "shape": [-1, 4, 3], "data": b"\x00" * 12}, {"dtype": "float32", "shape": [0, 0], "data": b""},
    {"dtype": "float64", "shape": [[1]], "data": "text"}, {"dtype": "uint8", "shape": [4096, 4096, 3], "data": b"x"},
]  # fmt: skip
# Headers that promise far more than follows: maps, arrays, strings, bytes and extensions of up to 4 GiB.
_HEADERS = [bytes([code]) + struct.pack(">I", 2**32 - 1) for code in (0xC6, 0xC9, 0xDB, 0xDD, 0xDF)]
_HEADERS += [b"\xdc\xff\xff", b"\xde\xff\xff", b"\xc1", b"\xd4\x01\x00", b"\x81" * 600, b"\x91" * 1200]


def mutated(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Topics and bytes without an end, the same for the same generator."""
    whole = [(topic, encode(noun)) for topic, noun in EXAMPLES.items()]
    fields = [(topic, msgpack.unpackb(data, raw=False)) for topic, data in whole]
    while True:
        kind = rng.random()
        topic, data = rng.choice(whole)
        if kind < 0.35:
            topic, plain = rng.choice(fields)
            yield topic, _repacked(rng, plain)
        elif kind < 0.65:
            changed = bytearray(data)
            for _ in range(rng.randint(1, 8)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            yield topic, bytes(changed)
        elif kind < 0.75:
            yield topic, data[: rng.randrange(len(data))]
        elif kind < 0.85:
            at = rng.randrange(len(data))
            yield topic, data[:at] + rng.choice(_HEADERS) + data[at:]
        elif kind < 0.92:
            other = rng.choice(whole)[1]
            yield topic, data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]
        else:
            yield topic, rng.randbytes(rng.randint(0, 200))


def _repacked(rng: random.Random, plain: dict[str, Any]) -> bytes:
    """Well-formed msgpack with fields replaced, dropped, added, or taken from inside another one."""
    changed = dict(plain)
    for _ in range(rng.randint(1, 3)):
        name, odd = rng.choice(list(changed)), rng.choice(_ODD)
        match rng.randrange(4):
            case 0:
                changed[name] = odd
            case 1 if len(changed) > 1:
                del changed[name]
            case 2:
                changed[rng.choice(("extra", "", "v", "topic", "x" * 300))] = odd
            case _:
                inner = changed[name]
                if isinstance(inner, dict) and inner:
                    changed[name] = inner | {rng.choice(list(inner)): odd}
                else:
                    changed[name] = [inner, odd]
    data = msgpack.packb(changed)
    assert data is not None
    return data


def outcome(topic: str, data: bytes) -> str:
    """`decoded` or `refused`. Raises AssertionError with the message for anything else."""
    try:
        noun = decode(topic, data)
    except WireError as error:
        assert str(error).startswith(topic) and len(str(error)) < 4000, f"{topic}: {str(error)[:200]}"
        return "refused"
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__}: {error} on {topic} {data[:2000]!r}") from error
    assert isinstance(noun, SCHEMAS[topic][0]) and len(data) <= max_bytes(topic)
    for item in dataclasses.fields(noun):
        value = getattr(noun, item.name)
        assert not isinstance(value, Mode) or value in Mode
        assert getattr(value, "dtype", None) is None or not value.dtype.hasobject, f"{topic}.{item.name} holds objects"
    return "decoded"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _SPARE, used + _SPARE))
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts, size = {"decoded": 0, "refused": 0}, 0
    spent_ns, began_ns = 0, time.monotonic_ns()
    for number, (topic, data) in enumerate(mutated(random.Random(options.seed))):
        if number == options.count:
            break
        at_ns = time.monotonic_ns()
        counts[outcome(topic, data)] += 1
        spent_ns += time.monotonic_ns() - at_ns
        size += len(data)
        if number % 1_000_000 == 999_999:
            print(f"{number + 1:,} messages, {(time.monotonic_ns() - began_ns) / 1e9:.0f} s", flush=True)
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kb) / 1024
    print(
        f"{options.count:,} messages of seed {options.seed}, {size / 1e6:.0f} MB: {counts['refused']:,} refused,"
        f" {counts['decoded']:,} decoded, nothing else; {options.count / (spent_ns / 1e9):,.0f} a second in decoding;"
        f" peak memory grew by {grown_mb:.1f} MB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
