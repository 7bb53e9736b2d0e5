"""`bench wire`: how long a message takes from one process to another over the bus, encoding and decoding counted in.

Two processes, real sockets, `Publisher` and `Subscriber` as a run uses them. A latency runs from the stamp that is
taken before the message is encoded to the decoded noun in the receiver's hand; nothing in it is subtracted.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from control.address import BusAddress
from control.bus import Publisher
from control.clock import NS_PER_MS, NS_PER_S, MonotonicClock, Pacer
from control.errors import BusError, ConfigError, MeasurementError
from control.messages import Features, Frames
from control.report import percentiles
from control.wire import TOPICS, decode, encode

_ROOT = Path(__file__).resolve().parents[1]
_PORTS = range(20_000, 30_000, 10)  # below what the system hands out by itself
_JOIN_S = 60.0
_REPEATS = 50  # of one encode and one decode alone
TRANSPORTS = ("ipc", "tcp")
CAMERAS = ("front", "left", "right", "top", "wrist")


@dataclass(frozen=True, slots=True)
class Case:
    """A message of a run: its noun, and how often it is sent where latency is measured."""

    name: str
    noun: Any
    rate_hz: float


def cases() -> list[Case]:
    """Features of five views at the two shipped sizes, and five camera images at two sizes."""
    return [
        Case("features, 5 x 128", features(5, 128), 50.0),
        Case("features, 5 x 2048", features(5, 2048), 50.0),
        Case("frames, 5 x 224x224", frames(224, 224), 25.0),
        Case("frames, 5 x 640x360", frames(360, 640), 25.0),
    ]


def features(tokens: int, width: int) -> Features:
    values = np.random.default_rng(0).standard_normal((tokens, width)).astype(np.float32)
    ages = dict.fromkeys(CAMERAS, 0.0)
    stages = dict.fromkeys(("preprocess", "vision", "language", "pooling"), 1.0)
    return Features(0, 0, 0, 0, 1, 1, 1, "0123456789abcdef", values, ages, 50.0, stages)


def frames(height: int, width: int) -> Frames:
    generator = np.random.default_rng(0)
    return Frames(0, 0, {name: generator.integers(0, 256, (height, width, 3), np.uint8) for name in CAMERAS})


def parse_transports(text: str) -> list[str]:
    """`ipc,tcp`, or one of them. Raises ConfigError."""
    names = list(dict.fromkeys(text.split(",")))
    if not set(names) <= set(TRANSPORTS):
        raise ConfigError(f"--transports takes {' and '.join(TRANSPORTS)} with commas, got '{text}'")
    return names


def measure_wire(
    measured: Sequence[Case], transports: Sequence[str], seconds: float, show: Callable[[str], None]
) -> dict[str, Any]:
    """Every message over every transport: paced for `seconds`, then as fast as it goes for as long.

    Raises MeasurementError when the receiving process ends early or never joins.
    """
    before = os.getloadavg()
    rows = []
    for case in measured:
        alone = cost(case.noun)
        for transport in transports:
            show(f"{case.name} over {transport}")
            row = {"message": case.name, "transport": transport, "rate_hz": case.rate_hz} | alone
            rows.append(row | _measure(case, transport, seconds))
    return {"duration_s": seconds, "load_average_before": list(before), "rows": rows}


def cost(noun: Any) -> dict[str, Any]:
    """What one encode and one decode take, in ms, and the most bytes that Python holds for it meanwhile."""
    topic, data = TOPICS[type(noun)], encode(noun)
    found: dict[str, Any] = {"bytes": len(data)}
    for name, call in (("encode", lambda: encode(noun)), ("decode", lambda: decode(topic, data))):
        times_ms = []
        for _ in range(_REPEATS):
            began_ns = time.monotonic_ns()
            call()
            times_ms.append((time.monotonic_ns() - began_ns) / NS_PER_MS)
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        call()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        found |= {f"{name}_ms": percentiles(times_ms), f"{name}_alloc_bytes": peak - before}
    return found


def _measure(case: Case, transport: str, seconds: float) -> dict[str, Any]:
    topic = TOPICS[type(case.noun)]
    with ExitStack() as opened:
        address, publisher = _bind(topic, transport, opened)
        receiver = _join(address, topic, "newest", publisher, case.noun, opened)
        sent = _send_paced(publisher, case, seconds)
        paced = _result(receiver)
        receiver = _join(address, topic, "all", publisher, case.noun, opened)
        pushed = _send_all(publisher, case.noun, seconds)
        flood = _result(receiver)
    bytes_each = len(encode(case.noun))
    return {"sent": sent} | latency(paced) | {"flood_sent": pushed} | throughput(flood, bytes_each)


def latency(answer: dict[str, Any]) -> dict[str, Any]:
    """Of the receiver's answer to paced messages."""
    times_ms = np.asarray(answer["latency_ns"]) / NS_PER_MS
    return {"received": len(times_ms), "rejected": answer["rejected"], "latency_ms": percentiles(times_ms)}


def throughput(answer: dict[str, Any], bytes_each: int) -> dict[str, Any]:
    """Of the receiver's answer to messages without a pause: counted between the first and the last arrival."""
    arrived = answer["arrived_ns"]
    seconds = (arrived[-1] - arrived[0]) / NS_PER_S if len(arrived) > 1 else 0.0
    rate_hz = (len(arrived) - 1) / seconds if seconds else None
    megabytes = None if rate_hz is None else rate_hz * bytes_each / 1e6
    return {"flood_received": len(arrived), "messages_per_s": rate_hz, "megabytes_per_s": megabytes}


def _bind(topic: str, transport: str, opened: ExitStack) -> tuple[str, Publisher]:
    """A publisher on an address of its own, and the address."""
    if transport == "ipc":
        folder = tempfile.mkdtemp(prefix="saccade-wire-")
        opened.callback(shutil.rmtree, folder, ignore_errors=True)
        address = f"ipc://{folder}"
        publisher = Publisher(BusAddress(address), topic)
        opened.callback(publisher.close)
        return address, publisher
    for port in _PORTS:
        address = f"tcp://127.0.0.1:{port}"
        try:
            publisher = Publisher(BusAddress(address), topic)
        except BusError:  # in use: the next one
            continue
        opened.callback(publisher.close)
        return address, publisher
    raise MeasurementError(f"no free port on loopback among {_PORTS.start}..{_PORTS.stop}; try --transports ipc")


def _join(
    address: str, topic: str, which: str, publisher: Publisher, noun: Any, opened: ExitStack
) -> subprocess.Popen[str]:
    """A receiver that has got its first message."""
    receiver = subprocess.Popen(
        [sys.executable, "-m", "control.wire_worker", address, topic, which],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    opened.callback(_end, receiver)
    gives_up_s = time.monotonic() + _JOIN_S
    while not select.select([receiver.stdout], [], [], 0.05)[0]:
        publisher.send(noun)
        if time.monotonic() > gives_up_s:
            raise MeasurementError(f"no message over {address} was received within {_JOIN_S:g} s")
    assert receiver.stdout is not None
    if receiver.stdout.readline().strip() != "ready":
        raise MeasurementError(f"the receiving process ended before it began, code {receiver.wait()}")
    return receiver


def _send_paced(publisher: Publisher, case: Case, seconds: float) -> int:
    pacer = Pacer(MonotonicClock(), round(NS_PER_S / case.rate_hz))
    ends_ns, sent = time.monotonic_ns() + round(seconds * NS_PER_S), 0
    while time.monotonic_ns() < ends_ns:
        pacer.wait()
        sent += 1
        publisher.send(replace(case.noun, seq=sent, stamp_ns=time.monotonic_ns()))
    return sent


def _send_all(publisher: Publisher, noun: Any, seconds: float) -> int:
    ends_ns, sent = time.monotonic_ns() + round(seconds * NS_PER_S), 0
    while (now_ns := time.monotonic_ns()) < ends_ns:
        sent += 1
        publisher.send(replace(noun, seq=sent, stamp_ns=now_ns))
    return sent


def _result(receiver: subprocess.Popen[str]) -> dict[str, Any]:
    answer, _ = receiver.communicate(timeout=_JOIN_S)  # closes its stdin
    if receiver.returncode != 0:
        raise MeasurementError(f"the receiving process ended with code {receiver.returncode}")
    return json.loads(answer)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def table(report: dict[str, Any]) -> Table:
    grid = Table(show_edge=False, pad_edge=False)
    for heading in ("message", "over"):
        grid.add_column(heading)
    for heading in (
        *("KB", "p50, ms", "p99", "max", "got of sent", "encode", "decode", "messages/s", "MB/s"),
        *("encode holds KB", "decode KB"),
    ):
        grid.add_column(heading, justify="right")
    for row in report["rows"]:
        late = row["latency_ms"]
        grid.add_row(
            row["message"],
            row["transport"],
            f"{row['bytes'] / 1000:.1f}",
            *(f"{late[key]:.2f}" if late else "-" for key in ("p50", "p99", "max")),
            f"{row['received']} of {row['sent']}",
            *(f"{row[key]['p50']:.2f}" for key in ("encode_ms", "decode_ms")),
            *(f"{row[key]:.0f}" if row[key] else "-" for key in ("messages_per_s", "megabytes_per_s")),
            *(f"{row[key] / 1000:.1f}" for key in ("encode_alloc_bytes", "decode_alloc_bytes")),
        )
    return grid


def notes(report: dict[str, Any]) -> list[str]:
    rates = ", ".join(dict.fromkeys(f"{row['rate_hz']:g} Hz" for row in report["rows"]))
    return [
        "latency: from the stamp before encoding to the decoded noun in the other process, newest only, paced at"
        f" {rates} for {report['duration_s']:g} s. messages/s, MB/s: sent without a pause, what came through; the"
        " publisher drops what a reader cannot take. holds: most bytes that Python allocates for one encode or decode;"
        " ZeroMQ's own copy of the message comes on top.",
    ]
