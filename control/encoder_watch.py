"""Whether an encoder that still runs does its work: frames arrive and an instruction waits, and no features come.

Knows what the supervisor hears; refuses to end anybody. Frames are large, so they are listened to only while an encoder
loads, and when features have been missing for half the time. Listening takes about 1 MiB for good the first time, which
is therefore at the start of a run. After a time without frames the encoder has half of its own from the first that is
heard. An encoder that refuses its frames says so on `features` and is not hung. Until its first features after a start
it has the time that a run has to start: it loads.
"""

from __future__ import annotations

import statistics
import time
from collections import deque

from control.address import BusAddress
from control.bus import Latest, Subscriber
from control.messages import Cycle, Features

_REMEMBERED = 15
_SLOWER = 5.0  # than its median encode, before it counts as hung


class EncoderWatch:
    """One thread calls it. `hung_after_s` is for an encoder at rest; one whose encodes take long has five of them."""

    def __init__(self, bus: BusAddress, hung_after_s: float, start_s: float) -> None:
        self._bus, self._hung_after_s, self._start_s = bus, hung_after_s, start_s
        self._encode_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._frames: Subscriber | None = None
        self._heard_s: float | None = None  # the first frame in the second half of the time without features
        self.started()

    def started(self) -> None:
        """A new encoder has just been started."""
        self._since_s, self._has_spoken = time.monotonic(), False
        self._stop_listening()

    def add_features(self, features: Features) -> None:
        self._since_s, self._has_spoken = time.monotonic(), True
        if not features.fault:
            self._encode_s.append(features.encode_ms / 1000)
        self._stop_listening()

    def add_cycle(self, cycle: Cycle) -> None:
        """Without an instruction there is nothing to encode, and the time does not count."""
        if not cycle.instruction_id and cycle.pending_id is None:
            self._since_s = time.monotonic()

    def find_fault(self) -> str:
        """Why the encoder counts as hung, '' while it does not."""
        now_s, limit_s = time.monotonic(), self._limit_s()
        quiet_s = now_s - self._since_s
        if self._has_spoken and quiet_s < limit_s / 2:
            self._stop_listening()
            return ""
        if self._frames is None:
            self._frames = Latest(self._bus, "frames")
        comes = self._frames.poll() is not None
        if quiet_s < limit_s / 2:
            self._heard_s = None
        elif comes and self._heard_s is None:
            self._heard_s = now_s
        if quiet_s < limit_s or self._heard_s is None or now_s - self._heard_s < limit_s / 2:
            return ""
        return f"no features for {quiet_s:.1f} s although frames arrive"

    @property
    def is_listening(self) -> bool:
        """To frames."""
        return self._frames is not None

    def close(self) -> None:
        self._stop_listening()

    def _limit_s(self) -> float:
        if not self._has_spoken:
            return max(self._start_s, self._hung_after_s)
        return max(self._hung_after_s, _SLOWER * statistics.median(self._encode_s) if self._encode_s else 0.0)

    def _stop_listening(self) -> None:
        if self._frames is not None:
            self._frames.close()
        self._frames = self._heard_s = None
