"""`robot: replay`: a recording stands in as the robot, so that what was seen on hardware is reproduced at a desk.

Serves the recorded images and states with the recorded spacing from the moment of `connect`, and does nothing with
actions but bound them: the arm of a recording goes its own way, whatever it is told. Refuses to know why it was made.

The host stamps what it reads, here as everywhere. A gap in the recorded states, where the recorded host had stalled,
stalls this one as long; a camera that was late while the states went on is not reproduced, its last image is served.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from control.clock import NS_PER_MS, NS_PER_S, Clock
from control.errors import ConfigError, RobotFailure
from control.messages import RobotSpec
from control.recording_reader import Recording, read_recording
from control.wire import MAX_NAME_CHARS

log = logging.getLogger("robot")

AtEnd = Literal["hold", "fail"]
_STALL_NS = 100 * NS_PER_MS  # so much time without a state is a stall where states come faster ...
_STALL_PERIODS = 5  # ... and where they come slower, so many of their periods


class ReplayRobot:
    """The robot of a recording. Images are decoded when they are asked for."""

    def __init__(self, clock: Clock, recording: str, at_end: str = "hold") -> None:
        """`recording` is a file of `launch.py record` or `run --record`. After its end the last images and state are
        served on (`at_end` `hold`), or the run is ended (`fail`).

        Raises ConfigError for a file that is no recording, or one without images or states.
        """
        if at_end not in get_args(AtEnd):
            raise ValueError(f"at_end takes {' or '.join(get_args(AtEnd))}, got '{at_end}'")
        self._clock, self._at_end = clock, at_end
        self._recording = read_recording(Path(recording), ("frames", "state", "instruction"))
        check_has(self._recording, "frames", "state")
        recorded = self._recording.spec
        self._spec = dataclasses.replace(recorded, name=f"replay of {recorded.name}"[:MAX_NAME_CHARS])
        frames_ns, states_ns = (self._recording.log_ns[topic] for topic in ("frames", "state"))
        self._first_ns = int(max(frames_ns[0], states_ns[0]))  # from here on there is an image and a state
        self._last_ns = int(max(frames_ns[-1], states_ns[-1]))
        gaps_ns = np.diff(states_ns)
        usual_ns = float(np.median(gaps_ns)) if gaps_ns.size else 0.0
        self._stalls_ns = states_ns[:-1][gaps_ns > max(_STALL_NS, _STALL_PERIODS * usual_ns)]
        self._connected_ns: int | None = None
        self._decoded: tuple[int, dict[str, np.ndarray]] | None = None
        self._has_ended = False

    @property
    def spec(self) -> RobotSpec:
        """The recorded robot's, under a name that says what it is."""
        return self._spec

    def connect(self) -> None:
        """The recording begins now. Says what was asked for in it, and when."""
        recording = self._recording
        self._connected_ns = self._clock.now_ns()
        length_s = (self._last_ns - self._first_ns) / NS_PER_S
        log.info("%s: %.1f s of robot '%s'", recording.file, length_s, recording.spec.name)
        if recording.lost:
            log.warning(recording.lost)
        for stamp_ns, instruction in zip(recording.log_ns["instruction"], recording.instructions, strict=True):
            at_s = max(0.0, (int(stamp_ns) - self._first_ns) / NS_PER_S)
            log.info("recorded at %.1f s: say '%s'", at_s, instruction.text)

    def read_state(self) -> np.ndarray:
        """The newest recorded state (S,); where the recorded host had stalled, only after as long."""
        now_ns = self._now_ns()
        index = self._recording.newest("state", now_ns)
        last_ns = int(self._recording.log_ns["state"][index])
        if last_ns in self._stalls_ns:
            next_ns = int(self._recording.log_ns["state"][index + 1])
            log.warning("stalls for %.0f ms, as the recorded robot host did", (next_ns - now_ns) / NS_PER_MS)
            self._clock.sleep_until(self._clock.now_ns() + next_ns - now_ns)
            index += 1
        return self._recording.states[index].values.copy()

    def read_frames(self) -> dict[str, np.ndarray]:
        """The newest recorded images. Raises ConfigError for one that cannot be decoded."""
        index = self._recording.newest("frames", self._now_ns())
        if self._decoded is None or self._decoded[0] != index:
            self._decoded = (index, self._recording.frames[index].decode().images)
        return dict(self._decoded[1])

    def apply(self, targets: np.ndarray) -> np.ndarray:
        """(A,) inside the limits of the recorded robot; nothing else is done with them."""
        spec = self._spec
        if targets.shape != spec.action_low.shape or not np.isfinite(targets).all():
            names = ", ".join(spec.action_names)
            raise ValueError(f"apply wants {len(spec.action_names)} finite targets ({names}), got {targets}")
        return np.clip(targets, spec.action_low, spec.action_high)

    def hold(self) -> None:
        """Nothing moves here."""

    def close(self) -> None:
        self._decoded = None

    def _now_ns(self) -> int:
        """On the recording's time line, at its end at the latest."""
        if self._connected_ns is None:
            raise RobotFailure(f"robot '{self._spec.name}' was read before it was connected")
        now_ns = self._first_ns + self._clock.now_ns() - self._connected_ns
        if now_ns <= self._last_ns:
            return now_ns
        if self._at_end == "fail":
            raise RobotFailure(f"the recording {self._recording.file} has come to its end (robot.options.at_end: fail)")
        if not self._has_ended:
            log.info("the recording has come to its end: its last images and state are served on")
            self._has_ended = True
        return self._last_ns


def check_has(recording: Recording, *topics: str) -> None:
    """Raises ConfigError naming the topics that nothing was recorded of."""
    missing = [topic for topic in topics if not len(recording.log_ns[topic])]
    if missing:
        has = ", ".join(f"{len(stamps)} {topic}" for topic, stamps in recording.log_ns.items() if len(stamps))
        cut = f"; {recording.lost}" if recording.lost else ""
        raise ConfigError(
            f"recording {recording.file} holds no {' and no '.join(missing)}, which a replay needs;"
            f" it has {has or 'nothing'}{cut}"
        )
