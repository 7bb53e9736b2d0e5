"""The receiving process of `bench wire`: reads one topic as a process of a run does, and says in JSON what came when.
Started by control/bench_wire.py; ends when that closes its stdin."""

from __future__ import annotations

import json
import sys
import time

import zmq

from control.address import BusAddress
from control.bus import Subscriber

_LAST_MS = 200  # what was sent before stdin ended may still be on its way


def receive(address: str, topic: str, newest_only: bool) -> None:
    """`ready` on the first message; then the latency of each from its stamp to a decoded noun, until stdin ends."""
    inbox = Subscriber(BusAddress(address), topic, newest_only=newest_only)
    poller = zmq.Poller()
    poller.register(inbox.socket, zmq.POLLIN)
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    latency_ns: list[int] = []
    arrived_ns: list[int] = []
    is_joined = False
    while True:
        ready = dict(poller.poll())
        noun = inbox.poll()
        now_ns = time.monotonic_ns()
        if noun is None and sys.stdin.fileno() in ready:
            noun = inbox.poll(_LAST_MS)
            now_ns = time.monotonic_ns()
            if noun is None:
                break
        if noun is None:
            continue
        if not is_joined:
            print("ready", flush=True)
            is_joined = True
        if noun.seq:  # 0 is only for joining
            latency_ns.append(now_ns - noun.stamp_ns)
            arrived_ns.append(now_ns)
    print(json.dumps({"latency_ns": latency_ns, "arrived_ns": arrived_ns, "rejected": inbox.rejected}))
    inbox.close()


if __name__ == "__main__":
    receive(sys.argv[1], sys.argv[2], sys.argv[3] == "newest")
