"""The cycles and features of a run that never was, with stamps that are known to the nanosecond."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from recordings import START_NS
from rig import two_joint_spec

from control.clock import NS_PER_MS
from control.messages import Cycle, Features, Mode
from control.recording import RecordingWriter

CAMERA_MS, QUEUE_MS, TRANSPORT_MS = 4, 6, 2
STAGES_MS = {"preprocess": 1.0, "vision": 20.0, "prefix": 3.0, "language": 12.0, "aggregate": 0.5}
ENCODE_MS = 37  # half a millisecond more than its stages
FRAME_MS, PERIOD_MS = 55, 100
CYCLE_MS = {"state": 0.25, "features": 0.125, "head": 0.5, "safety": 0.0625, "publish": 0.0625}
HELD = range(40, 60)  # the encoder is silent a while before the end of these ticks
ANOTHER_CLOCK_NS = 77_777_777_777_777


def ns(ms: float) -> int:
    return round(ms * NS_PER_MS)


def features(seq: int, is_old: bool = False, shift_ns: int = 0) -> Features:
    """Captured every FRAME_MS. `is_old`: nobody stamped the publication; `shift_ns`: the encoder's clock is another."""
    frame_ns = START_NS + seq * ns(FRAME_MS)
    stamp_ns = frame_ns + ns(CAMERA_MS + QUEUE_MS + ENCODE_MS) + shift_ns
    published_ns = None if is_old else frame_ns + ns(CAMERA_MS)
    tokens = np.ones((1, 4), np.float32)
    ages = {"front": 0.0, "wrist": 8.0 if seq % 2 else 0.0}
    named = (seq, stamp_ns, seq, frame_ns, 7, 1, 3, "policy", tokens, ages)
    return Features(*named, float(ENCODE_MS), dict(STAGES_MS), published_ns)


def run(
    ticks: int = 100, *, is_old: bool = False, shift_ns: int = 0, start_up: int = 3
) -> tuple[list[Cycle], list[Features]]:
    """Ticks every PERIOD_MS. Tick 30 lies two periods after tick 29; while HELD the features are of before."""
    made = [features(seq, is_old, shift_ns) for seq in range(ticks * PERIOD_MS // FRAME_MS)]
    made = [row for row in made if not HELD[0] - 3 <= (row.frame_stamp_ns - START_NS) // ns(PERIOD_MS) < HELD[-1]]
    arrived = [row.stamp_ns - shift_ns + ns(TRANSPORT_MS) for row in made]
    cycles = []
    for seq in range(ticks):
        late_ms = 0.125 * (seq % 5)
        deadline_ns = START_NS + ns(PERIOD_MS) * (seq + 1 + (seq >= 30))
        began_ns = deadline_ns + ns(late_ms)
        newest = max((index for index, at_ns in enumerate(arrived) if at_ns <= began_ns), default=None)
        used = None if newest is None else made[newest]
        mode, reason = (Mode.HOLD, f"features {seq} ms old") if seq in HELD else (Mode.RUN, "")
        if seq < start_up:
            mode, reason = Mode.INIT, "waiting for the robot host"
        age_ms = None if used is None else (began_ns - used.frame_stamp_ns) / NS_PER_MS + max(used.view_age_ms.values())
        cycle = Cycle(
            seq=seq,
            stamp_ns=began_ns,
            deadline_ns=deadline_ns,
            lateness_ms=late_ms,
            cycle_ms=sum(CYCLE_MS.values()),
            stage_ms=dict(CYCLE_MS),
            state_age_ms=10.0,
            feature_age_ms=age_ms,
            feature_seq=None if used is None else used.seq,
            encoder_epoch=None if used is None else used.encoder_epoch,
            encode_ms=None if used is None else used.encode_ms,
            instruction_id=1,
            pending_id=None,
            mode=mode,
            reason=reason,
            limits=("velocity a",) if seq % 10 == 0 else (),
            missed_ticks=1 if seq == 30 else 0,
            feature_arrived_ns=None if is_old or newest is None else arrived[newest],
        )
        cycles.append(cycle)
    return cycles, made


def record(file: Path, rows: tuple[list[Cycle], list[Features]]) -> Path:
    """A recording of them."""
    with RecordingWriter(file, two_joint_spec()) as writer:
        for noun in sorted((*rows[0], *rows[1]), key=lambda row: row.stamp_ns):
            writer.write(noun)
    return file
