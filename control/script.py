"""The instructions of a run, said one after another, and what became of each as the robot itself judged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from control.address import BusAddress
from control.bus import CommandClient
from control.messages import Cycle


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
    """Says the run's instructions, one every `every_s`, and notes the robot's judgement of each."""

    def __init__(self, bus: BusAddress, texts: Sequence[str], every_s: float) -> None:
        self._client = CommandClient(bus)
        self._texts, self._every_s = list(texts), every_s
        self.episodes: list[Episode] = []
        self._request_id = 0
        self._said_s = 0.0

    def step(self, ready: bool) -> None:
        while reply := self._client.receive():
            if reply.request_id != self._request_id:
                continue
            episode = self.episodes[-1]
            episode.error = reply.message if reply.outcome == "failed" else episode.error
            if reply.outcome == "accepted":
                episode.instruction_id = int(reply.message.rpartition(" ")[2])
        due = not self.episodes or time.monotonic() - self._said_s >= self._every_s
        if ready and due and self._texts:
            text = self._texts.pop(0)
            self.episodes.append(Episode(text))
            self._request_id, self._said_s = self._client.send("say", text), time.monotonic()

    def see(self, cycle: Cycle) -> None:
        if not self.episodes:
            return
        episode = self.episodes[-1]
        if cycle.instruction_id == episode.instruction_id and cycle.switch_ms is not None:
            episode.switch_ms = cycle.switch_ms
            self._said_s = (
                time.monotonic() if len(self.episodes) == 1 else self._said_s
            )  # the encoder was still starting
        if cycle.task_instruction_id == episode.instruction_id and cycle.task_done is not None:
            if cycle.task_done and not episode.done:
                episode.done_s = time.monotonic() - self._said_s
            episode.done = cycle.task_done

    @property
    def is_finished(self) -> bool:
        return not self._texts and bool(self.episodes) and time.monotonic() - self._said_s >= self._every_s

    def close(self) -> None:
        self._client.close()
