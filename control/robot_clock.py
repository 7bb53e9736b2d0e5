"""The robot's clock as a listener can tell it: from how long messages seem to take.

Stamps are monotonic nanoseconds of the machine that made them. A listener on that machine reads the same clock; on
another one (a laptop with keys) the clocks differ by hours, and nothing on the wire says by how much. A message cannot
arrive before it was stamped, so the quickest of the last ones bounds the difference to within its way. Refuses to know
the bus.
"""

from __future__ import annotations

from collections import deque

from control.clock import NS_PER_MS, NS_PER_S

_KEEP = 100  # messages: ten seconds of cycles
_SAME_NS = 250 * NS_PER_MS  # a message that seems to have taken less is of this machine, or of one that began with it
_ANOTHER_NS = 2 * NS_PER_S  # a clock that fell behind by so much is another's, or began anew


class RobotClock:
    """Give it every cycle: `hear(its stamp, when it came)`."""

    def __init__(self) -> None:
        self._ahead: deque[int] = deque(maxlen=_KEEP)

    def hear(self, stamp_ns: int, came_ns: int) -> None:
        ahead_ns = stamp_ns - came_ns
        if self._ahead and ahead_ns < max(self._ahead) - _ANOTHER_NS:
            self._ahead.clear()
        self._ahead.append(ahead_ns)

    @property
    def ahead_ns(self) -> int:
        """What the robot's clock shows more than this one's; 0 on the same machine, and before anything was heard."""
        ahead_ns = max(self._ahead, default=0)
        return 0 if -_SAME_NS < ahead_ns <= 0 else ahead_ns
