"""The newest usable features and the instruction they belong to: what may be acted on, its age, and when it switches.

Features made under one instruction never drive another: a new instruction is pending until its first features are in.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass

import numpy as np

from control.clock import NS_PER_MS
from control.messages import Features, Instruction
from control.safety import Freshness
from control.wire import MAX_INSTRUCTION_CHARS

_ENCODES_REMEMBERED = 15


@dataclass(frozen=True, slots=True)
class Verdict:
    """Speed in 0..1, the fault that leads to HOLD, and the reason for STOP; '' where there is none."""

    speed: float
    fault: str = ""
    stop: str = ""


class FeatureCache:
    """`session` must differ from that of any earlier controller the encoder may remember."""

    def __init__(
        self,
        session: int,
        policy_id: str,
        freshness: Freshness,
        period_ms: float,
        view_period_ms: float,
        switch_max_ms: float,
    ) -> None:
        self._session, self._policy_id = session, policy_id
        self._freshness, self._switch_max_ms = freshness, switch_max_ms
        self._period_ms, self._view_period_ms = period_ms, view_period_ms
        self.acting: Instruction | None = None
        self.pending: Instruction | None = None
        self.features: Features | None = None
        self.arrived_ns: int | None = None  # when `features` came off the bus
        self._refused = ""  # why the newest features were not taken
        self._said_ns = 0
        self._encode_ms: deque[float] = deque(maxlen=_ENCODES_REMEMBERED)

    @property
    def newest_instruction(self) -> Instruction | None:
        """What the encoder should work on."""
        return self.pending or self.acting

    def say(self, text: str, now_ns: int) -> Instruction:
        """Take a new instruction; it replaces one still pending. Raises ValueError for text that is no instruction."""
        text = " ".join(text.split())
        if not text:
            raise ValueError('the instruction is empty; say what to do, for example "touch the red block"')
        if len(text) > MAX_INSTRUCTION_CHARS:
            raise ValueError(f"the instruction has {len(text)} characters, expected at most {MAX_INSTRUCTION_CHARS}")
        newest = self.newest_instruction
        self._said_ns = now_ns
        self.pending = Instruction(0, now_ns, self._session, newest.id + 1 if newest else 1, text)
        return self.pending

    def take(self, features: Features | None, now_ns: int, arrived_ns: int | None = None) -> bool:
        """Take features if they are of this session, this policy, and the acting or pending instruction.

        True when they are the first of the pending instruction, which is acted on from now. What arrived after `now_ns`
        counts as arrived then: a cycle's ages are those at its beginning.
        """
        if features is None or features.session != self._session:
            return False
        if features.instruction_id not in {item.id for item in (self.pending, self.acting) if item is not None}:
            return False
        self._refused = self._find_fault(features, now_ns)
        if self._refused or self._is_known(features):
            return False
        self.features = features
        self.arrived_ns = None if arrived_ns is None else min(arrived_ns, now_ns)
        self._encode_ms.append(features.encode_ms)
        if self.pending is None or features.instruction_id != self.pending.id:
            return False
        self.acting, self.pending = self.pending, None
        return True

    def _find_fault(self, features: Features, now_ns: int) -> str:
        if features.policy_id != self._policy_id:
            return (
                f"features of policy {features.policy_id} refused, the head is of {self._policy_id}:"
                " encoder and controller were started with different policy folders"
            )
        if features.fault:
            return features.fault
        if not features.tokens.size or not np.isfinite(features.tokens).all():
            return "features with NaN, infinity or nothing in them refused: encoder fault"
        if features.frame_stamp_ns > now_ns + NS_PER_MS:
            return "features stamped in the future refused: robot host and controller must share one clock"
        return ""

    def _is_known(self, features: Features) -> bool:
        """Whether they are older than what is held, or the same, sent again to a late reader."""
        held = self.features
        if held is None or features.instruction_id != held.instruction_id:
            return False
        same = (features.encoder_epoch, features.seq) == (held.encoder_epoch, held.seq)
        return same or features.frame_stamp_ns < held.frame_stamp_ns

    def age_ms(self, now_ns: int) -> float | None:
        """Age of the oldest view inside the features in use."""
        if self.features is None:
            return None
        oldest = max(self.features.view_age_ms.values(), default=0.0)
        return (now_ns - self.features.frame_stamp_ns) / NS_PER_MS + oldest

    def judge(self, now_ns: int, refusal: str, is_starting: bool) -> Verdict:
        """What the ladder says to the features in use. While starting nothing is stale yet, but limits can be wrong.

        `refusal` is why the newest message did not decode, where it did not.
        """
        age_ms = self.age_ms(now_ns)
        refused = refusal or self._refused
        why = f" ({refused})" if refused else ""
        if self.acting is None or age_ms is None:
            if self.pending is None:
                return Verdict(0.0, "no instruction yet; give one with `say`")
            return Verdict(0.0, f"waiting for the first features of instruction {self.pending.id}{why}")
        limits = self._freshness
        if age_ms > limits.stop_after_ms and not is_starting:
            return Verdict(0.0, stop=f"features {age_ms:.0f} ms old, past stop_after_ms {limits.stop_after_ms:g}{why}")
        if age_ms >= limits.hold_after_ms:
            return Verdict(0.0, f"features {age_ms:.0f} ms old, past hold_after_ms {limits.hold_after_ms:g}{why}")
        waited_ms = (now_ns - self._said_ns) / NS_PER_MS
        if self.pending is not None and waited_ms > self._switch_max_ms:
            late = f"no features of instruction {self.pending.id} after {waited_ms:.0f} ms: encoder slow or stopped"
            return Verdict(0.0, late + why)
        if is_starting and (flapping := self._would_flap()):
            return Verdict(0.0, flapping)
        return Verdict(limits.speed(age_ms))

    def _would_flap(self) -> str:
        """Why these limits would alternate between RUN and HOLD although all is well, '' when they would not."""
        encode_ms = statistics.median(self._encode_ms)
        period_ms, view_ms, hold_ms = self._period_ms, self._view_period_ms, self._freshness.hold_after_ms
        bound_ms = 2 * encode_ms + period_ms + view_ms
        if bound_ms <= hold_ms:
            return ""
        return (
            f"hold_after_ms {hold_ms:g} is under 2 x encode ({encode_ms:.0f}) + period ({period_ms:.0f})"
            f" + time between two views ({view_ms:.0f}) = {bound_ms:.0f} ms and would flap between RUN and HOLD;"
            " raise freshness.hold_after_ms"
        )
