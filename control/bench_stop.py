"""How long STOP takes, on the run that goes on: from a client's `send` to the action that holds leaving the controller.

A client of the bus like any other; it stops, sees the action that says STOP, resumes, and waits for RUN again at a
random moment of a period. Stamps are of one machine's clock.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

from control.address import BusAddress
from control.bus import Subscriber
from control.clock import NS_PER_MS, NS_PER_S
from control.command_bus import CommandClient
from control.errors import NotRunning
from control.messages import ActionChunk, Mode
from control.report import percentiles

_WAIT_S = 10.0  # for any answer of the run


def measure_stop(
    bus: BusAddress, count: int, seed: int, stopped: Callable[[], bool], show: Callable[[int], None]
) -> dict[str, Any]:
    """`sent_ms` until the action left the controller, `heard_ms` until it was here; and the times themselves.

    Raises NotRunning where no controller is in RUN, or comes back to it.
    """
    client, actions, rng = CommandClient(bus), Subscriber(bus, "action", newest_only=False), random.Random(seed)
    sent_ms: list[float] = []
    heard_ms: list[float] = []
    try:
        while len(sent_ms) < count and not stopped():
            _until(actions, Mode.RUN)
            threading.Event().wait(rng.uniform(0.0, 0.25))
            begun_ns = time.monotonic_ns()
            client.send("stop", "measured by bench stop")
            held = _until(actions, Mode.STOP, begun_ns)
            heard_ms.append((time.monotonic_ns() - begun_ns) / NS_PER_MS)
            sent_ms.append((held.stamp_ns - begun_ns) / NS_PER_MS)
            _until(
                actions, Mode.STOP, held.stamp_ns + 1
            )  # of the tick that latches it: `resume` before that is refused
            client.request("resume", answer_s=_WAIT_S)
            show(len(sent_ms))
    finally:
        client.close()
        actions.close()
    return {"count": len(sent_ms), "sent_ms": percentiles(sent_ms), "heard_ms": percentiles(heard_ms)}


def _until(actions: Subscriber, mode: Mode, since_ns: int = 0) -> ActionChunk:
    ends_ns = time.monotonic_ns() + round(_WAIT_S * NS_PER_S)
    while time.monotonic_ns() < ends_ns:
        action = actions.poll(50)
        if action is not None and action.mode is mode and action.stamp_ns >= since_ns:
            return action
    raise NotRunning(f"no controller in {mode} within {_WAIT_S:g} s: start a run first, and give it an instruction")
