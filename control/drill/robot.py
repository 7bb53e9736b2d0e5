"""The robot of a drill: any other one, whose commands are written down and whose sensors can be made to lie.

The journal is written before a command goes on, a row a call and no buffer, so that it holds what was commanded however
the process ends. What the sensors do wrong stands in a small file that the drill replaces.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from control.clock import NS_PER_MS, Clock
from control.discovery import make_robot
from control.errors import RobotError
from control.messages import Instruction, RobotSpec
from control.robot import Judge

_APPLY, _HOLD, _START = 0, 1, 2
_HEAD = struct.Struct("<BBq")  # kind, number of values, monotonic ns
_LOOK_EVERY_NS = 10 * NS_PER_MS


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One call of the robot; `targets` (A,) is None for a hold, and for the start of a robot host."""

    at_ns: int
    targets: np.ndarray | None
    is_start: bool = False


def read_journal(file: Path, begin: int = 0) -> tuple[list[Row], int]:
    """The rows from byte `begin` on, and where the next ones begin. A row that is being written is left for later."""
    data = file.read_bytes()[begin:] if file.exists() else b""
    rows = list(_rows(data))
    return rows, begin + sum(_HEAD.size + (0 if row.targets is None else 8 * len(row.targets)) for row in rows)


def _rows(data: bytes) -> Iterator[Row]:
    at = 0
    while at + _HEAD.size <= len(data):
        kind, count, at_ns = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if at + 8 * count > len(data):
            return
        yield Row(at_ns, np.frombuffer(data, "<f8", count, at) if kind == _APPLY else None, kind == _START)
        at += 8 * count


class DrillRobot:
    """`robot` is the name of an installed robot and `options` what it takes; `journal` and `faults` are files."""

    def __init__(self, clock: Clock, robot: str, options: dict[str, Any], journal: str, faults: str) -> None:
        if robot == "drill":
            raise RobotError("robot 'drill' stands around another robot, and cannot stand around itself")
        self._clock, self._robot = clock, make_robot(robot, clock, options)
        self._judge = self._robot if isinstance(self._robot, Judge) else None
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._faults = Path(faults)
        self._fault: dict[str, Any] = {}
        self._looked_ns = self._changed_ns = 0
        self._rng = np.random.default_rng(0)
        self._last: dict[str, np.ndarray] = {}

    @property
    def spec(self) -> RobotSpec:
        return self._robot.spec

    def connect(self) -> None:
        self._write(_START)
        self._robot.connect()

    def read_state(self) -> np.ndarray:
        values = self._robot.read_state()
        fault = self._sensor_fault()
        kept = self._last.setdefault("state", values) if fault == "frozen" else values
        self._last["state"] = kept
        index = self._fault.get("index", 0) % len(values)
        match fault:
            case "nan" | "inf":
                values = values.copy()
                values[index] = float(fault)
            case "frozen":
                values = kept
            case "noisy":
                values = values + self._rng.normal(0.0, self._fault["sigma"], len(values))
            case "outside":
                values = values.copy()
                values[index] = 1e3
        return values

    def read_frames(self) -> dict[str, np.ndarray]:
        images = self._robot.read_frames()
        fault, camera = self._fault.get("cameras"), self._fault.get("camera", "")
        if fault is None or camera not in images:
            self._last |= {name: image.copy() for name, image in images.items()}
            return images
        match fault:
            case "missing":
                return {name: image for name, image in images.items() if name != camera}
            case "black":
                return images | {camera: np.zeros_like(images[camera])}
            case "misshapen":
                return images | {camera: images[camera][::2].copy()}
            case _:
                return images | {camera: self._last.get(camera, images[camera])}

    def apply(self, targets: np.ndarray) -> np.ndarray:
        self._write(_APPLY, targets)
        return self._robot.apply(targets)

    def hold(self) -> None:
        self._write(_HOLD)
        self._robot.hold()

    def close(self) -> None:
        self._robot.close()

    def begin(self, instruction: Instruction) -> None:
        if self._judge is not None:
            self._judge.begin(instruction)

    def judge(self) -> bool | None:
        return self._judge.judge() if self._judge is not None else None

    def _sensor_fault(self) -> str | None:
        now_ns = self._clock.now_ns()
        if now_ns - self._looked_ns >= _LOOK_EVERY_NS:
            self._looked_ns = now_ns
            try:
                changed_ns = self._faults.stat().st_mtime_ns
                if changed_ns != self._changed_ns:
                    self._fault, self._changed_ns = json.loads(self._faults.read_text()), changed_ns
            except FileNotFoundError:
                self._fault = {}
        return self._fault.get("state")

    def _write(self, kind: int, targets: np.ndarray | None = None) -> None:
        values = b"" if targets is None else np.asarray(targets, dtype="<f8").tobytes()
        os.write(self._journal, _HEAD.pack(kind, len(values) // 8, self._clock.now_ns()) + values)


def tell(faults: Path, fault: dict[str, Any]) -> None:
    """What the sensors do wrong from now on; an empty one ends it. The file is replaced whole."""
    new = faults.with_suffix(".new")
    new.write_text(json.dumps(fault))
    new.replace(faults)
