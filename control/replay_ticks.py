"""What each recorded tick acted on: the capture, the instruction, the state, the features, and the command before it.

Knows recordings; refuses to know what a replay does with it. A run's cycles say which state and features a tick used,
to the nanosecond, so nothing is guessed; a recording without cycles (demonstrations) gives the newest at the stamp.

Letters: A actions.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

import numpy as np

from control.clock import NS_PER_MS, NS_PER_S
from control.loop import followed_to, outlasts_watchdog
from control.messages import ActionChunk, Cycle, Features, Instruction, Mode, RobotSpec, State
from control.recording_images import StoredFrames
from control.recording_reader import Recording


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class RecordedTick:
    """One action in RUN, and all that it came from."""

    action: ActionChunk
    state: State
    frames: StoredFrames
    instruction: Instruction
    features: Features | None  # None where the recording holds none
    feature_age_ms: float
    before: np.ndarray  # (A,) what was commanded last, the reference of the velocity limit
    step: np.ndarray | None  # (A,) by which that was reached, None where the arm stood


def recorded_ticks(recording: Recording, watchdog_ns: int) -> tuple[list[RecordedTick], Counter[str]]:
    """All ticks that can be replayed, and how many cannot, by reason. `watchdog_ns` is the robot host's in that run."""
    left_out: Counter[str] = Counter()
    ticks = []
    finder = _Finder(recording, watchdog_ns)
    pairs = _with_cycles(recording) if recording.cycles else ((action, None) for action in recording.actions)
    previous: ActionChunk | None = None
    found: RecordedTick | str = ""
    for action, cycle in pairs:
        last = found if isinstance(found, RecordedTick) else None
        found = finder.find(action, cycle, previous, last) if action.mode is Mode.RUN else f"mode {action.mode}"
        if isinstance(found, RecordedTick):
            ticks.append(found)
        else:
            left_out[found] += 1
        previous = action
    return ticks, left_out


def _with_cycles(recording: Recording) -> Iterator[tuple[ActionChunk, Cycle]]:
    """An operator's `stop` is an action without a cycle, and left out."""
    actions = {(action.seq, action.stamp_ns): action for action in recording.actions}
    for cycle in recording.cycles:
        if action := actions.get((cycle.seq, cycle.stamp_ns)):
            yield action, cycle


class _Finder:
    def __init__(self, recording: Recording, watchdog_ns: int) -> None:
        self._recording, self._watchdog_ns = recording, watchdog_ns
        self._frames = {capture.stamp_ns: capture for capture in recording.frames}
        self._features = {(each.encoder_epoch, each.seq): each for each in recording.features}
        self._said = {(each.session, each.id): each for each in recording.instructions}

    def find(
        self, action: ActionChunk, cycle: Cycle | None, previous: ActionChunk | None, last: RecordedTick | None
    ) -> RecordedTick | str:
        """The tick, or why it cannot be replayed. `last` is the tick of the `previous` action, where there is one."""
        features = None
        if cycle is None:
            frames = self._newest("frames", self._recording.frames, action.stamp_ns)
            state = self._newest("state", self._recording.states, action.stamp_ns)
            instruction = self._newest("instruction", self._recording.instructions, action.stamp_ns)
            if state is None:
                return "no state before it"
        else:
            if cycle.encoder_epoch is None or cycle.feature_seq is None or cycle.state_age_ms is None:
                return "its cycle names no state or features"
            features = self._features.get((cycle.encoder_epoch, cycle.feature_seq))
            if features is None:
                return "its features were not recorded"
            frames = self._frames.get(features.frame_stamp_ns)
            instruction = self._said.get((features.session, features.instruction_id))
            state = self._state_at(action.stamp_ns - round(cycle.state_age_ms * NS_PER_MS))
            if state is None:
                return "its state was not recorded"
            if action.seq and (previous is None or previous.seq != action.seq - 1):
                return "the action before it was not recorded"
        if frames is None:
            return "its capture was not recorded"
        if instruction is None:
            return "its instruction was not recorded"
        age_ms = action.feature_age_ms
        if age_ms is None:
            age_ms = (action.stamp_ns - frames.stamp_ns) / NS_PER_MS
        missed = cycle.missed_ticks if cycle else 0
        if outlasts_watchdog(missed, round(action.period_s * NS_PER_S), self._watchdog_ns):
            previous = None  # the loop began at what is measured
        before, step = commanded_before(self._recording.spec, state, previous, last, missed)
        return RecordedTick(action, state, frames, instruction, features, age_ms, before, step)

    def _newest(self, topic: str, nouns: list, stamp_ns: int):
        index = self._recording.newest(topic, stamp_ns)
        return nouns[index] if index >= 0 else None

    def _state_at(self, stamp_ns: int) -> State | None:
        """The state with this stamp; a microsecond off, since its age went through a float of milliseconds."""
        index = self._recording.newest("state", stamp_ns + 1000)
        if index < 0 or abs(self._recording.states[index].stamp_ns - stamp_ns) > 1000:
            return None
        return self._recording.states[index]


def commanded_before(
    spec: RobotSpec, state: State, previous: ActionChunk | None, last: RecordedTick | None, missed_ticks: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """(A,) the last command, as the loop knows it: of the chunk before, else what is measured; and the step to it."""
    if previous is not None and previous.mode is Mode.RUN and len(previous.targets):
        command, step = followed_to(previous.targets, missed_ticks)
        if not missed_ticks and last is not None and last.action is previous:
            step = command - last.before
        return command, step
    if previous is not None and previous.mode is Mode.HOLD and len(previous.targets):
        return previous.targets[0], None
    measured = dict(zip(spec.state_names, state.values, strict=True))
    middle = (spec.action_low + spec.action_high) / 2  # only where `allow_unlimited` accepts an unmeasured action
    return np.array([measured.get(name, middle[i]) for i, name in enumerate(spec.action_names)]), None
