"""Recording a run that goes on: one more listener on the bus, in a process of its own.

Nobody waits for it. Frames are taken newest-only, so that a slow disk skips captures instead of piling them up;
everything else is queued in bounded queues. What is skipped or dropped shows as a gap in `seq`, is counted, and is told
at the end. Images are compressed here and nowhere else.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from control.address import BusAddress, announced
from control.bus import Subscriber
from control.clock import NS_PER_S
from control.config import Config
from control.errors import ConfigError, NotRunning, RecordingError
from control.memory import return_freed_memory, settle_names
from control.messages import Cycle, Features, Frames, Instruction, RobotSpec, State
from control.recording import RecordingWriter
from control.recording_format import LogLine, require
from control.recording_images import ImageCodec
from control.robot_clock import RobotClock

_PATIENCE_S = 10.0  # for the robot to announce itself
_POLL_MS = 50
_TRIM_NS = 60 * NS_PER_S
_MOST_IN_A_ROW = 200  # of one topic, before the others have their turn
_QUEUES = {"state": 1000, "action": 1000, "cycle": 1000, "features": 50}


def record_live(
    settings: Config,
    out: Path,
    seconds: float | None,
    stopped: Callable[[], bool],
    *,
    images: ImageCodec | None = None,
    waits_for_robot: bool = False,
    show: Callable[[str], None] = lambda line: None,
) -> str:
    """Until `stopped()` or for `seconds`; the figures of the recording in one line. `show` gets it four times a second.

    Raises NotRunning when no robot announces itself, unless it `waits_for_robot` however long that takes; ConfigError
    when `out` exists or cannot be made, RecordingError when the disk is full or another robot takes the bus; what was
    recorded until then stays readable.
    """
    check_new(out)
    bus = settings.bus.build()
    listener = _Listener(bus)
    try:
        spec = listener.wait_for_robot(stopped, show, math.inf if waits_for_robot else _PATIENCE_S)
        if spec is None:
            return "stopped before a robot announced itself: nothing recorded"
        with announced(bus, "recorder"), RecordingWriter(out, spec, images=images) as writer:
            listener.record(writer, seconds, stopped, show)
            writer.close()
            return listener.line(writer)
    finally:
        listener.close()


def check_new(out: Path) -> None:
    """Before a run starts: that a recording can begin here. Raises ConfigError."""
    if out.exists():
        raise ConfigError(f"recording {out} exists already; name another file, or remove it first")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        why = "you may not write there" if out.parent.is_dir() else "there is no such folder"
        raise ConfigError(f"recording {out} cannot be made: {why}")
    for module in ("mcap.writer", "PIL.Image"):
        require(module)


class _Listener:
    def __init__(self, bus: BusAddress) -> None:
        self._robot = Subscriber(bus, "robot", newest_only=True, changes_only=True)
        self._inboxes = {topic: Subscriber(bus, topic, newest_only=True) for topic in ("frames", "instruction")}
        for topic, queue in _QUEUES.items():
            self._inboxes[topic] = Subscriber(bus, topic, newest_only=False, queue=queue)
        self._spec: RobotSpec | None = None
        self._counts: Counter[str] = Counter()
        self._missed: Counter[str] = Counter()
        self._newest: dict[str, tuple[int, int]] = {}  # seq and stamp
        self._refused, self._fault = 0, ""
        self._instruction = (0, 0)  # session, id
        self._mode, self._fault_ns = "", 0
        self._clock = RobotClock()
        self._began_ns = self._heard_ns = time.monotonic_ns()

    def wait_for_robot(
        self, stopped: Callable[[], bool], show: Callable[[str], None], patience_s: float
    ) -> RobotSpec | None:
        show("waiting for a robot")
        gives_up_s = time.monotonic() + patience_s
        while not stopped():
            self._spec = self._robot.poll(_POLL_MS)
            if self._spec is not None:
                return self._spec
            if time.monotonic() > gives_up_s:
                why = f"; refused a message: {self._robot.last_error}" if self._robot.last_error else ""
                raise NotRunning(f"no robot on this bus for {patience_s:g} s: start one with `launch.py run`{why}")
        return None

    def record(
        self,
        writer: RecordingWriter,
        seconds: float | None,
        stopped: Callable[[], bool],
        show: Callable[[str], None],
    ) -> None:
        poller = zmq.Poller()
        for inbox in (self._robot, *self._inboxes.values()):
            poller.register(inbox.socket, zmq.POLLIN)
        settle_names()
        self._began_ns = self._heard_ns = flushed_ns = shown_ns = trimmed_ns = time.monotonic_ns()
        while not stopped():
            poller.poll(_POLL_MS)
            now_ns = time.monotonic_ns()
            if seconds is not None and now_ns - self._began_ns >= seconds * NS_PER_S:
                return
            self._expect_same_robot()
            self._drain_all(writer)
            if now_ns - flushed_ns >= NS_PER_S:
                writer.flush()
                flushed_ns = now_ns
                if now_ns - trimmed_ns >= _TRIM_NS:
                    return_freed_memory()
                    trimmed_ns = now_ns
            if now_ns - shown_ns >= NS_PER_S // 4:
                show(self.line(writer))
                shown_ns = now_ns
        self._drain_all(writer)  # the last that was said before the end

    def line(self, writer: RecordingWriter) -> str:
        """Seconds, bytes, what was recorded, and what was not."""
        seconds = (time.monotonic_ns() - self._began_ns) / NS_PER_S
        counts = ", ".join(f"{self._counts[topic]:,} {topic}" for topic in ("frames", "state", "action", "features"))
        parts = [f"{writer.file}: {seconds:.1f} s", f"{writer.bytes_written / 1e6:.1f} MB", counts]
        if skipped := self._missed["frames"]:
            parts.append(f"{skipped:,} captures skipped")
        if dropped := self._missed.total() - skipped:
            parts.append(f"{dropped:,} other messages dropped")
        rejected = sum(inbox.rejected for inbox in self._inboxes.values())
        if refused := self._refused + rejected:
            last = self._fault or next(inbox.last_error for inbox in self._inboxes.values() if inbox.last_error)
            parts.append(f"{refused:,} refused, last: {last}")
        if (silent_s := (time.monotonic_ns() - self._heard_ns) / NS_PER_S) > 2.0:
            parts.append(f"nothing heard for {silent_s:.0f} s")
        return " · ".join(parts)

    def _expect_same_robot(self) -> None:
        spec = self._robot.poll()
        if spec is not None and self._spec is not None and not spec.equals(self._spec):
            raise RecordingError(
                f"robot '{spec.name}' has taken the place of '{self._spec.name}', or changed: one recording holds one"
                " robot; what was recorded before is whole, start another recording"
            )

    def _drain_all(self, writer: RecordingWriter) -> None:
        for topic, inbox in self._inboxes.items():
            self._drain(topic, inbox, writer)

    def _drain(self, topic: str, inbox: Subscriber, writer: RecordingWriter) -> None:
        for _ in range(_MOST_IN_A_ROW):
            if not inbox.socket.poll(0):
                return
            noun = inbox.poll()
            if noun is None:
                continue
            self._heard_ns = time.monotonic_ns()
            if isinstance(noun, Instruction):
                if (noun.session, noun.id) == self._instruction:
                    continue  # the controller says it again every tick
                self._instruction = (noun.session, noun.id)
            elif isinstance(noun, Features) and noun.fault:  # without a number of its own
                if noun.stamp_ns == self._fault_ns:
                    continue
                self._fault_ns = noun.stamp_ns
            elif not self._is_new(topic, noun.seq, noun.stamp_ns):
                continue
            if isinstance(noun, State):
                self._clock.hear(noun.stamp_ns, self._heard_ns)
            self._write(noun, writer)

    def _is_new(self, topic: str, seq: int, stamp_ns: int) -> bool:
        """False for what is said again because somebody has joined. Counts what was missed before it."""
        before, self._newest[topic] = self._newest.get(topic), (seq, stamp_ns)
        if before == (seq, stamp_ns):
            return False
        self._counts[topic] += 1
        if before is not None:  # a sender that starts again counts from the beginning
            self._missed[topic] += max(0, seq - before[0] - 1)
        return True

    def _write(self, noun: Any, writer: RecordingWriter) -> None:
        try:
            writer.write(noun, received_ns=self._heard_ns + self._clock.ahead_ns)
        except ConfigError as error:  # a capture that does not fit the spec must not end the recording of the rest
            self._refused, self._fault = self._refused + 1, str(error)
            if isinstance(noun, Frames):
                self._counts["frames"] -= 1
            return
        for asked in noun.commands if isinstance(noun, Cycle) else ():
            writer.write(LogLine(noun.stamp_ns, "info", "operator", asked))
        if isinstance(noun, Cycle) and noun.mode != self._mode:
            why = f": {noun.reason}" if noun.reason else ""
            level = "info" if noun.mode in ("RUN", "INIT") else "warning"
            writer.write(LogLine(noun.stamp_ns, level, "controller", f"{noun.mode}{why}"))
            self._mode = noun.mode
        if isinstance(noun, Instruction):
            writer.write(LogLine(noun.stamp_ns, "info", "controller", f"instruction {noun.id}: {noun.text}"))

    def close(self) -> None:
        for inbox in (self._robot, *self._inboxes.values()):
            inbox.close()
