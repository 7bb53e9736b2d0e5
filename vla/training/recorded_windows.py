"""The windows of a recording's states: that they are there, of the length and at the rate that a head is to take.

Letters: E acting ticks, W samples of a window, S state values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from control.clock import NS_PER_S
from control.recording_reader import Recording
from vla.errors import TrainingFault
from vla.policy_spec import WindowChoice

SAME = 1e-6  # of the unit of a state: a row of a window that is another state as it was measured
RATE_TOLERANCE = 0.1


def check_rate(recording: Recording, window: WindowChoice, log: Callable[[str], None]) -> None:
    """That the rows of the windows lie as far apart as `window` says, by where each finds the state before it.

    Raises TrainingFault for another rate. Windows that do not reach back to the state before, or stand still, cannot
    tell; that is said.
    """
    rows, seconds = 0, 0.0
    for before, state in zip(recording.states, recording.states[1:], strict=False):
        if state.history is None:
            continue
        found = np.flatnonzero((np.abs(state.history - before.values) < SAME).all(axis=1))
        if len(found) == 1:
            rows += len(state.history) - 1 - int(found[0])
            seconds += (state.stamp_ns - before.stamp_ns) / NS_PER_S
    if seconds == 0.0:
        log(f"{recording.file}: its states do not tell the rate of their windows; taken to be {window.rate_hz:g} Hz")
    elif abs(rows / seconds / window.rate_hz - 1) > RATE_TOLERANCE:
        raise TrainingFault(
            f"{recording.file}: expected windows of states at {window.rate_hz:g} Hz, got about {rows / seconds:.3g} Hz:"
            " give the robot.host_hz of that run as --window-hz"
        )


def with_window(recording: Recording, newest: list[int], ticks: list[int], samples: int) -> list[int]:
    """The ticks whose state has its window; a host has none in its first moments. Raises TrainingFault for another."""
    histories = {index: recording.states[newest[index]].history for index in ticks}
    sizes = {len(history) for history in histories.values() if history is not None}
    if sizes - {samples} or not sizes:
        got = ", ".join(map(str, sorted(sizes))) or "none"
        raise TrainingFault(
            f"{recording.file}: expected states with a window of {samples} samples, got {got}: record a run with"
            f" --set robot.history_samples={samples}"
        )
    return [index for index, history in histories.items() if history is not None]


def windows(recording: Recording, indices: Sequence[int]) -> np.ndarray:
    """(E, W, S) of the states at these indices."""
    found = np.array([recording.states[index].history for index in indices], dtype=np.float32)
    if not np.isfinite(found).all():
        raise TrainingFault(f"{recording.file}: a window of states holds NaN or infinity: the file is damaged")
    return found
