"""Nouns with awkward values, and recordings made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from control.clock import NS_PER_MS, NS_PER_S
from control.messages import ActionChunk, Cycle, Features, Frames, Instruction, Mode, RobotSpec, State
from control.recording import RecordingWriter
from control.recording_format import Label
from control.recording_images import ImageCodec

START_NS = 123_456_789_012_345_678
TWO_CAMERAS = {"front": (24, 32), "wrist": (16, 16)}


def image(size: tuple[int, int], seed: int) -> np.ndarray:
    """(H, W, 3) a smooth picture that differs by seed."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.stack([(rows * 3 + seed * 7) % 256, (columns * 5 + seed) % 256, (rows + columns) % 256], 2).astype(
        np.uint8
    )


def frames(spec: RobotSpec, seq: int, stamp_ns: int) -> Frames:
    return Frames(seq, stamp_ns, {name: image(size, seq) for name, size in spec.cameras.items()})


def cycle(seq: int, stamp_ns: int, mode: Mode = Mode.RUN, reason: str = "", **changes: Any) -> Cycle:
    fields: dict[str, Any] = {
        "seq": seq,
        "stamp_ns": stamp_ns,
        "deadline_ns": stamp_ns - 1,
        "lateness_ms": 0.1 + 0.2,
        "cycle_ms": 1.2,
        "stage_ms": {"state": 0.1, "head": 1 / 3},
        "state_age_ms": 3.0,
        "feature_age_ms": None,
        "feature_seq": 7,
        "encoder_epoch": 1,
        "encode_ms": 8.0,
        "instruction_id": 1,
        "pending_id": None,
        "mode": mode,
        "reason": reason,
        "limits": ("velocity a",),
        "missed_ticks": 0,
    }
    return Cycle(**(fields | changes))


def action(seq: int, stamp_ns: int, targets: Any, instruction_id: int = 1, mode: Mode = Mode.RUN) -> ActionChunk:
    values = np.array(targets, dtype=np.float64)
    return ActionChunk(seq, stamp_ns, instruction_id, 31.5, mode, values, 0.1, stamp_ns + NS_PER_S)


def features(seq: int, stamp_ns: int) -> Features:
    tokens = np.array([[1 / 3, np.float32(np.inf)], [-0.0, 1e-38]], dtype=np.float32)
    return Features(seq, stamp_ns, seq, stamp_ns - 5, 7, 1, 3, "policy", tokens, {"front": 0.0}, 8.5, {"vision": 4.25})


def instruction(id_: int, stamp_ns: int, text: str) -> Instruction:
    return Instruction(id_, stamp_ns, 7, id_, text)


def record_episodes(
    file: Path,
    spec: RobotSpec,
    episodes: int = 2,
    steps: int = 12,
    labels: bool = True,
    images: ImageCodec | None = None,
    first: int = 0,
) -> Path:
    """Lockstep episodes at 10 Hz: state, capture, action and label at each step; task and length differ."""
    with RecordingWriter(file, spec, images=images or ImageCodec("webp")) as writer:
        now_ns, seq = START_NS, 0
        for index in range(first, first + episodes):
            writer.begin_episode(now_ns, index, f"touch block {index % 2}", seed=100 + index)
            for step in range(steps + index):
                seq += 1
                writer.write(State(seq, now_ns, np.array([0.1 * step, index + 1 / 3])))
                writer.write(frames(spec, seq, now_ns))
                writer.write(action(seq, now_ns, [[0.5, 0.25], [0.6, 0.35]]))
                if labels:
                    writer.write(Label(now_ns, np.array([[step / 7, -index / 7], [step, index]], dtype=np.float64)))
                now_ns += 100 * NS_PER_MS
            writer.end_episode(now_ns, success=index % 2 == 0)
            now_ns += NS_PER_S
    return file
