"""CURVE on the tcp sockets of a bus with keys: what travels is encrypted, and only known machines are let in.

Knowing a server's public key is enough for CURVE alone, so libzmq asks inside the process (ZAP) whether the owner of a
client's key may come in. Usually a thread answers; here a process answers by itself whenever it publishes or serves
commands, a few at a time, so that whoever knocks waits for at most a period, and a crowd that knocks takes no deadline.
Measured on a 100 Hz grid with SCHED_FIFO and two busy cores, four rounds of 8 s: an idle zmq.auth thread is not to be
told from none; with 50 clients a second that knock, it made the lateness p99 0.3 to 0.6 ms and missed 35 points, since
it holds the interpreter for up to 5 ms at a time. Answered this way, 0.08 to 0.13 ms, and none was missed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import zmq
from zmq.utils import z85

from control.address import BusAddress
from control.errors import KeyFileError
from control.keys import ENCODER, KeyRing, load_keys

log = logging.getLogger("bus")

OVERHEAD_BYTES = 64  # what CURVE adds to a message is 33
_ASKED_AT = "inproc://zeromq.zap.01"  # where libzmq asks, fixed by its RFC 27
_MOST_AT_ONCE = 4
_SILENCE_S = 10.0  # a client that is refused tries again for ever


def secure_client(socket: zmq.Socket, bus: BusAddress, topic: str) -> None:
    """Before `connect`. Raises KeyFileError."""
    keys = _keys(bus, topic)
    if keys is not None:
        socket.curve_publickey, socket.curve_secretkey = keys.public, keys.secret
        socket.curve_serverkey = keys.public_of(bus.machine(topic))


class Admission:
    """Lets the machines of the key folder into one socket that will be bound; without keys it does nothing."""

    def __init__(self, socket: zmq.Socket, bus: BusAddress, topic: str) -> None:
        self._name = ""
        keys = _keys(bus, topic)
        if keys is None:
            return
        if keys.name != bus.machine(topic):
            raise KeyFileError(
                f"bus.keys: {keys.folder} holds the keys of '{keys.name}', but '{topic}' is published by the machine"
                f" '{bus.machine(topic)}' on this bus: name that machine's folder here, or see bus.encoder"
            )
        # Whoever holds an encoder's key may look and deliver features, but commands nothing.
        guests = {key: name for name, key in keys.known.items() if (topic, name) != ("command", ENCODER)}
        self._name = _gate.open(topic, {z85.decode(key): name for key, name in guests.items()}, keys.folder)
        socket.curve_server = True
        socket.curve_secretkey = keys.secret
        socket.setsockopt(zmq.ZAP_DOMAIN, self._name.encode())
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without it, whoever knows the server's key came in unasked

    def answer(self) -> None:
        """Lets in, or refuses, who knocks at any socket of this process. Never blocks."""
        if self._name:
            _gate.answer()

    def close(self) -> None:
        """Twice is fine."""
        if self._name:
            _gate.close(self._name)
            self._name = ""


class _Gate:
    """The one place of a process where libzmq asks, and who may come in where. Any thread may answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: zmq.Socket | None = None
        self._lists: dict[str, tuple[Mapping[bytes, str], Path]] = {}  # domain -> client by public key, key folder
        self._opened = 0
        self._refused, self._said_s = 0, float("-inf")

    def open(self, topic: str, guests: Mapping[bytes, str], folder: Path) -> str:
        with self._lock:
            if self._socket is None:
                asked: zmq.Socket = zmq.Context.instance().socket(zmq.REP)
                asked.setsockopt(zmq.LINGER, 0)
                asked.bind(_ASKED_AT)
                self._socket = asked
            self._opened += 1
            domain = f"{topic}-{self._opened}"
            self._lists[domain] = (guests, folder)
            return domain

    def close(self, domain: str) -> None:
        with self._lock:
            self._lists.pop(domain, None)
            if not self._lists and self._socket is not None:
                self._socket.unbind(_ASKED_AT)  # at once, while `close` gives the name back some time later
                self._socket.close()
                self._socket = None

    def answer(self) -> None:
        if not self._lock.acquire(blocking=False):
            return  # another thread answers at this moment
        try:
            for _ in range(_MOST_AT_ONCE):
                if self._socket is None or not int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                    return
                self._socket.send_multipart(self._judge(self._socket.recv_multipart(zmq.NOBLOCK)), zmq.NOBLOCK)
        finally:
            self._lock.release()

    def _judge(self, asked: list[bytes]) -> list[bytes]:
        version, request, domain, address, _, mechanism, *credentials = asked
        guests, folder = self._lists.get(domain.decode(), ({}, Path()))
        name = guests.get(credentials[0]) if mechanism == b"CURVE" and credentials else None
        if name is not None:
            return [version, request, b"200", b"OK", name.encode(), b""]
        self._refused += 1
        if time.monotonic() - self._said_s > _SILENCE_S:
            self._said_s = time.monotonic()
            topic, where = domain.decode().rpartition("-")[0], address.decode("ascii", "replace")
            log.warning(
                "refused a client of %s at '%s': its key is not one that %s lets in there (%d refused so far)",
                where,
                topic,
                folder,
                self._refused,
            )
        return [version, request, b"400", b"unknown key", b"", b""]


_gate = _Gate()


def _keys(bus: BusAddress, topic: str) -> KeyRing | None:
    if bus.keys is None or not bus.endpoint(topic).startswith("tcp://"):
        return None
    return load_keys(Path(bus.keys))
