"""Sockets of topics: publishing without waiting, and reading every message or only the newest.

Knows ZeroMQ, refuses to know what the messages mean. Nothing here blocks longer than the caller says: publishers drop
for slow readers (SNDHWM bounds their memory: a stopped subscriber grew its publisher by 403 MB in 200 messages without
it, measured), and LINGER is 0, so closing never waits. Who wants the newest message reads all that wait and keeps the
last (HWM=1 alone delivered messages 3 s old). ZeroMQ's own CONFLATE is not used: a message that comes while another is
read is lost, and its memory with it (libzmq pull request 4925, open in November 2026; a recorder lacked eight frames,
1.5 MB, after 18 minutes).
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import zmq

from control.address import BusAddress, Lease
from control.curve import OVERHEAD_BYTES, Admission, secure_client
from control.errors import BusError, KeyFileError, WireError
from control.wire import decode, encode, max_bytes

_NEWEST_OF = {"frames": 8, "features": 100}  # messages that may wait for a reader of the newest; 1000 of other topics
_NOTICE_MS = 50  # a closed reader's thread ends within it
_SUBSCRIPTION_BYTES = 4096  # all that a publisher's socket takes in; readers subscribe to everything, with none


def bind(socket: zmq.Socket, bus: BusAddress, topic: str, most_bytes: int) -> tuple[Lease, Admission]:
    """The socket file's owner, and who lets clients in. Raises BusError or KeyFileError, with the socket closed."""
    socket.setsockopt(zmq.MAXMSGSIZE, most_bytes + OVERHEAD_BYTES)
    endpoint = bus.endpoint(topic)
    lease = Lease(endpoint)
    try:
        admission = Admission(socket, bus, topic)
    except KeyFileError:
        lease.release()
        socket.close()
        raise
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        admission.close()
        lease.release()
        socket.close()
        in_use = "; another run or program holds it" if error.errno == zmq.EADDRINUSE else ""
        raise BusError(f"cannot bind {endpoint}: {error.strerror}{in_use}") from None
    return lease, admission


def connect(socket: zmq.Socket, bus: BusAddress, topic: str, most_bytes: int) -> None:
    """Raises KeyFileError, with the socket closed."""
    socket.setsockopt(zmq.MAXMSGSIZE, most_bytes + OVERHEAD_BYTES)
    try:
        secure_client(socket, bus, topic)
    except KeyFileError:
        socket.close()
        raise
    socket.connect(bus.endpoint(topic))


class Publisher:
    """Publishes one topic and never blocks. `queue` messages wait for each reader; what comes while they wait is
    dropped.

    With `latch` a late reader gets the newest message as soon as `greet` or `send` runs after it connected.
    """

    def __init__(self, bus: BusAddress, topic: str, *, queue: int = 2, latch: bool = False) -> None:
        self._socket = zmq.Context.instance().socket(zmq.XPUB if latch else zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, queue)
        self._socket.setsockopt(zmq.LINGER, 0)
        if latch:
            self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._latch = latch
        self._newest: bytes | None = None
        self._lease, self._admission = bind(self._socket, bus, topic, _SUBSCRIPTION_BYTES)

    def send(self, noun: Any) -> None:
        self._admission.answer()
        data = encode(noun)
        if self._latch:
            self._drain_subscriptions()
            self._newest = data
        self._socket.send(data, zmq.NOBLOCK)

    def greet(self) -> None:
        """Send the newest message again if a reader has joined since."""
        self._admission.answer()
        if self._drain_subscriptions() and self._newest is not None:
            self._socket.send(self._newest, zmq.NOBLOCK)

    def _drain_subscriptions(self) -> bool:
        joined = False
        while self._socket.poll(0, zmq.POLLIN):
            joined |= self._socket.recv(zmq.NOBLOCK)[:1] == b"\x01"
        return joined

    def close(self) -> None:
        self._socket.close()
        self._admission.close()
        self._lease.release(removes_socket=True)


class Subscriber:
    """Reads one topic. Messages that do not decode are counted, kept as `last_error`, and never returned. `refusal` is
    why the newest was one of them, '' when it was not: an old refusal explains nothing of now.

    With `newest_only` a message is dropped undecoded where a newer one waits. A reader that comes so seldom that its
    queue is full may once get an older one, and the newest when it comes again; a `Kept` never does.
    With `changes_only` a message of the same bytes as the one before is dropped undecoded: a robot announces itself
    every second, and decoding that each time made the controller grow by 0.7 KB/s of scattered memory (measured).
    """

    def __init__(
        self, bus: BusAddress, topic: str, *, newest_only: bool, queue: int = 1000, changes_only: bool = False
    ) -> None:
        self._topic = topic
        if newest_only:
            queue = _NEWEST_OF.get(topic, queue)
        self._most_at_once = queue if newest_only else 1
        self._changes_only, self._before = changes_only, b""
        self._socket = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, queue)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        connect(self._socket, bus, topic, max_bytes(topic))
        self.rejected = 0
        self.last_error = self.refusal = ""

    @property
    def socket(self) -> zmq.Socket:
        """For a poller of the caller's."""
        return self._socket

    def poll(self, timeout_ms: int = 0) -> Any | None:
        """The next message, None if there is none within the time."""
        if timeout_ms and not self._socket.poll(timeout_ms, zmq.POLLIN):
            return None
        data = self._received()
        if data is None:
            return None
        if self._changes_only:
            if data == self._before:
                return None
            self._before = data
        return self._decoded(data)

    def _received(self) -> bytes | None:
        """What waits: the next message, or the newest; not more than fit in the queue, so that a flood ends."""
        data = None
        with contextlib.suppress(zmq.Again):  # nothing waits any more
            for _ in range(self._most_at_once):
                data = self._socket.recv(zmq.NOBLOCK)
        return data

    def _decoded(self, data: bytes) -> Any | None:
        try:
            noun, self.refusal = decode(self._topic, data), ""
            return noun
        except WireError as error:
            self.rejected += 1
            self.last_error = self.refusal = str(error)
            return None

    def close(self) -> None:
        self._socket.close()


def Latest(bus: BusAddress, topic: str) -> Subscriber:  # noqa: N802 - it reads as the noun it returns
    """A subscriber that has only ever the newest message."""
    return Subscriber(bus, topic, newest_only=True)


class StampedLatest(Subscriber):
    """The newest message, and when it came: call `collect` whenever the socket has something, `poll` to read it.

    What was not collected counts as come when it is polled. Only the message that is polled is decoded.
    """

    def __init__(self, bus: BusAddress, topic: str) -> None:
        super().__init__(bus, topic, newest_only=True)
        self._held: tuple[bytes, int] | None = None
        self.arrived_ns: int | None = None  # of the message that `poll` returned last

    def collect(self) -> None:
        if (data := self._received()) is not None:
            self._held = (data, time.monotonic_ns())

    def poll(self, timeout_ms: int = 0) -> Any | None:
        if self._held is None and timeout_ms:
            self._socket.poll(timeout_ms, zmq.POLLIN)
        self.collect()
        if self._held is None:
            return None
        (data, self.arrived_ns), self._held = self._held, None
        return self._decoded(data)


class Kept(Subscriber):
    """The newest message, for a reader that is busy for longer than messages may wait: a thread takes what comes.

    Not for a process with a deadline, since the thread needs the interpreter for a moment with each message.
    """

    def __init__(self, bus: BusAddress, topic: str) -> None:
        super().__init__(bus, topic, newest_only=True)
        self._kept: bytes | None = None
        self._changing, self._is_closing = threading.Lock(), threading.Event()
        self._rings, self._bell = (zmq.Context.instance().socket(zmq.PAIR) for _ in range(2))
        for end in (self._rings, self._bell):
            end.setsockopt(zmq.LINGER, 0)
        self._rings.bind(f"inproc://kept-{id(self)}")
        self._bell.connect(f"inproc://kept-{id(self)}")
        self._keeper = threading.Thread(target=self._keep, name=f"newest {topic}", daemon=True)
        self._keeper.start()

    @property
    def socket(self) -> zmq.Socket:
        return self._bell

    def poll(self, timeout_ms: int = 0) -> Any | None:
        self._bell.poll(timeout_ms, zmq.POLLIN)
        with self._changing:
            data, self._kept = self._kept, None
            if data is not None:
                self._bell.recv()
        return None if data is None else self._decoded(data)

    def _keep(self) -> None:
        while not self._is_closing.is_set():
            if self._socket.poll(_NOTICE_MS, zmq.POLLIN) and (data := self._received()) is not None:
                with self._changing:
                    if self._kept is None:
                        self._rings.send(b"")  # once for each that is polled
                    self._kept = data

    def close(self) -> None:
        self._is_closing.set()
        self._keeper.join()
        for end in (self._socket, self._rings, self._bell):
            end.close()
