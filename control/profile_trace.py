"""A profile as a Chrome trace (the JSON object format of trace events), which ui.perfetto.dev opens.

One track a process: captures of the robot host, encodes with their stages, ticks with theirs. An arrow goes from each
capture to the encode that used it, and from each encode to every tick that acted on it. Times are microseconds since
the first event; `otherData.origin_ns` is that moment on the robot's clock. On a GPU the stages are of its own clock and
drawn one after the other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from control.clock import NS_PER_MS
from control.messages import Cycle
from control.profile_parts import foreign_epochs
from control.profile_source import Encode, Samples

ROBOT, ENCODER, CONTROLLER = 1, 2, 3
_TRACKS = {ROBOT: ("robot host", "captures"), ENCODER: ("encoder", "encodes"), CONTROLLER: ("controller", "ticks")}
_INSIDE_NS = 1000
_NO_TIME_NS = 1000  # drawn for a capture whose end nobody stamped

Event = dict[str, Any]


def write_trace(file: Path, samples: Samples, about: dict[str, Any]) -> None:
    file.write_text(json.dumps(trace(samples, about)), encoding="utf-8")


def trace(samples: Samples, about: dict[str, Any]) -> dict[str, Any]:
    """The whole document. `about` goes into `otherData`."""
    used = {(cycle.encoder_epoch, cycle.feature_seq) for cycle in samples.cycles}
    begin_ns = samples.cycles[0].stamp_ns
    encodes = [row for row in samples.encodes.values() if row.key in used or row.frame_stamp_ns >= begin_ns]
    shifts = _shifts(samples)
    origin_ns = min([begin_ns, *(row.frame_stamp_ns for row in encodes)])
    drawing = _Drawing(origin_ns)
    for row in encodes:
        drawing.capture(row)
        drawing.encode(row, shifts.get(row.key, 0), row.epoch in {epoch for epoch, _ in shifts})
    known = {row.key: row for row in encodes}
    for cycle in samples.cycles:
        drawing.tick(cycle)
        row = known.get((cycle.encoder_epoch or 0, cycle.feature_seq or 0))
        if row is not None and cycle.feature_seq is not None:
            drawing.use(row, shifts.get(row.key, 0), cycle)
    other = {"origin_ns": origin_ns, "source": samples.source, **about}
    return {"traceEvents": [*_names(), *drawing.events], "displayTimeUnit": "ms", "otherData": other}


def _names() -> list[Event]:
    events = []
    for pid, (process, thread) in _TRACKS.items():
        base = {"ph": "M", "pid": pid, "tid": 1}
        events.append(base | {"name": "process_name", "args": {"name": process}})
        events.append(base | {"name": "process_sort_index", "args": {"sort_index": pid}})
        events.append(base | {"name": "thread_name", "args": {"name": thread}})
    return events


def _shifts(samples: Samples) -> dict[tuple[int, int], int]:
    """By encode, what to add to the stamps of an encoder on another clock: midway between publication and arrival."""
    foreign, shifts = foreign_epochs(samples), {}
    for cycle in samples.cycles:
        row = samples.encodes.get((cycle.encoder_epoch or 0, cycle.feature_seq or 0))
        if row is None or row.epoch not in foreign or row.key in shifts:
            continue
        first_ns = row.frame_published_ns or row.frame_stamp_ns
        last_ns = cycle.feature_arrived_ns or cycle.stamp_ns
        shifts[row.key] = (first_ns + last_ns) // 2 - (row.begun_ns + row.stamp_ns) // 2
    return shifts


class _Drawing:
    def __init__(self, origin_ns: int) -> None:
        self._origin_ns = origin_ns
        self.events: list[Event] = []
        self._flows = 0
        self._captures: set[tuple[int, int]] = set()

    def capture(self, row: Encode) -> None:
        if (row.frame_seq, row.frame_stamp_ns) in self._captures:
            return
        self._captures.add((row.frame_seq, row.frame_stamp_ns))
        begin_ns, end_ns = row.frame_stamp_ns, _published_ns(row)
        args = {} if row.frame_published_ns is not None else {"end": "not stamped"}
        self._slice(ROBOT, f"capture {row.frame_seq}", begin_ns, end_ns, args)

    def encode(self, row: Encode, shift_ns: int, is_foreign: bool) -> None:
        if is_foreign and not shift_ns:
            return  # of another clock, and no cycle used it: nobody knows when it was
        begin_ns, end_ns = row.begun_ns + shift_ns, row.stamp_ns + shift_ns
        args = {"frame": row.frame_seq, "epoch": row.epoch} | ({"clock": "another machine's"} if is_foreign else {})
        self._slice(ENCODER, f"encode {row.seq}", begin_ns, end_ns, args)
        for stage, value in row.stage_ms.items():
            stage_end_ns = min(begin_ns + round(value * NS_PER_MS), end_ns)
            self._slice(ENCODER, stage, begin_ns, stage_end_ns)
            begin_ns = stage_end_ns
        middle_ns = (row.frame_stamp_ns + _published_ns(row)) // 2
        self._flow("image", (ROBOT, middle_ns), (ENCODER, row.begun_ns + shift_ns))

    def tick(self, cycle: Cycle) -> None:
        args = {
            "lateness_ms": cycle.lateness_ms,
            "instruction": cycle.instruction_id,
            "missed_ticks": cycle.missed_ticks,
        }
        args |= {"reason": cycle.reason} if cycle.reason else {}
        begin_ns = cycle.stamp_ns
        self._slice(
            CONTROLLER, f"{cycle.mode} {cycle.seq}", begin_ns, begin_ns + round(cycle.cycle_ms * NS_PER_MS), args
        )
        for stage, value in cycle.stage_ms.items():
            end_ns = begin_ns + round(value * NS_PER_MS)
            self._slice(CONTROLLER, stage, begin_ns, end_ns)
            begin_ns = end_ns
        if cycle.feature_age_ms is not None:
            at = {"name": "feature age", "ph": "C", "ts": self._us(cycle.stamp_ns), "pid": CONTROLLER, "tid": 1}
            self.events.append(at | {"args": {"ms": cycle.feature_age_ms}})

    def use(self, row: Encode, shift_ns: int, cycle: Cycle) -> None:
        """From within the end of the encode to the head, which reads them: an arrow binds to what encloses its ends."""
        inside_ns = max(row.begun_ns, row.stamp_ns - _INSIDE_NS) + shift_ns
        before_ms = sum(cycle.stage_ms.get(stage, 0.0) for stage in ("state", "features"))
        self._flow("features", (ENCODER, inside_ns), (CONTROLLER, cycle.stamp_ns + round(before_ms * NS_PER_MS)))

    def _slice(self, pid: int, name: str, begin_ns: int, end_ns: int, args: dict[str, Any] | None = None) -> None:
        event = {"name": name, "cat": "saccade", "ph": "X", "pid": pid, "tid": 1}
        self.events.append(
            event | {"ts": self._us(begin_ns), "dur": (end_ns - begin_ns) / 1000} | ({"args": args} if args else {})
        )

    def _flow(self, name: str, start: tuple[int, int], finish: tuple[int, int]) -> None:
        self._flows += 1
        for phase, (pid, at_ns) in (("s", start), ("f", finish)):
            event = {"name": name, "cat": "flow", "ph": phase, "id": self._flows, "pid": pid, "tid": 1}
            self.events.append(event | {"ts": self._us(at_ns)} | ({"bp": "e"} if phase == "f" else {}))

    def _us(self, stamp_ns: int) -> float:
        return (stamp_ns - self._origin_ns) / 1000


def _published_ns(row: Encode) -> int:
    return max(row.frame_published_ns or 0, row.frame_stamp_ns + _NO_TIME_NS)
