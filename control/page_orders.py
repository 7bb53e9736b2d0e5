"""What the page asks of the controller, over the same socket as `launch.py say`, and the answers that come back.

Knows the verbs and how often a viewer may use them; refuses to know browsers. A viewer is any object that tells one
browser window from another.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from control.address import BusAddress
from control.command_bus import CommandClient
from control.errors import WireError
from control.plain_text import find_unseen, shown
from control.rate_limit import Budget
from control.wire import MAX_INSTRUCTION_CHARS

_ANSWER_S, _FINISH_S = 1.5, 60.0
_MAX_OPEN = 64
_RATES = {"say": (1.0, 4), "resume": (1.0, 3), "stop": (5.0, 10)}  # a second in the long run, and at once
VERBS = ", ".join(_RATES)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a viewer is told about its request `ref`. The outcome is `accepted` (more will come), `done` or `failed`."""

    viewer: Any
    ref: int
    verb: str
    outcome: str
    message: str


@dataclass(slots=True)
class _Open:
    viewer: Any
    ref: int
    verb: str
    until_s: float
    is_accepted: bool = False


class Orders:
    """Sends commands at once and never waits. Each viewer has its own budget, so that one that floods stops nobody."""

    def __init__(self, bus: BusAddress) -> None:
        self._client = CommandClient(bus)
        self._open: dict[int, _Open] = {}
        self._budgets: WeakKeyDictionary[Any, dict[str, Budget]] = WeakKeyDictionary()

    @property
    def is_waiting(self) -> bool:
        return bool(self._open)

    def give(self, viewer: Any, ref: int, verb: Any, text: Any) -> Answer | None:
        """Send one command; None when it is on its way, else what is wrong with it."""

        def refused(message: str) -> Answer:
            return Answer(viewer, ref, shown(str(verb)[:20]), "failed", message)

        if not isinstance(verb, str) or verb not in _RATES:
            return refused(f"unknown command; the page knows {VERBS}")
        if verb == "say":
            if not isinstance(text, str) or not text.strip():
                return refused('the instruction is empty; say what to do, for example "touch the red block"')
            if len(text) > MAX_INSTRUCTION_CHARS:
                return refused(f"the instruction has {len(text)} characters, expected at most {MAX_INSTRUCTION_CHARS}")
            if unseen := find_unseen(text):
                return refused(f"the instruction holds {unseen}, which nobody can see; type it in plain words")
        if viewer not in self._budgets:
            self._budgets[viewer] = {name: Budget(*rate) for name, rate in _RATES.items()}
        if not self._budgets[viewer][verb].take():
            if verb == "stop":
                return refused("STOP was sent just now, many times over")
            return refused(f"too many of '{verb}' from this window: at most {_RATES[verb][0]:g} a second")
        if len(self._open) >= _MAX_OPEN and verb != "stop":
            return refused(f"{_MAX_OPEN} commands wait for an answer already")
        words = text if verb == "say" else "stopped on the page" if verb == "stop" else ""
        self._open[self._client.send(verb, words)] = _Open(viewer, ref, verb, time.monotonic() + _ANSWER_S)
        return None

    def answers(self) -> Iterator[Answer]:
        """What has come since the last call, and which requests nobody answered."""
        while True:
            try:
                reply = self._client.receive()
            except WireError:
                continue  # not for us to show: its request will be told that nobody answered
            if reply is None:
                break
            request = self._open.get(reply.request_id)
            if request is None:
                continue
            yield Answer(request.viewer, request.ref, request.verb, reply.outcome, shown(reply.message))
            if reply.outcome == "accepted":
                request.until_s, request.is_accepted = time.monotonic() + _FINISH_S, True
            else:
                del self._open[reply.request_id]
        yield from self._expired()

    def _expired(self) -> Iterator[Answer]:
        """A request that no controller has taken is given up, so that no later one carries it out, and with it all that
        share its socket.
        """
        now_s = time.monotonic()
        late = {request_id: request for request_id, request in self._open.items() if now_s > request.until_s}
        if any(not request.is_accepted for request in late.values()):
            self._client.give_up()
            late, self._open = self._open, {}
        for request_id, request in late.items():
            self._open.pop(request_id, None)
            finished = "not finished" if now_s > request.until_s else "no controller answers any more"
            why = f"accepted, but {finished}" if request.is_accepted else "no controller answers"
            yield Answer(request.viewer, request.ref, request.verb, "failed", f"{request.verb}: {why}")

    def close(self) -> None:
        self._client.close()
