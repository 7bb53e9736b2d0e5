"""What the page shows, read from the bus: a row a cycle, the instructions and what became of them, the encoded views.

Knows topics and JSON; refuses to know browsers. Everything is bounded: a minute of rows, fifty instructions, three
seconds of captures and 64 MB. Captures are only subscribed to while somebody looks: they are most of the bus's traffic.
What is said of age and silence is by the robot's clock, which is not this one's where the page runs on another machine.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from control.address import BusAddress
from control.bus import Latest, Subscriber
from control.clock import NS_PER_MS, NS_PER_S
from control.messages import ActionChunk, Cycle, Features, Frames, Instruction, RobotSpec, State
from control.plain_text import shown
from control.recording_images import ImageCodec
from control.robot_clock import RobotClock
from control.watch import Rate

_ROWS, _SAID = 600, 50
_KEEP_NS, _KEEP_BYTES = 3 * NS_PER_S, 64 << 20
_CODEC = ImageCodec("jpeg", 85)


@dataclass(slots=True)
class Said:
    """One instruction, from the page or from a terminal, and what became of it."""

    session: int
    id: int
    text: str
    state: str = "waiting"  # then acting or replaced; past, when another one acts
    switch_ms: float | None = None
    task_done: bool | None = None


class PageBus:
    """Reads everything that is shown. `step` never blocks; `revision` counts what changed outside the rows."""

    def __init__(self, bus: BusAddress) -> None:
        self._bus = bus
        self._cycles = Subscriber(bus, "cycle", newest_only=False)
        self._specs = Subscriber(bus, "robot", newest_only=True, changes_only=True)
        self._states, self._actions = Latest(bus, "state"), Latest(bus, "action")
        self._features, self._instructions = Latest(bus, "features"), Latest(bus, "instruction")
        self._frames: Subscriber | None = None
        self.spec: RobotSpec | None = None
        self.rows: deque[dict[str, Any]] = deque(maxlen=_ROWS)
        self.said: deque[Said] = deque(maxlen=_SAID)
        self.revision = self.count = 0  # rows since the start
        self._state: State | None = None
        self._action: ActionChunk | None = None
        self._encoded: Features | None = None
        self._encodes = Rate(2 * NS_PER_S)
        self._clock = RobotClock()
        self._captures: deque[Frames] = deque()

    def step(self) -> None:
        """Take all that has come."""
        if (spec := self._specs.poll()) is not None:
            self.spec, self.revision = spec, self.revision + 1
        self._state = self._states.poll() or self._state
        self._action = self._actions.poll() or self._action
        if (features := self._features.poll()) is not None and not features.fault:
            self._encoded = features
            self._encodes.add(features.encoder_epoch, features.seq, features.stamp_ns, time.monotonic_ns())
        if (instruction := self._instructions.poll()) is not None:
            self._hear(instruction)
        while (cycle := self._cycles.poll()) is not None:
            self._clock.hear(cycle.stamp_ns, time.monotonic_ns())
            self._follow(cycle)
            self.rows.append(self._row(cycle))
            self.count += 1
        while self._frames is not None and (frames := self._frames.poll()) is not None:
            self._keep(frames)

    def look(self, wanted: bool) -> None:
        """Subscribe to the captures, or end that."""
        if wanted and self._frames is None:
            self._frames = Subscriber(self._bus, "frames", newest_only=False, queue=4)
        elif not wanted and self._frames is not None:
            self._frames.close()
            self._frames = None
            self._captures.clear()

    def now_ns(self) -> int:
        """On the robot's clock."""
        return time.monotonic_ns() + self._clock.ahead_ns

    def close(self) -> None:
        self.look(False)
        for port in (
            self._cycles,
            self._specs,
            self._states,
            self._actions,
            self._features,
            self._instructions,
        ):
            port.close()

    def _hear(self, instruction: Instruction) -> None:
        newest = self.said[-1] if self.said else None
        if newest is None or (newest.session, newest.id) != (instruction.session, instruction.id):
            self.said.append(Said(instruction.session, instruction.id, shown(instruction.text)))
            self.revision += 1

    def _follow(self, cycle: Cycle) -> None:
        session = self.said[-1].session if self.said else 0
        for item in self.said:
            before = (item.state, item.task_done, item.switch_ms)
            if item.session != session:
                item.state = "past" if item.state == "acting" else item.state
            elif item.id == cycle.instruction_id:
                item.state = "acting"
                item.switch_ms = cycle.switch_ms if cycle.switch_ms is not None else item.switch_ms
            elif item.state == "acting":
                item.state = "past"
            elif item.state == "waiting" and item.id < max(cycle.instruction_id, cycle.pending_id or 0):
                item.state = "replaced"
            if item.session == session and item.id == cycle.task_instruction_id and cycle.task_done is not None:
                item.task_done = cycle.task_done
            self.revision += before != (item.state, item.task_done, item.switch_ms)

    def _row(self, cycle: Cycle) -> dict[str, Any]:
        state, action = self._state, self._action
        return {
            "t_ms": cycle.stamp_ns / NS_PER_MS,
            "mode": str(cycle.mode),
            "reason": shown(cycle.reason),
            "lateness_ms": rounded(cycle.lateness_ms),
            "cycle_ms": rounded(cycle.cycle_ms),
            "feature_age_ms": rounded(cycle.feature_age_ms),
            "encode_ms": rounded(cycle.encode_ms),
            "encode_hz": rounded(self._encodes.hz(time.monotonic_ns())),
            "missed_ticks": cycle.missed_ticks,
            "limits": [shown(limit) for limit in cycle.limits],
            "measured": [] if state is None else [rounded(value) for value in state.values],
            "target": [] if action is None or not len(action.targets) else [rounded(x) for x in action.targets[0]],
        }

    def _keep(self, frames: Frames) -> None:
        self._captures.append(frames)
        one = sum(image.nbytes for image in frames.images.values()) or 1
        while self._captures and (
            frames.stamp_ns - self._captures[0].stamp_ns > _KEEP_NS
            or (len(self._captures) > 1 and len(self._captures) * one > _KEEP_BYTES)
        ):
            self._captures.popleft()

    def views(self) -> bytes | None:
        """One message of the views that were encoded last: the length of a JSON header (4 bytes, big-endian), the
        header, and the JPEGs that it lists. A view that was used again is the older capture that it came from; before
        any features, the newest capture. None when there is nothing to show.
        """
        if not self._captures:
            return None
        newest, features, now_ns = self._captures[-1], self._encoded, self.now_ns()
        listed, pictures = [], []
        for camera, image in newest.images.items():
            is_encoded = features is not None and camera in features.view_age_ms
            stamp_ns, seen = newest.stamp_ns, image
            if features is not None and is_encoded:
                stamp_ns = features.frame_stamp_ns - round(features.view_age_ms[camera] * NS_PER_MS)
                found = min(self._captures, key=lambda capture: abs(capture.stamp_ns - stamp_ns))
                is_same = abs(found.stamp_ns - stamp_ns) < 2 * NS_PER_MS
                seen = found.images.get(camera) if is_same else None
            data = b"" if seen is None else _CODEC.encode(np.ascontiguousarray(seen))
            age_ms = rounded((now_ns - stamp_ns) / NS_PER_MS)
            listed.append({"camera": shown(camera), "age_ms": age_ms, "is_encoded": is_encoded, "bytes": len(data)})
            pictures.append(data)
        header = json.dumps({"views": listed}).encode()
        return b"".join([len(header).to_bytes(4, "big"), header, *pictures])


def rounded(value: float | None) -> float | None:
    """For JSON, which has no NaN and no infinity: those are None."""
    return round(float(value), 4) if value is not None and math.isfinite(value) else None
