"""A recording through encoder and head again: what they make of the same frames and states, now or elsewhere.

Knows recordings and two protocols; refuses to know models, sockets and the robot. Every tick is judged by itself: it
gets the recorded state, and the safety gate measures its step from what was commanded then, so that one difference does
not drag others along.

In lockstep a tick gets the capture and the instruction that it acted on, at the recorded feature age. In wall-clock
time captures come with their recorded spacing, the encoder takes the newest when it is free, and each tick gets what
was ready by then, as in a live run.

Letters: H horizon, A actions, T feature tokens, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np

from control.clock import NS_PER_MS, Clock
from control.errors import SaccadeError
from control.head import ActionHead
from control.loop import LoopSettings, resampled
from control.messages import Features, Frames, Instruction
from control.recording_reader import Recording
from control.replay_ticks import RecordedTick
from control.safety import Freshness, Limits, find_bad_history, gate


class Encodes(Protocol):
    """What a replay asks of an encoder, whatever it computes with."""

    policy_id: str
    cameras: dict[str, tuple[int, int]]

    def encode(self, frames: Frames, instruction: Instruction) -> Features:
        """Raises a SaccadeError for what cannot be encoded."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ReplayedTick:
    """What came of a recorded tick this time. `fault` says why nothing did; a live loop would have held."""

    recorded: RecordedTick
    features: Features | None
    feature_age_ms: float | None
    targets: np.ndarray | None  # (H, A) as the safety gate passes them
    limits: tuple[str, ...] = ()
    fault: str = ""


Ready = tuple[int, Features | None, str]  # from when on, on the recording's time line; features, or why there are none


def in_lockstep(
    recording: Recording,
    ticks: list[RecordedTick],
    encoder: Encodes,
    act: Actor,
    stopped: Callable[[], bool],
    show: Callable[[int], None],
) -> list[ReplayedTick]:
    """Each tick on the features of its own capture; ticks that shared features share them again."""
    replayed: list[ReplayedTick] = []
    known: tuple[int, int, int] | None = None
    features, fault = None, ""
    for tick in ticks:
        if stopped():
            break
        wanted = (tick.frames.stamp_ns, tick.instruction.session, tick.instruction.id)
        if wanted != known:
            features, fault = encode_recorded(encoder, recording, tick.frames.stamp_ns, tick.instruction)
            known = wanted
        replayed.append(act(tick, features, tick.feature_age_ms, fault))
        show(len(replayed))
    return replayed


def in_wall_clock_time(
    recording: Recording,
    ticks: list[RecordedTick],
    encoder: Encodes,
    act: Actor,
    clock: Clock,
    stopped: Callable[[], bool],
    show: Callable[[int], None],
) -> list[ReplayedTick]:
    """Encodes while the recording passes by, then acts on each tick with what was ready at its stamp."""
    if not ticks:
        return []
    first_ns, last_ns = recording.frames[0].stamp_ns, ticks[-1].action.stamp_ns
    began_ns = clock.now_ns()
    stamps_ns = recording.log_ns["frames"]
    ready: list[Ready] = []
    encoded: tuple[int, int, int] | None = None
    while not stopped() and (now_ns := first_ns + clock.now_ns() - began_ns) <= last_ns:
        index, said = recording.newest("frames", now_ns), recording.newest("instruction", now_ns)
        instruction = recording.instructions[max(said, 0)]  # a recording of a run that went on begins after it was said
        wanted = (index, instruction.session, instruction.id)
        if wanted == encoded:
            next_ns = stamps_ns[index + 1] if index + 1 < len(stamps_ns) else last_ns + 1
            if said + 1 < len(recording.instructions):
                next_ns = min(next_ns, recording.log_ns["instruction"][said + 1])
            clock.sleep_until(began_ns + int(next_ns) - first_ns)
            continue
        features, fault = encode_recorded(encoder, recording, int(stamps_ns[index]), instruction)
        ready.append((first_ns + clock.now_ns() - began_ns, features, fault))
        encoded = wanted
        show(sum(tick.action.stamp_ns <= now_ns for tick in ticks))
    until_ns = first_ns + clock.now_ns() - began_ns
    since_ns = np.array([stamp_ns for stamp_ns, _, _ in ready], dtype=np.int64)
    replayed = []
    for tick in ticks:
        if tick.action.stamp_ns > until_ns:
            break
        newest = int(np.searchsorted(since_ns, tick.action.stamp_ns, side="right")) - 1
        features, fault = ready[newest][1:] if newest >= 0 else (None, "no features yet")
        replayed.append(act(tick, features, _age_ms(features, tick.action.stamp_ns), fault))
    return replayed


def _age_ms(features: Features | None, now_ns: int) -> float:
    if features is None:
        return 0.0
    return (now_ns - features.frame_stamp_ns) / NS_PER_MS + max(features.view_age_ms.values(), default=0.0)


def encode_recorded(
    encoder: Encodes, recording: Recording, frame_stamp_ns: int, instruction: Instruction
) -> tuple[Features | None, str]:
    """Features, or why there are none: an image that is damaged, or one that the encoder cannot use."""
    capture = recording.frames[recording.newest("frames", frame_stamp_ns)]
    try:
        there = [camera for camera in encoder.cameras if camera in capture.images]
        return encoder.encode(capture.decode(*there), instruction), ""
    except SaccadeError as error:
        return None, f"not encoded: {error}"


class Actor:
    """The loop's way from features to targets, for one tick: freshness, head, resampling, safety gate."""

    def __init__(self, recording: Recording, head: ActionHead, settings: LoopSettings) -> None:
        """The period is the recording's. Raises MismatchError for limits that do not fit its robot."""
        self._spec, self._head, self._settings = recording.spec, head, settings
        self._limits: dict[float, Limits] = {}

    def __call__(self, tick: RecordedTick, features: Features | None, age_ms: float, fault: str = "") -> ReplayedTick:
        if features is None:
            return ReplayedTick(tick, None, None, None, fault=fault)
        chunk, speed = None, self._settings.freshness.speed(age_ms)
        fault = self._find_fault(tick, age_ms)
        if not fault:
            chunk, fault = self._ask_head(features.tokens, tick, age_ms)
        if fault or chunk is None:
            return ReplayedTick(tick, features, age_ms, None, fault=fault)
        chunk = resampled(chunk, tick.before, self._head.period_s, tick.action.period_s)
        gated = gate(chunk, tick.before, self._limits_at(tick.action.period_s), speed, tick.step)
        targets = None if gated.fault else gated.targets
        return ReplayedTick(tick, features, age_ms, targets, gated.hit, gated.fault)

    def _find_fault(self, tick: RecordedTick, age_ms: float) -> str:
        freshness: Freshness = self._settings.freshness
        if age_ms >= freshness.hold_after_ms:
            return f"features {age_ms:.0f} ms old, past hold_after_ms {freshness.hold_after_ms:g}"
        return find_bad_history(tick.state.history, self._head.window_samples, self._spec)

    def _ask_head(self, tokens: np.ndarray, tick: RecordedTick, age_ms: float) -> tuple[np.ndarray | None, str]:
        try:
            return self._head.act(tokens, tick.state.values, age_ms, tick.state.history), ""
        except Exception as error:  # whatever a head raises is a HOLD in the loop, and a fault here
            return None, f"the head failed: {type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"

    def _limits_at(self, period_s: float) -> Limits:
        if period_s not in self._limits:
            settings = self._settings
            self._limits[period_s] = Limits.of(self._spec, period_s, settings.workspace, settings.allow_unlimited)
        return self._limits[period_s]
