"""The options a user gives to the simulator, checked where they enter. Refuses to know what they are for."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from control.errors import ConfigError
from sim.scene import CAMERAS

_LARGEST = 2048  # pixels


def seed_number(seed: Any) -> int:
    """The seed as an int. Raises ConfigError for what is no whole number from 0."""
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise ConfigError(f"a seed must be a whole number, 0 or more, got {seed!r}")
    return number


def camera_sizes(cameras: Mapping[str, Any] | Iterable[str] | None, image_size: Any) -> dict[str, tuple[int, int]]:
    """{camera: (height, width)} of the chosen cameras, of all five for None. Raises ConfigError naming the bad one."""
    default = _size("image_size", image_size)
    if isinstance(cameras, str) or not isinstance(cameras, (Iterable, type(None))):
        raise ConfigError(
            f"cameras must be a list of names or a mapping of name to [height, width], got {cameras!r};"
            f" the table-top has {', '.join(CAMERAS)}"
        )
    chosen = dict(cameras) if isinstance(cameras, Mapping) else dict.fromkeys(cameras or CAMERAS, default)
    for name in chosen:
        if name not in CAMERAS:
            raise ConfigError(f"the table-top has no camera '{name}'; it has {', '.join(CAMERAS)}")
    return {name: _size(f"the size of camera '{name}'", size) for name, size in chosen.items()}


def _size(label: str, size: Any) -> tuple[int, int]:
    if isinstance(size, (list, tuple)) and len(size) == 2:
        height, width = size
        if all(type(side) is int and 1 <= side <= _LARGEST for side in size):
            return height, width
    raise ConfigError(f"{label} must be [height, width], two whole numbers of pixels in 1..{_LARGEST}, got {size!r}")
