"""Captures of a robot in a file: what its cameras saw, its state and its instruction, some frames apart.

For judging a precision or calibrating it on what one's own robot really sees. The file is a NumPy archive, read without
pickle. It is no recording of a run: no actions, no times.

Letters: F captures, H height, W width, S state values.
"""

from __future__ import annotations

import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from control.address import BusAddress
from control.bus import Latest
from control.clock import NS_PER_S
from control.errors import ConfigError, NotRunning
from control.messages import Frames

MAX_CAPTURES = 4096
_IMAGES, _STATES, _INSTRUCTIONS = "images/", "states", "instructions"


@dataclass(frozen=True, slots=True, eq=False)
class Captures:
    """What was seen, in the order of time."""

    images: dict[str, np.ndarray]  # camera -> (F, H, W, 3) uint8
    states: np.ndarray  # (F, S) float64
    instructions: tuple[str, ...]  # F of them

    def __len__(self) -> int:
        return len(self.instructions)

    def frames(self, index: int) -> Frames:
        """One capture as the encoder gets it."""
        return Frames(index + 1, index, {name: images[index] for name, images in self.images.items()})

    def save(self, file: Path) -> None:
        arrays = {_IMAGES + name: images for name, images in self.images.items()}
        with file.open("wb") as opened:
            np.savez_compressed(
                opened, **arrays, **{_STATES: self.states, _INSTRUCTIONS: np.array(self.instructions, dtype=np.str_)}
            )


def load_captures(file: Path) -> Captures:
    """Raises ConfigError for what is no such file, naming what is wrong with it."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        images = {name.removeprefix(_IMAGES): array for name, array in arrays.items() if name.startswith(_IMAGES)}
        states, instructions = arrays[_STATES], arrays[_INSTRUCTIONS]
    except FileNotFoundError:
        raise ConfigError(f"captures {file} do not exist; `launch.py bench frames` writes them") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"captures {file} cannot be read: {error}; `launch.py bench frames` writes them") from None
    count = len(instructions) if instructions.ndim == 1 and instructions.dtype.kind == "U" else 0
    wrong = [
        name
        for name, array in images.items()
        if array.dtype != np.uint8 or array.shape[:1] + array.shape[3:] != (count, 3)
    ]
    if (
        not 0 < count <= MAX_CAPTURES
        or not images
        or wrong
        or states.dtype != np.float64
        or states.shape[:1] != (count,)
    ):
        raise ConfigError(
            f"captures {file}: expected 1 to {MAX_CAPTURES} captures with (F, H, W, 3) uint8 images, float64 states and"
            f" an instruction each, got {count} instructions, images {_shapes(images)},"
            f" states {states.shape} {states.dtype}"
        )
    if not np.isfinite(states).all() or states.ndim != 2:
        raise ConfigError(
            f"captures {file}: states expected finite numbers (F, S), got {states.shape} with NaN or more"
        )
    return Captures(images, states, tuple(str(text) for text in instructions))


def collect(
    bus: BusAddress, count: int, every_s: float, stopped: Callable[[], bool], show: Callable[[int], None]
) -> Captures:
    """Listens to a running robot and its controller until there are `count` captures, `every_s` apart.

    A capture with a camera that fails, or without one that another has, is left out. Raises NotRunning when no capture,
    state or instruction comes for 10 s.
    """
    inboxes = {topic: Latest(bus, topic) for topic in ("frames", "state", "instruction")}
    newest: dict[str, Any] = {}
    seen: list[tuple[Frames, np.ndarray, str]] = []
    cameras: set[str] = set()
    due_ns = heard_ns = time.monotonic_ns()
    try:
        while len(seen) < count and not stopped():
            for topic, inbox in inboxes.items():
                newest[topic] = inbox.poll(5) or newest.get(topic)
            now_ns = time.monotonic_ns()
            frames, state, instruction = (newest[topic] for topic in inboxes)
            if frames is not None and not frames.images.keys() <= cameras:
                cameras |= frames.images.keys()
                seen = [one for one in seen if one[0].images.keys() == cameras]
            is_whole = frames is not None and not frames.faults and frames.images.keys() == cameras
            if not is_whole or state is None or instruction is None or (seen and frames is seen[-1][0]):
                if now_ns - heard_ns > 10 * NS_PER_S:
                    missing = [topic for topic, noun in newest.items() if noun is None] or ["new frames"]
                    if frames is not None and not is_whole:
                        faults = ", ".join(f"{name} {fault}" for name, fault in frames.faults.items())
                        raise NotRunning(f"no frames of all cameras for 10 s: {faults or 'one gives no image'}")
                    raise NotRunning(f"no {', '.join(missing)} for 10 s: start a run and give it an instruction first")
                continue
            heard_ns = now_ns
            if now_ns >= due_ns:
                due_ns = now_ns + round(every_s * NS_PER_S)
                seen.append((frames, state.values, instruction.text))
                show(len(seen))
    finally:
        for inbox in inboxes.values():
            inbox.close()
    if not seen:
        raise NotRunning("stopped before the first capture")
    return Captures(
        {name: np.stack([frames.images[name] for frames, _, _ in seen]) for name in seen[0][0].images},
        np.stack([values for _, values, _ in seen]),
        tuple(text for _, _, text in seen),
    )


def _shapes(images: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in images.items()) or "none"
