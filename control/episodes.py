"""The episodes of a recording: from when to when a task was done, and what was done then.

Marked episodes where a recording has them, else one an instruction. The expert's labels where there are some, else what
was commanded in RUN.
"""

from __future__ import annotations

import numpy as np

from control.clock import NS_PER_MS
from control.errors import ConfigError
from control.messages import ActionChunk, Mode, RobotSpec
from control.recording_reader import Recording

MAX_AGE_MS = 500.0  # of the state or capture that an action goes with
_ENDLESS_NS = 2**63 - 1


def expect_same_robot(expected: RobotSpec, recording: Recording) -> None:
    """Limits may differ; names and cameras, which are the columns, and the time between two rows may not."""
    for what in ("name", "cameras", "state_names", "action_names", "action_period_s"):
        ours, theirs = getattr(expected, what), getattr(recording.spec, what)
        if ours != theirs:
            raise ConfigError(
                f"{recording.file}: expected {what} {ours} as in the recordings before, got {theirs};"
                " a dataset holds one robot, export the others to another folder"
            )


def spans(recording: Recording, only_successes: bool) -> list[tuple[str, int, int]]:
    """Task, begin and end: the marked episodes, else one an instruction."""
    if recording.episodes:
        return [
            (episode.task, episode.begin_ns, episode.end_ns or _ENDLESS_NS)
            for episode in recording.episodes
            if episode.success or not only_successes
        ]
    if only_successes:
        return []
    found: list[tuple[str, int, int]] = []
    last: tuple[int, str] = (0, "")
    for action in recording.actions:
        text = _text(recording, action)
        if text is not None and (action.instruction_id, text) != last:
            if found:
                found[-1] = (*found[-1][:2], action.stamp_ns)
            found.append((text, action.stamp_ns, _ENDLESS_NS))
            last = action.instruction_id, text
    return found


def _text(recording: Recording, action: ActionChunk) -> str | None:
    """Of the instruction that an action followed. Its id begins at 1 again with each controller."""
    said = [row for row in recording.instructions if row.id == action.instruction_id]
    before = [row for row in said if row.stamp_ns <= action.stamp_ns]
    return (before or said)[-1 if before else 0].text if said else None


def actions(recording: Recording, begin_ns: int, end_ns: int) -> tuple[list[int], list[np.ndarray]]:
    """Stamps and first targets (A,) inside [begin, end)."""
    for topic, nouns in (("label", recording.labels), ("action", recording.actions)):
        first, end = np.searchsorted(recording.log_ns[topic], (begin_ns, end_ns))
        chosen = [noun for noun in nouns[first:end] if len(noun.targets) and getattr(noun, "mode", "RUN") == Mode.RUN]
        if chosen:
            return [noun.stamp_ns for noun in chosen], [noun.targets[0] for noun in chosen]
    return [], []


def is_too_old(recording: Recording, topic: str, index: int, stamp_ns: int) -> bool:
    """Whether there is none of `topic` at that index, or it lies too long before the stamp."""
    return index < 0 or stamp_ns - recording.log_ns[topic][index] > MAX_AGE_MS * NS_PER_MS
