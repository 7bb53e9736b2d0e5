"""What the stamps and the cycle record cost the loop in each cycle. Measured as it is done there, over a real socket.

In a cycle the loop reads the clock seven times, makes one `Cycle`, and sends it; while it waits, it takes new features
off the bus, which it would have done in the tick anyway, and reads the clock once more. The robot host and the encoder
each add one clock read or none. All of it happens whether anybody profiles or not: a profile only listens.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from typing import Any

import numpy as np

from control.address import BusAddress
from control.bus import Publisher, Subscriber
from control.clock import NS_PER_MS
from control.messages import Cycle, Mode

_STAGES = ("state", "features", "head", "safety", "publish")
_WARM_UP = 50


def measure_cost(period_ms: float, cycles: int = 2000) -> dict[str, Any]:
    """`us`: p50, p95, p99 and max a cycle, in microseconds; `share` of the period at the median."""
    with tempfile.TemporaryDirectory(prefix="saccade-cost-") as folder:
        bus = BusAddress(f"ipc://{folder}")
        out, listener = Publisher(bus, "cycle", queue=1000), Subscriber(bus, "cycle", newest_only=False)
        try:
            _join(out, listener)
            spent = np.array([_one(out, listener, seq) for seq in range(_WARM_UP + cycles)][_WARM_UP:]) / 1000
        finally:
            out.close()
            listener.close()
    p50, p95, p99 = (float(value) for value in np.percentile(spent, (50, 95, 99)))
    us = {"p50": p50, "p95": p95, "p99": p99, "max": float(spent.max())}
    return {"cycles": cycles, "us": us, "period_ms": period_ms, "share": p50 / 1000 / period_ms}


def _join(out: Publisher, listener: Subscriber) -> None:
    """Until the listener hears: a message without a reader costs less."""
    while listener.poll(10) is None:
        out.send(_EXAMPLE)


def _one(out: Publisher, listener: Subscriber, seq: int) -> int:
    """Nanoseconds of one cycle's stamps, record and sending."""
    began_ns = time.monotonic_ns()
    marks = [time.monotonic_ns() for _ in range(8)]
    stages = {name: (marks[i + 1] - marks[i]) / NS_PER_MS for i, name in enumerate(_STAGES)}
    out.send(dataclasses.replace(_EXAMPLE, seq=seq, stamp_ns=marks[0], stage_ms=stages))
    spent_ns = time.monotonic_ns() - began_ns
    listener.poll()
    return spent_ns


_EXAMPLE = Cycle(
    seq=0,
    stamp_ns=0,
    deadline_ns=0,
    lateness_ms=0.1,
    cycle_ms=1.2,
    stage_ms=dict.fromkeys(_STAGES, 0.2),
    state_age_ms=12.0,
    feature_age_ms=412.0,
    feature_seq=1,
    encoder_epoch=123_456_789,
    encode_ms=250.0,
    instruction_id=1,
    pending_id=None,
    mode=Mode.RUN,
    reason="features 412 ms old: speed 94%",
    limits=("velocity of shoulder", "velocity of elbow"),
    missed_ticks=0,
    task_done=False,
    task_instruction_id=1,
    feature_arrived_ns=1,
)
