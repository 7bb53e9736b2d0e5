"""What a profile is made of: the cycles and encodes of a run that goes on, or of a recording.

A live profile is one more listener on the bus, in a process of its own; nobody waits for it. It takes `cycle`,
`features` and `action`, and no images. Refuses to know what is computed of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from control.address import BusAddress
from control.bus import Subscriber
from control.clock import NS_PER_MS, NS_PER_S
from control.errors import ConfigError, NotRunning
from control.messages import ActionChunk, Cycle, Features, Mode
from control.recording_reader import read_recording
from control.robot_clock import RobotClock

_PATIENCE_S = 3.0  # three periods of the slowest loop that a config allows
_POLL_MS = 50
_SHOW_NS = NS_PER_S // 4
_BEFORE_PUBLISHING = ("state", "features", "head", "safety")  # the stages of a cycle before its action is sent


@dataclass(frozen=True, slots=True)
class Encode:
    """What a profile keeps of one Features message: everything but the tokens."""

    seq: int
    epoch: int  # of the encoder
    frame_seq: int
    frame_stamp_ns: int  # the robot's clock
    frame_published_ns: int | None  # the robot's clock
    stamp_ns: int  # the encoder's clock, at the end
    encode_ms: float
    stage_ms: dict[str, float]
    reuse_ms: float  # how much older than the frame the oldest view inside is

    @classmethod
    def of(cls, features: Features) -> Encode:
        return cls(
            features.seq,
            features.encoder_epoch,
            features.frame_seq,
            features.frame_stamp_ns,
            features.frame_published_ns,
            features.stamp_ns,
            features.encode_ms,
            features.stage_ms,
            max(features.view_age_ms.values(), default=0.0),
        )

    @property
    def key(self) -> tuple[int, int]:
        return self.epoch, self.seq

    @property
    def begun_ns(self) -> int:
        """The encoder's clock when the encode began."""
        return self.stamp_ns - round(self.encode_ms * NS_PER_MS)


@dataclass(slots=True)
class Samples:
    """Rows in the order in which they were made. `hop_ms` is what this listener measured itself, empty otherwise."""

    source: str
    cycles: list[Cycle] = field(default_factory=list)
    encodes: dict[tuple[int, int], Encode] = field(default_factory=dict)  # by epoch and seq
    hop_ms: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what is missing, in sentences

    def add(self, features: Features) -> None:
        """The first time counts: features are said again to late readers."""
        if features.fault:
            return
        encode = Encode.of(features)
        self.encodes.setdefault(encode.key, encode)

    @property
    def steady(self) -> list[Cycle]:
        """Without start-up, which is everything before the first RUN; all of them where there is no RUN."""
        first = next((index for index, cycle in enumerate(self.cycles) if cycle.mode is Mode.RUN), 0)
        return self.cycles[first:]

    @property
    def period_ms(self) -> float:
        """The loop's period, from its own deadlines; 0 where no two cycles follow each other."""
        gaps = [b.deadline_ns - a.deadline_ns for a, b in self.pairs(self.cycles) if not b.missed_ticks]
        return statistics.median(gaps) / NS_PER_MS if gaps else 0.0

    @staticmethod
    def pairs(cycles: list[Cycle]) -> list[tuple[Cycle, Cycle]]:
        """Each two that follow each other in one controller; where a record was lost there is none."""
        return [(a, b) for a, b in zip(cycles, cycles[1:], strict=False) if b.seq == a.seq + 1]


def recorded(file: Path) -> Samples:
    """Raises ConfigError for what is no recording, and for one without cycles."""
    recording = read_recording(file, ("cycle", "features"))
    if not recording.cycles:
        raise ConfigError(
            f"recording {file} holds no cycle, and a profile is made of cycles: it is a demonstration, or was cut"
            " before the controller began; record a run with `launch.py record --live`"
        )
    samples = Samples(str(file), recording.cycles, notes=[recording.lost] if recording.lost else [])
    for features in recording.features:
        samples.add(features)
    return samples


def live(
    bus: BusAddress,
    seconds: float,
    stopped: Callable[[], bool],
    show: Callable[[str], None] = lambda line: None,
) -> Samples:
    """Listens for `seconds` from the first cycle on, or until `stopped()`. Raises NotRunning where there is none.

    `hop_ms` holds how long an action and a cycle took from the controller's `send` to this process.
    """
    listener = _Listener(bus)
    try:
        listener.listen(seconds, stopped, show)
    finally:
        listener.close()
    return listener.samples


class _Listener:
    def __init__(self, bus: BusAddress) -> None:
        self._endpoint = bus.endpoint("cycle")
        queues = {"action": 1000, "cycle": 1000, "features": 200}  # an action is read before its cycle
        self._inboxes = {
            topic: Subscriber(bus, topic, newest_only=False, queue=queue) for topic, queue in queues.items()
        }
        self._poller = zmq.Poller()
        for inbox in self._inboxes.values():
            self._poller.register(inbox.socket, zmq.POLLIN)
        self.samples = Samples(f"the run on {bus.address}")
        self._actions_ns: dict[tuple[int, int], int] = {}  # by seq and stamp: when it came
        self._clock = RobotClock()
        self._began_ns = self._heard_ns = time.monotonic_ns()  # heard: the newest cycle

    def listen(self, seconds: float, stopped: Callable[[], bool], show: Callable[[str], None]) -> None:
        samples, shown_ns, began_ns = self.samples, 0, None
        show("waiting for a cycle")
        while not stopped():
            self._poller.poll(_POLL_MS)
            now_ns = time.monotonic_ns()
            for inbox in self._inboxes.values():
                self._drain(inbox)
            if began_ns is None and samples.cycles:
                began_ns = now_ns
            silent_s = (now_ns - self._heard_ns) / NS_PER_S
            if silent_s > _PATIENCE_S:
                if began_ns is None:
                    raise NotRunning(self._why_silent())
                samples.notes.append(f"the controller has said nothing for {silent_s:.0f} s: the run ended or hangs")
                break
            if began_ns is not None and now_ns - began_ns >= seconds * NS_PER_S:
                break
            if began_ns is not None and now_ns - shown_ns >= _SHOW_NS:
                show(f"{(now_ns - began_ns) / NS_PER_S:.0f} of {seconds:g} s, {len(samples.cycles):,} cycles")
                shown_ns = now_ns
        if not samples.cycles:
            raise NotRunning("interrupted before the first cycle: nothing to profile")
        if self._clock.ahead_ns:
            samples.hop_ms.clear()
            samples.notes.append("no transport hops: the robot's machine has another clock than this one")
        for topic, inbox in self._inboxes.items():
            if inbox.rejected:
                samples.notes.append(f"{inbox.rejected:,} {topic} messages refused, the last: {inbox.last_error}")

    def _why_silent(self) -> str:
        refused = next((inbox.last_error for inbox in self._inboxes.values() if inbox.rejected), "")
        return (
            f"no controller publishes cycles at {self._endpoint} within {_PATIENCE_S:g} s"
            f"{f' (refused a message: {refused})' if refused else ''}; start one with `launch.py run`, name its bus"
            " with --set bus.address=..., or name a recording"
        )

    def _drain(self, inbox: Subscriber) -> None:
        while inbox.socket.poll(0):
            noun = inbox.poll()
            if noun is not None:
                self._take(noun, time.monotonic_ns())

    def _take(self, noun: Any, now_ns: int) -> None:
        if isinstance(noun, Features):
            self.samples.add(noun)
        elif isinstance(noun, ActionChunk):
            if len(self._actions_ns) > 100:  # no cycle came for these
                self._actions_ns.clear()
            self._actions_ns[noun.seq, noun.stamp_ns] = now_ns
        elif isinstance(noun, Cycle):
            self._heard_ns = now_ns
            self._clock.hear(noun.stamp_ns, now_ns)
            if not self.samples.cycles and self._is_too_early(noun, now_ns):
                return
            self.samples.cycles.append(noun)
            self._hop("cycle", now_ns - noun.stamp_ns - round(noun.cycle_ms * NS_PER_MS))
            action_ns = self._actions_ns.pop((noun.seq, noun.stamp_ns), None)
            if action_ns is not None:
                before_ms = sum(noun.stage_ms.get(stage, 0.0) for stage in _BEFORE_PUBLISHING)
                self._hop("action", action_ns - noun.stamp_ns - round(before_ms * NS_PER_MS))

    def _is_too_early(self, cycle: Cycle, now_ns: int) -> bool:
        """Whether the cycle acted on features that were sent before this listener was there; not for long, since
        features may never be heard here.
        """
        if cycle.feature_seq is None or now_ns - self._began_ns > NS_PER_S:
            return False
        return (cycle.encoder_epoch, cycle.feature_seq) not in self.samples.encodes

    def _hop(self, topic: str, duration_ns: int) -> None:
        self.samples.hop_ms.setdefault(topic, []).append(duration_ns / NS_PER_MS)

    def close(self) -> None:
        for inbox in self._inboxes.values():
            inbox.close()
