"""Sockets of commands: an operator's requests, each with its replies, and a server that no flood of them stops."""

from __future__ import annotations

import contextlib
import time

import zmq

from control.address import BusAddress
from control.bus import bind, connect
from control.clock import NS_PER_MS, NS_PER_S
from control.errors import CommandFailed, NotRunning, WireError
from control.messages import Command, Reply
from control.rate_limit import SharedBudget
from control.wire import decode, encode, max_bytes

COMMANDS_EACH = (20.0, 20)  # from one client: a second in the long run, and at once
COMMANDS_IN_ALL = (100.0, 100)
_TOO_MANY = (
    f"too many commands: at most {COMMANDS_EACH[0]:g} a second from one client and {COMMANDS_IN_ALL[0]:g} in all, this"
    " one was dropped; only `stop` is never limited"
)
# Nobody who has waited so long for a sign of life believes any more that it will be done: `say` gave up after 1.0 s.
_DEAF_NS = NS_PER_S
_LATE_NS = NS_PER_S // 2  # what lay in the kernel's buffers meanwhile is in the socket by then
_OBEYED_LATE = ("stop", "status")
_REFUSING_NS = NS_PER_MS  # in one poll; a refusal takes 40 us, the worst that may be decoded 5 ms (measured)
_SMALL_BYTES = 4096  # the longest instruction fits
_COMMAND_BYTES = 96 << 10  # 20,000 characters of any script fit
_MOST_FRAMES = 100


class CommandServer:
    """The controller's end of `command`: many clients, each answered by its request id, now or later.

    Commands are limited in number, a client's and all, but for `stop`. Clients take turns, so that what one of them
    floods the socket with stands in front of no other's. What came while nobody polled for a second, since the process
    was stopped or hung, is refused, but for `stop`: it was reported as unanswered, and the robot would move on it.
    """

    def __init__(self, bus: BusAddress) -> None:
        self._socket = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(zmq.SNDHWM, 100)
        self._socket.setsockopt(zmq.RCVHWM, 100)
        self._lease, self._admission = bind(self._socket, bus, "command", _COMMAND_BYTES)
        self._budget = SharedBudget(COMMANDS_EACH, COMMANDS_IN_ALL)
        self._is_cut = False
        self._polled_ns: int | None = None
        self._deaf_ms, self._late_until_ns = 0.0, 0
        self.rejected = 0

    @property
    def socket(self) -> zmq.Socket:
        """For a poller of the caller's."""
        return self._socket

    def poll(self, timeout_ms: int = 0) -> tuple[bytes, Command] | None:
        """The next command and its client. Those that are malformed, or too many, are answered here and counted; after
        a millisecond of them it returns None though more may wait, so that a flood takes no deadline.
        """
        self._admission.answer()
        self._notice_a_gap()
        has_some = self._socket.poll(timeout_ms, zmq.POLLIN)
        self._polled_ns = time.monotonic_ns()
        if not has_some:
            return None
        until_ns = time.monotonic_ns() + _REFUSING_NS
        while time.monotonic_ns() < until_ns:
            try:
                frames = self._receive()
            except zmq.Again:
                return None
            if frames and (command := self._admit(*frames)) is not None:
                return frames[0], command
        return None

    def _notice_a_gap(self) -> None:
        now_ns = time.monotonic_ns()
        if self._polled_ns is not None and now_ns - self._polled_ns > _DEAF_NS:
            self._deaf_ms, self._late_until_ns = (now_ns - self._polled_ns) / NS_PER_MS, now_ns + _LATE_NS

    def _receive(self) -> list[bytes]:
        """The client and its message. Of one with far too many frames the rest is dropped a piece a call, as []."""
        frames: list[bytes] = []
        is_whole = False
        while not is_whole and len(frames) < _MOST_FRAMES:
            frames.append(self._socket.recv(zmq.NOBLOCK))
            is_whole = not self._socket.getsockopt(zmq.RCVMORE)
        is_rest, self._is_cut = self._is_cut, not is_whole
        return [] if is_rest else frames

    def _admit(self, client: bytes, *frames: bytes) -> Command | None:
        """None where it was refused. A `stop` never is: it takes nothing from a budget, and needs none."""
        is_large = sum(map(len, frames)) > _SMALL_BYTES  # no stop, and slow to decode
        if is_large and not self._budget.take(client):
            return self._refuse(client, 0, _TOO_MANY)
        try:
            if len(frames) != 1:
                raise WireError(f"command: expected one frame, got {len(frames)}")
            command: Command = decode("command", frames[0])
        except WireError as error:
            return self._refuse(client, 0, str(error))
        if command.verb != "stop" and not is_large and not self._budget.take(client):
            return self._refuse(client, command.request_id, _TOO_MANY)
        if command.verb not in _OBEYED_LATE and time.monotonic_ns() < self._late_until_ns:
            why = f"the controller did not listen for {self._deaf_ms / 1000:.1f} s: likely asked before that, not done"
            return self._refuse(client, command.request_id, f"{why}; ask again")
        return command

    def _refuse(self, client: bytes, request_id: int, why: str) -> None:
        self.rejected += 1
        self.reply(client, Reply(request_id, "failed", why))

    def reply(self, client: bytes, reply: Reply) -> None:
        """Never blocks: a client that has gone, or does not read, loses its reply."""
        try:
            self._socket.send_multipart([client, encode(reply)], zmq.NOBLOCK)
        except zmq.Again:
            self.rejected += 1

    def close(self) -> None:
        self._socket.close()
        self._admission.close()
        self._lease.release(removes_socket=True)


class CommandClient:
    """An operator's end of `command`. Each request has its own id, so a lost or late reply never blocks the next."""

    def __init__(self, bus: BusAddress) -> None:
        self._bus, self._endpoint = bus, bus.endpoint("command")
        is_secured = bus.keys is not None and self._endpoint.startswith("tcp://")
        self._hint = f"; or it does not let in the keys of {bus.keys}" if is_secured else ""
        self._socket = self._connected()
        self._next_id = time.monotonic_ns()

    def _connected(self) -> zmq.Socket:
        socket = zmq.Context.instance().socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        connect(socket, self._bus, "command", max_bytes("reply"))
        return socket

    def send(self, verb: str, text: str = "") -> int:
        """The id of the request; its replies come through `receive`. What cannot be sent is what nobody answers."""
        self._next_id += 1
        with contextlib.suppress(zmq.Again):  # a server that wants keys has turned this client away
            self._socket.send(encode(Command(self._next_id, verb, text)), zmq.NOBLOCK)
        return self._next_id

    def receive(self, timeout_s: float = 0.0) -> Reply | None:
        """The next reply to any request of this client, None if there is none within the time."""
        if not self._socket.poll(int(timeout_s * 1000), zmq.POLLIN):
            return None
        return decode("reply", self._socket.recv())

    def give_up(self) -> None:
        """Drop every request that is open. What nobody has taken would wait in the socket for the next controller, and
        be carried out after it was reported as failed.
        """
        self._socket.close()
        self._socket = self._connected()

    def request(self, verb: str, text: str = "", *, answer_s: float = 1.5, finish_s: float = 30.0) -> Reply:
        """The final reply. `answer_s` bounds the wait for the first sign of life, `finish_s` for the end of the work.

        Raises NotRunning when nobody answers, and gives every open request up; CommandFailed when the controller says
        it cannot.
        """
        request_id = self.send(verb, text)
        deadline_s = time.monotonic() + answer_s
        accepted = False
        while (remaining_s := deadline_s - time.monotonic()) > 0:
            reply = self.receive(remaining_s + 0.001)
            if reply is None or reply.request_id not in (request_id, 0):
                continue
            if reply.outcome == "accepted":
                accepted, deadline_s = True, time.monotonic() + finish_s
                continue
            if reply.outcome != "done":
                raise CommandFailed(reply.message)
            return reply
        if accepted:
            raise CommandFailed(
                f"'{verb}' was accepted but not finished within {finish_s:g} s; is the encoder running? see `status`"
            )
        self.give_up()
        raise NotRunning(
            f"no controller answers at {self._endpoint} within {answer_s:g} s; start one with `launch.py run`,"
            f" or name its bus with --set bus.address=...{self._hint}"
        )

    def close(self) -> None:
        self._socket.close()
