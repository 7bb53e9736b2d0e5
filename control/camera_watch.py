"""Which camera is missing, black, late or frozen, by its images and the driver's own stamps.

Knows images and times; refuses to know what a policy needs. A frozen camera gives the same bytes again and again. So
does a simulator whose scene rests, having no noise; so identical images count only while the other cameras see
something move: more than half of them visibly, for the whole of `frozen_after_ms`. Once found, a fault stays until the
camera gives another image, since an arm that is held moves nothing. A robot's only camera can be told by its stamps
alone (control/robot.py: StampsImages).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from control.clock import NS_PER_MS

_LONGEST_PAUSE = 0.25  # of a motion, as a share of `frozen_after_ms`
_VISIBLE_LEVELS, _VISIBLE_SHARE = 16, 0.005  # a change: so many grey levels, in this share of all values


@dataclass(frozen=True, slots=True)
class CameraLimits:
    """`frozen_after_ms` None: identical images are no fault. An image is black where no value is over `black_below`."""

    frozen_after_ms: float | None = 1000.0
    late_after_ms: float = 500.0
    black_below: int = 8


@dataclass(slots=True)
class _Seen:
    image: np.ndarray
    is_black: bool
    since_ns: int  # the first of the identical images
    reference: np.ndarray  # what visible changes are counted from
    changed_ns: int = 0  # the last visible change
    suspect_ns: int | None = None  # since when it is identical while the others move
    is_frozen: bool = False


class CameraWatch:
    """One thread calls it, with every capture of one robot."""

    def __init__(self, cameras: Mapping[str, tuple[int, int]], limits: CameraLimits) -> None:
        """`cameras`: name -> (height, width), as in the robot's spec."""
        self._cameras, self._limits = cameras, limits
        self._seen: dict[str, _Seen] = {}

    def find_faults(
        self,
        stamp_ns: int,
        images: Mapping[str, np.ndarray],
        captured_ns: Mapping[str, int] | None = None,
        read_ns: int | None = None,
    ) -> dict[str, str]:
        """What is wrong with each camera, in words that go on after its name; nothing for those that are well.

        `captured_ns` is when the driver says that each image was taken, where it does; `read_ns` when the images were
        there, which is later than `stamp_ns` where a driver waits for the next one.
        """
        for name in self._cameras.keys() & images.keys():
            self._see(name, images[name], stamp_ns)
        faults = {}
        for name, size in self._cameras.items():
            taken_ns = (captured_ns or {}).get(name, stamp_ns)
            ahead_ms = (taken_ns - (stamp_ns if read_ns is None else read_ns)) / NS_PER_MS
            fault = self._find_fault(name, size, images.get(name), stamp_ns, taken_ns)
            if not fault and ahead_ms > 1.0:
                fault = f"is stamped {ahead_ms:.0f} ms in the future: its driver must use the monotonic clock"
            if fault:
                faults[name] = fault
        return faults

    def _find_fault(
        self, name: str, size: tuple[int, int], image: np.ndarray | None, stamp_ns: int, taken_ns: int
    ) -> str:
        if image is None:
            return "gives no image"
        if image.shape != (*size, 3) or image.dtype != np.uint8:
            return f"gives {image.dtype} images of shape {image.shape}, expected uint8 {(*size, 3)}"
        age_ms = (stamp_ns - taken_ns) / NS_PER_MS
        if age_ms > self._limits.late_after_ms:
            return f"is late: its newest image is {age_ms:.0f} ms old, limit {self._limits.late_after_ms:g}"
        if self._seen[name].is_black:
            return "is black: no light, a cap on its lens, or a broken cable?"
        if self._is_frozen(name, stamp_ns):
            since_ms = (stamp_ns - self._seen[name].since_ns) / NS_PER_MS
            return f"is frozen: the same image for {since_ms:.0f} ms while the other cameras see things move"
        return ""

    def _see(self, name: str, image: np.ndarray, stamp_ns: int) -> None:
        seen = self._seen.get(name)
        if seen is None or seen.image.shape != image.shape:
            kept = image.copy()
            self._seen[name] = _Seen(kept, self._is_black(kept), stamp_ns, kept)
            return
        if np.array_equal(seen.image, image):
            return
        seen.image, seen.since_ns = image.copy(), stamp_ns  # a driver may use its buffer again
        seen.is_black, seen.suspect_ns, seen.is_frozen = self._is_black(image), None, False
        if _is_visible(seen.reference, seen.image):
            seen.reference, seen.changed_ns = seen.image, stamp_ns

    def _is_black(self, image: np.ndarray) -> bool:
        return bool(image.max(initial=0) <= self._limits.black_below)

    def _is_frozen(self, name: str, stamp_ns: int) -> bool:
        seen, after_ms = self._seen[name], self._limits.frozen_after_ms
        if seen.is_frozen or after_ms is None:
            return seen.is_frozen
        after_ns = after_ms * NS_PER_MS
        if not self._others_moved(name, max(seen.since_ns, stamp_ns - _LONGEST_PAUSE * after_ns)):
            seen.suspect_ns = None
        elif seen.suspect_ns is None:
            seen.suspect_ns = stamp_ns
        seen.is_frozen = seen.suspect_ns is not None and stamp_ns - seen.suspect_ns >= after_ns
        return seen.is_frozen

    def _others_moved(self, name: str, since_ns: float) -> bool:
        """Whether more than half of the other cameras have seen something move since then."""
        others = [seen for other, seen in self._seen.items() if other != name]
        return 2 * sum(seen.changed_ns > since_ns for seen in others) > len(others)


def _is_visible(before: np.ndarray, after: np.ndarray) -> bool:
    difference = np.maximum(before, after) - np.minimum(before, after)
    return np.count_nonzero(difference > _VISIBLE_LEVELS) > _VISIBLE_SHARE * difference.size
