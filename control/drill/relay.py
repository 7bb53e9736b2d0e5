"""A man in the middle: each process of a drill has a bus of its own, and this passes the messages on, or does not.

Knows bytes and topics; refuses to know what messages mean. The processes are the real ones, with a `bus.address` each:
they notice nothing. What a topic does to its messages while it is disturbed is a small function of bytes, below.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgpack
import zmq

from control.address import OWNERS, BusAddress
from control.clock import NS_PER_MS
from control.wire import max_bytes

# topic -> who reads it besides the drill itself, which listens where the controller is
_READERS = {
    "robot": ("controller",),
    "frames": ("encoder", "controller"),
    "state": ("controller",),
    "features": ("controller",),
    "instruction": ("encoder", "robot"),
    "action": ("robot",),
}
TOPICS = tuple(_READERS)
_QUEUE = 20
_WAIT_MS = 20

Disturb = Callable[[bytes], list[tuple[float, bytes]]]
"""A message to those that are passed on in its place, each after so many ms."""


@dataclass(order=True)
class _Late:
    due_ns: int
    number: int
    topic: str = field(compare=False)
    data: bytes = field(compare=False)


class Relay:
    """Passes messages between the buses of "robot", "encoder" and "controller" until it is closed.

    It takes no lease: those of the processes are what is tested.
    """

    def __init__(self, buses: Mapping[str, BusAddress]) -> None:
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._topics: dict[zmq.Socket, str] = {}
        self._out: dict[str, list[zmq.Socket]] = {}
        self._disturb: dict[str, Disturb] = {}
        self._newest: dict[str, bytes] = {}
        self._late: list[_Late] = []
        self._numbers = itertools.count()
        self.actions_passed: deque[bytes] = deque(maxlen=10_000)  # to the robot; whoever reads them takes them out
        self._is_closing = threading.Event()
        for topic, readers in _READERS.items():
            inbox = self._context.socket(zmq.SUB)
            inbox.setsockopt(zmq.RCVHWM, _QUEUE)
            inbox.setsockopt(zmq.LINGER, 0)
            inbox.setsockopt(zmq.MAXMSGSIZE, max_bytes(topic))
            inbox.setsockopt(zmq.RECONNECT_IVL, 20)
            inbox.setsockopt(zmq.RECONNECT_IVL_MAX, 100)
            inbox.setsockopt(zmq.SUBSCRIBE, b"")
            inbox.connect(buses[OWNERS[topic]].endpoint(topic))
            self._topics[inbox] = topic
            self._poller.register(inbox, zmq.POLLIN)
            self._out[topic] = [self._bound(buses[reader], topic) for reader in readers]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def disturb(self, topic: str, how: Disturb | None) -> None:
        """From now on; None passes everything on again."""
        if how is None:
            self._disturb.pop(topic, None)
        else:
            self._disturb[topic] = how

    def newest(self, topic: str) -> bytes | None:
        """The newest message that its owner sent, whatever became of it."""
        return self._newest.get(topic)

    def inject(self, topic: str, data: bytes) -> None:
        """A message of the drill's own, as if its owner had sent it; from any thread."""
        heapq.heappush(self._late, _Late(time.monotonic_ns(), next(self._numbers), topic, data))

    def close(self) -> None:
        self._is_closing.set()
        self._thread.join()
        for socket in (*self._topics, *itertools.chain(*self._out.values())):
            socket.close()
        self._context.term()

    def _bound(self, bus: BusAddress, topic: str) -> zmq.Socket:
        socket = self._context.socket(zmq.PUB)
        socket.setsockopt(zmq.SNDHWM, _QUEUE)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(bus.endpoint(topic))
        return socket

    def _run(self) -> None:
        while not self._is_closing.is_set():
            for socket, _ in self._poller.poll(min(_WAIT_MS, self._next_late_ms())):
                topic, data = self._topics[socket], socket.recv()
                self._newest[topic] = data
                how = self._disturb.get(topic)
                for after_ms, changed in how(data) if how is not None else [(0.0, data)]:
                    if after_ms <= 0:
                        self._send(topic, changed)
                    else:
                        due_ns = time.monotonic_ns() + round(after_ms * NS_PER_MS)
                        heapq.heappush(self._late, _Late(due_ns, next(self._numbers), topic, changed))
            while self._late and self._late[0].due_ns <= time.monotonic_ns():
                late = heapq.heappop(self._late)
                self._send(late.topic, late.data)

    def _next_late_ms(self) -> int:
        if not self._late:
            return _WAIT_MS
        return max(0, (self._late[0].due_ns - time.monotonic_ns()) // NS_PER_MS)

    def _send(self, topic: str, data: bytes) -> None:
        if topic == "action":
            self.actions_passed.append(data)
        for socket in self._out[topic]:
            socket.send(data)


def dropped(rng: random.Random, share: float) -> Disturb:
    return lambda data: [] if rng.random() < share else [(0.0, data)]


def delayed(rng: random.Random, most_ms: float) -> Disturb:
    """Each by a time of its own, so that they also overtake each other."""
    return lambda data: [(rng.uniform(0.0, most_ms), data)]


def duplicated(rng: random.Random, most_ms: float) -> Disturb:
    return lambda data: [(0.0, data), *((rng.uniform(0.0, most_ms), data) for _ in range(rng.randint(1, 4)))]


def reordered(size: int) -> Disturb:
    """In groups of so many, the newest first."""
    held: list[bytes] = []

    def disturb(data: bytes) -> list[tuple[float, bytes]]:
        held.append(data)
        if len(held) < size:
            return []
        out = [(0.0, one) for one in reversed(held)]
        held.clear()
        return out

    return disturb


def truncated(rng: random.Random) -> Disturb:
    return lambda data: [(0.0, data[: rng.randrange(len(data))])]


def scrambled(rng: random.Random) -> Disturb:
    """Some bytes changed, or all of them random."""

    def disturb(data: bytes) -> list[tuple[float, bytes]]:
        if rng.random() < 0.3:
            return [(0.0, rng.randbytes(rng.randint(0, 2 * len(data))))]
        changed = bytearray(data)
        for _ in range(rng.randint(1, 20)):
            changed[rng.randrange(min(len(changed), 400))] = rng.randrange(256)
        return [(0.0, bytes(changed))]

    return disturb


def rewritten(**changes: object) -> Disturb:
    """Well-formed, with these fields changed."""

    def disturb(data: bytes) -> list[tuple[float, bytes]]:
        fields = msgpack.unpackb(data, raw=False)
        packed = msgpack.packb(fields | changes)
        assert packed is not None
        return [(0.0, packed)]

    return disturb


def replayed(old: list[bytes], rng: random.Random) -> Disturb:
    """Old messages between the new ones."""
    return lambda data: [(0.0, data), (rng.uniform(1.0, 50.0), rng.choice(old))] if old else [(0.0, data)]
