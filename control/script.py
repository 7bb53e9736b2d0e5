"""The instructions of a run, said one after another, and what became of each as the robot itself judged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from control.address import BusAddress
from control.command_bus import CommandClient
from control.messages import Cycle, Reply


@dataclass(slots=True)
class Episode:
    """One instruction of a run and what became of it, as the robot itself judged."""

    text: str
    instruction_id: int = 0
    done: bool | None = None
    done_s: float | None = None
    switch_ms: float | None = None
    error: str = ""


class Script:
    """Says the run's instructions, one every `every_s`, and notes the robot's judgement of each. The time of the first
    begins when it is acted on: an encoder that still loads uses none up.
    """

    def __init__(self, bus: BusAddress, texts: Sequence[str], every_s: float) -> None:
        self._client = CommandClient(bus)
        self._texts, self._every_s = list(texts), every_s
        self.episodes: list[Episode] = []
        self._request_id = 0
        self._is_first_answered = False
        self._said_s = 0.0

    def step(self, ready: bool) -> None:
        """Say the next instruction if it is due and the controller is there; take the answers that have come."""
        while reply := self._client.receive():
            if reply.request_id == self._request_id:
                self._take(reply)
        if ready and self._texts and (not self.episodes or self._is_over):
            text = self._texts.pop(0)
            self.episodes.append(Episode(text))
            self._request_id, self._said_s = self._client.send("say", text), time.monotonic()

    def _take(self, reply: Reply) -> None:
        episode = self.episodes[-1]
        match reply.outcome:
            case "accepted":
                episode.instruction_id = int(reply.values.get("instruction_id") or 0)
            case "done":
                self._is_first_answered = True
                switch_ms = reply.values.get("switch_ms")
                episode.switch_ms = float(switch_ms) if switch_ms is not None else None
                if len(self.episodes) == 1:
                    self._said_s = time.monotonic()  # the encoder was still starting when this one was said
            case _:
                self._is_first_answered = True
                episode.error = reply.message

    def see(self, cycle: Cycle) -> None:
        """The robot's judgement of the newest instruction."""
        if not self.episodes or cycle.task_done is None:
            return
        episode = self.episodes[-1]
        if cycle.task_instruction_id != episode.instruction_id:
            return
        if cycle.task_done and not episode.done:
            episode.done_s = time.monotonic() - self._said_s
        episode.done = cycle.task_done

    @property
    def _is_over(self) -> bool:
        """Whether the newest episode has had its time."""
        return self._is_first_answered and time.monotonic() - self._said_s >= self._every_s

    @property
    def ends(self) -> bool:
        """Whether it comes to an end by itself."""
        return not self.is_empty and self._every_s < float("inf")

    @property
    def is_empty(self) -> bool:
        """Whether there never was anything to say."""
        return not self._texts and not self.episodes

    @property
    def is_finished(self) -> bool:
        return not self._texts and bool(self.episodes) and self._is_over

    def close(self) -> None:
        self._client.close()
