"""The high-rate window of measured states that a robot host sends along with the newest one.

Knows stamps and values; refuses to know who measures and who looks. A policy is trained on rows one period apart, so
the rows lie on that grid, whatever the host's own jitter.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from control.clock import NS_PER_S


class StateHistory:
    """The last `samples` states, `rate_hz` a second, oldest first.

    A gap of up to half a window is filled in a straight line; after a longer one, nothing known, it begins again.
    """

    def __init__(self, samples: int, rate_hz: float) -> None:
        if samples < 1:
            raise ValueError(f"a history needs at least 1 sample, got {samples}")
        self._period_ns = round(NS_PER_S / rate_hz)
        self._rows: deque[np.ndarray] = deque(maxlen=samples)
        self._most_steps = samples // 2 + 1
        self._newest_ns = 0

    def add(self, stamp_ns: int, values: np.ndarray) -> None:
        """A measurement (S,), taken at `stamp_ns`; of two within one period the later one counts."""
        steps = round((stamp_ns - self._newest_ns) / self._period_ns)
        if not self._rows or not 0 <= steps <= self._most_steps:
            self._rows.clear()
            self._rows.append(np.array(values, dtype=np.float64))
            self._newest_ns = stamp_ns
            return
        last = self._rows[-1]
        if steps == 0:
            self._rows[-1] = np.array(values, dtype=np.float64)
        for step in range(1, steps + 1):
            self._rows.append(last + (values - last) * (step / steps))
        self._newest_ns += steps * self._period_ns

    def window(self) -> np.ndarray | None:
        """(samples, S) float64, its last row the newest measurement; None until there are so many."""
        return np.stack(self._rows) if len(self._rows) == self._rows.maxlen else None
