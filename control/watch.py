"""What a listener knows of the run that goes on: rates, ages, reasons and limits of the last seconds, from the bus.

Knows topics; refuses to know terminals (top.py draws). Nobody waits for it: cycles come through a bounded queue, and of
everything else only the newest is taken. Camera images are never subscribed to, since they are most of the bus's
traffic: their rate follows from the numbers and stamps that the features carry. Message stamps are compared only with
stamps of the same sender; everything else counts by this process's clock.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from control.address import BusAddress
from control.bus import Latest, Subscriber
from control.clock import NS_PER_S
from control.messages import Cycle, Features, Instruction, Mode
from control.plain_text import printable
from control.reasons import kind
from control.report import percentiles

_MOST_CYCLES = 2_000  # in the window: 20 s at 100 Hz
_EVENTS = 12
_SILENT_S = 1.0  # without a cycle; or five periods


class Rate:
    """Messages a second of one sender, from its own numbers and stamps: exact whatever was skipped in between."""

    def __init__(self, window_ns: int) -> None:
        self._window_ns = window_ns
        self._sender: Any = None
        self._seen: deque[tuple[int, int]] = deque()
        self._heard_ns = 0

    def add(self, sender: Any, seq: int, stamp_ns: int, now_ns: int) -> None:
        newest = self._seen[-1] if self._seen else None
        if newest is not None and sender == self._sender and (seq, stamp_ns) == newest:
            return  # the same, said again to somebody who joined
        if newest is not None and (sender != self._sender or seq <= newest[0] or stamp_ns <= newest[1]):
            self._seen.clear()
        self._sender, self._heard_ns = sender, now_ns
        self._seen.append((seq, stamp_ns))
        while len(self._seen) > 2 and stamp_ns - self._seen[0][1] > self._window_ns:
            self._seen.popleft()

    def hz(self, now_ns: int) -> float | None:
        """None before two messages, 0 once nothing new has come for three times as long as it used to take, and 2 s."""
        if len(self._seen) < 2:
            return None
        (first, began_ns), (last, ended_ns) = self._seen[0], self._seen[-1]
        rate = (last - first) * NS_PER_S / (ended_ns - began_ns)
        return rate if now_ns - self._heard_ns < max(2 * NS_PER_S, 3 * NS_PER_S / rate) else 0.0


@dataclass(slots=True)
class Event:
    """A mode with its reason, from when on, and for how many cycles."""

    mode: Mode
    reason: str
    began_ns: int  # this process's clock
    cycles: int = 1


@dataclass(slots=True)
class _Run:
    """What was seen of one controller."""

    last: Cycle
    heard_ns: int
    cycles: deque[Cycle] = field(default_factory=lambda: deque(maxlen=_MOST_CYCLES))
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=_EVENTS))
    limits: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    lost: int = 0  # cycles that did not reach this listener
    epochs: list[int] = field(default_factory=list)


class Watch:
    """One listener. `step` takes what has come and never blocks; `snapshot` says how things stand, as plain values."""

    def __init__(self, bus: BusAddress, window_s: float = 10.0) -> None:
        self._window_ns = round(window_s * NS_PER_S)
        self._cycles = Subscriber(bus, "cycle", newest_only=False)
        self._robots = Subscriber(bus, "robot", newest_only=True, changes_only=True)
        self._states, self._features = Latest(bus, "state"), Latest(bus, "features")
        self._instructions = Latest(bus, "instruction")
        self._state_rate, self._encode_rate, self._frame_rate = (Rate(self._window_ns) for _ in range(3))
        self._robot = ""
        self._run: _Run | None = None
        self._encoded: Features | None = None
        self._instruction: Instruction | None = None
        self._runs = 0

    def step(self, now_ns: int) -> None:
        if (spec := self._robots.poll()) is not None:
            self._robot = spec.name
        if (state := self._states.poll()) is not None:
            self._state_rate.add("robot", state.seq, state.stamp_ns, now_ns)
        if (encoded := self._features.poll()) is not None and not encoded.fault:
            self._encoded = encoded
            self._encode_rate.add(encoded.encoder_epoch, encoded.seq, encoded.stamp_ns, now_ns)
            self._frame_rate.add("robot", encoded.frame_seq, encoded.frame_stamp_ns, now_ns)
        if (instruction := self._instructions.poll()) is not None:
            self._instruction = instruction
        for _ in range(_MOST_CYCLES):
            if not self._cycles.socket.poll(0):
                break
            if (cycle := self._cycles.poll()) is not None:
                self.hear(cycle, now_ns)

    def hear(self, cycle: Cycle, now_ns: int) -> None:
        run = self._run
        if run is None or cycle.seq <= run.last.seq or cycle.stamp_ns < run.last.stamp_ns:
            run = self._run = _Run(cycle, now_ns)
            self._runs += 1
            if self._instruction is not None and cycle.instruction_id == 0 and cycle.pending_id is None:
                self._instruction = None  # it was the controller's before
        else:
            run.lost += cycle.seq - run.last.seq - 1
        run.last, run.heard_ns = cycle, now_ns
        run.cycles.append(cycle)
        while run.cycles[0].deadline_ns < cycle.deadline_ns - self._window_ns:
            run.cycles.popleft()
        run.missed += cycle.missed_ticks
        run.limits.update(printable(limit) for limit in cycle.limits)
        if cycle.encoder_epoch is not None and cycle.encoder_epoch not in run.epochs[-1:]:
            run.epochs.append(cycle.encoder_epoch)
        reason, newest = printable(cycle.reason), run.events[-1] if run.events else None
        if newest is not None and (newest.mode, kind(newest.reason)) == (cycle.mode, kind(reason)):
            newest.reason, newest.cycles = reason, newest.cycles + 1
        else:
            run.events.append(Event(cycle.mode, reason, now_ns))

    @property
    def has_run(self) -> bool:
        return self._run is not None

    def is_live(self, now_ns: int) -> bool:
        run = self._run
        if run is None:
            return False
        period_ns = (run.last.deadline_ns - run.cycles[0].deadline_ns) / max(1, run.last.seq - run.cycles[0].seq)
        return now_ns - run.heard_ns < max(_SILENT_S * NS_PER_S, 5 * period_ns)

    def snapshot(self, now_ns: int) -> dict[str, Any]:
        """Everything as JSON holds it. `live` is False before the first cycle and after the last one; the figures are
        then those of the end. Times are in ms but for `_s`; None where nothing is known."""
        run = self._run
        rates = {"states": self._state_rate, "encodes": self._encode_rate, "frames": self._frame_rate}
        found: dict[str, Any] = {"live": self.is_live(now_ns), "runs_seen": self._runs, "robot": printable(self._robot)}
        if run is None:
            return found | {"silent_s": None}
        last, cycles = run.last, list(run.cycles)
        event = run.events[-1]
        ages = [cycle.feature_age_ms for cycle in cycles]
        known = [age for age in ages if age is not None]
        return found | {
            "silent_s": (now_ns - run.heard_ns) / NS_PER_S,
            "mode": str(last.mode),
            "reason": event.reason,
            "mode_s": (now_ns - event.began_ns) / NS_PER_S,
            "rates_hz": _rates(cycles) | {name: rate.hz(now_ns) for name, rate in rates.items()},
            "feature_age_ms": percentiles(known) | {"last": last.feature_age_ms},
            "feature_ages_ms": ages,
            "state_age_ms": last.state_age_ms,
            "lateness_ms": percentiles(cycle.lateness_ms for cycle in cycles),
            "cycle_ms": percentiles(cycle.cycle_ms for cycle in cycles),
            "encode_ms": percentiles(_encodes(cycles)),
            "encode_stage_ms": dict(self._encoded.stage_ms) if self._encoded else {},
            "missed_ticks": run.missed,
            "missed_ticks_window": sum(cycle.missed_ticks for cycle in cycles),
            "lost_records": run.lost,
            "rejected_messages": last.rejected,
            "limits": dict(run.limits.most_common()),
            "limits_window": dict(Counter(printable(limit) for cycle in cycles for limit in cycle.limits)),
            "encoder_epoch": last.encoder_epoch,
            "encoder_restarts": max(0, len(run.epochs) - 1),
            "instruction": self._said(last),
            "events": [
                {"ago_s": (now_ns - item.began_ns) / NS_PER_S, "mode": str(item.mode)}
                | {"reason": item.reason, "cycles": item.cycles}
                for item in reversed(run.events)
            ],
        }

    def _said(self, last: Cycle) -> dict[str, Any]:
        newest = self._instruction
        is_newest = newest is not None and newest.id in (last.instruction_id, last.pending_id)
        return {
            "id": last.instruction_id,
            "pending_id": last.pending_id,
            "newest_id": newest.id if newest is not None and is_newest else None,
            "newest_text": printable(newest.text) if newest is not None and is_newest else "",
            "done": last.task_done if last.task_instruction_id == last.instruction_id else None,
        }

    def close(self) -> None:
        for port in (self._cycles, self._robots, self._states, self._features, self._instructions):
            port.close()


def _rates(cycles: list[Cycle]) -> dict[str, float | None]:
    """Ticks a second, and of them those in RUN: only they move the robot. From their deadlines."""
    seconds = (cycles[-1].deadline_ns - cycles[0].deadline_ns) / NS_PER_S
    if seconds <= 0:
        return {"cycles": None, "actions": None}
    running = sum(cycle.mode is Mode.RUN for cycle in cycles[1:])
    return {"cycles": (len(cycles) - 1) / seconds, "actions": running / seconds}


def _encodes(cycles: list[Cycle]) -> list[float]:
    """The encode times of the features that were used, each once."""
    found = {(cycle.encoder_epoch, cycle.feature_seq): cycle.encode_ms for cycle in cycles}
    return [value for value in found.values() if value is not None]
