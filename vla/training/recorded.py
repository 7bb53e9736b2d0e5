"""Recordings -> batches, and what is trained on them: all of a policy, or only what comes after a backbone that stays.

Reads any recording of this runtime, of a simulator or of an arm: the expert's labels where there are some, else what
was commanded. Whole episodes are held out, so that no frame of a held-out scene is trained on. Nothing here knows what
a scene really looked like: perception learns from the actions alone.

Letters: N frames, M samples, K acting states, E acting ticks, H horizon, S state values, A actions, W samples of a
window.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from control.clock import NS_PER_MS, NS_PER_S
from control.episodes import actions, expect_same_robot, is_too_old, spans
from control.messages import Mode, RobotSpec
from control.recording_images import StoredFrames
from control.recording_reader import Recording, read_recording
from vla.errors import TrainingFault
from vla.policy_spec import WindowChoice
from vla.training.recorded_windows import check_rate, windows, with_window

_TOPICS = ("frames", "state", "instruction", "action", "label", "episode")
HELD_OUT_SHARE = 0.1
NAMED, DIGITS = 8, 12  # recordings that are named one by one, and digits of a hash


@dataclass(frozen=True, slots=True, eq=False)
class RecordedEpisode:
    """One task as it was done."""

    text: str
    frames: list[StoredFrames]
    frame_ns: np.ndarray  # (N,)
    tick_ns: np.ndarray  # (E,)
    states: np.ndarray  # (E, S) float32
    targets: np.ndarray  # (E, H, A) float32
    windows: np.ndarray | None = None  # (E, W, S) float32


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """Everything that was found, of one robot."""

    robot: RobotSpec
    period_s: float
    episodes: list[RecordedEpisode]
    held_out: list[RecordedEpisode]
    files: tuple[tuple[str, str], ...]  # name and hash, in the order they were read

    @property
    def described(self) -> str:
        """Which recordings these are, in words: a few by name and hash, many by one hash of all."""
        named = [f"{name} {digest}" for name, digest in self.files]
        if len(named) <= NAMED:
            return ", ".join(named)
        whole = hashlib.sha256("\n".join(named).encode()).hexdigest()[:DIGITS]
        return f"{len(named)} files {whole}: {', '.join(named[:NAMED])} and so on"

    @property
    def told(self) -> dict[str, str | int]:
        """What a policy that is trained on these says of it: which, and how much, without what is held out."""
        frames = sum(len(episode.frames) for episode in self.episodes)
        return {"recordings": self.described, "episodes": len(self.episodes), "frames": frames}

    @property
    def wordings(self) -> list[str]:
        return sorted({episode.text for episode in [*self.episodes, *self.held_out]})


@dataclass(frozen=True, slots=True, eq=False)
class RecordedBatch:
    """One instruction a frame, and no truth."""

    images: dict[str, np.ndarray]
    image_index: np.ndarray
    instructions: list[str]
    states: np.ndarray
    feature_age_ms: np.ndarray
    targets: np.ndarray
    windows: np.ndarray | None = None  # (M, K, W, S) float32
    truth: None = None
    rehearsal: None = None


def load_recordings(
    paths: Sequence[Path], horizon: int, log: Callable[[str], None], window: WindowChoice | None = None
) -> Recorded:
    """All files, and all *.mcap of folders. With a `window` each tick needs one of so many states at that rate, as a
    robot host sends them with `robot.history_samples`. Raises ConfigError and TrainingFault for what cannot be trained
    on.
    """
    files = sorted(file for path in paths for file in (path.rglob("*.mcap") if path.is_dir() else [path]))
    if not files:
        raise TrainingFault(f"no recording in {', '.join(map(str, paths))}: `launch.py record` writes *.mcap files")
    found: list[RecordedEpisode] = []
    robot: RobotSpec | None = None
    named: list[tuple[str, str]] = []
    for file in files:
        recording = read_recording(file, _TOPICS)
        if recording.lost:
            log(f"{file}: {recording.lost}")
        expect_same_robot(robot or recording.spec, recording)
        robot = robot or recording.spec
        _check_period(recording)
        if window:
            check_rate(recording, window, log)
        found += _episodes(recording, horizon, window)
        with file.open("rb") as opened:
            named.append((file.name, hashlib.file_digest(opened, "sha256").hexdigest()[:DIGITS]))
    if not found or robot is None:
        raise TrainingFault(
            f"{len(files)} recording(s) hold no episode to train on: neither labels nor actions of mode RUN with frames"
            " before them"
        )
    order = np.random.default_rng(0).permutation(len(found))
    count = max(1, round(HELD_OUT_SHARE * len(found))) if len(found) > 1 else 0
    held_out = [found[i] for i in order[:count]]
    kept = [found[i] for i in order[count:]]
    ticks = sum(len(episode.tick_ns) for episode in found)
    log(f"{len(found)} episodes of robot '{robot.name}' ({count} held out), {ticks} ticks, {len(files)} file(s)")
    return Recorded(robot, robot.action_period_s, kept, held_out, tuple(named))


def _episodes(recording: Recording, horizon: int, window: WindowChoice | None) -> list[RecordedEpisode]:
    spec = recording.spec
    found = []
    for text, begin_ns, end_ns in spans(recording, only_successes=False):
        stamps, first = actions(recording, begin_ns, end_ns)
        newest = [recording.newest("state", stamp) for stamp in stamps]
        kept = [i for i, index in enumerate(newest) if not is_too_old(recording, "state", index, stamps[i])]
        if window:
            kept = with_window(recording, newest, kept, window.samples)
        span = np.searchsorted(recording.log_ns["frames"], (begin_ns, end_ns))
        frames = recording.frames[span[0] : span[1]]
        if not kept or not frames:
            continue
        states = np.array([recording.states[newest[i]].values for i in kept], dtype=np.float32)
        chunks = _chunks(recording, [stamps[i] for i in kept], np.array([first[i] for i in kept]), horizon)
        _check(recording, frames, states, chunks, spec)
        found.append(
            RecordedEpisode(
                text,
                frames,
                recording.log_ns["frames"][span[0] : span[1]],
                np.array([stamps[i] for i in kept], dtype=np.int64),
                states,
                chunks,
                windows(recording, [newest[i] for i in kept]) if window else None,
            )
        )
    return found


def _chunks(recording: Recording, stamps: list[int], first: np.ndarray, horizon: int) -> np.ndarray:
    """(E, H, A): the expert's chunks, cut or continued to the horizon; else what was commanded from each tick on."""
    if recording.labels:
        by_stamp = {label.stamp_ns: label.targets for label in recording.labels}
        chunks = [by_stamp[stamp][:horizon] for stamp in stamps]
        return np.array(
            [np.concatenate([c, np.repeat(c[-1:], horizon - len(c), axis=0)]) for c in chunks], dtype=np.float32
        )
    rows = np.minimum(np.arange(len(first))[:, None] + np.arange(horizon), len(first) - 1)
    # After a pause, what comes next belongs to another moment: the last target before it is kept.
    gaps = np.diff(np.array(stamps)) > 1.5 * recording.spec.action_period_s * NS_PER_S
    run = np.concatenate([[0], np.cumsum(gaps)])
    last = np.array([np.flatnonzero(run == number)[-1] for number in range(run[-1] + 1)])
    return first[np.minimum(rows, last[run][:, None])].astype(np.float32)


def _check_period(recording: Recording) -> None:
    """Commanded targets make up a chunk one by one, so they must lie as far apart as the policy's rows."""
    wanted = recording.spec.action_period_s
    other = [row.period_s for row in recording.actions if row.mode == Mode.RUN and abs(row.period_s - wanted) > 1e-6]
    if other and not recording.labels:
        raise TrainingFault(
            f"{recording.file}: expected actions every {wanted:g} s, as robot '{recording.spec.name}' says, got"
            f" {other[0]:g} s: a policy trained on them would move at another speed; record runs with"
            f" control.rate_hz={1 / wanted:g}"
        )


def _check(
    recording: Recording, frames: list[StoredFrames], states: np.ndarray, chunks: np.ndarray, spec: RobotSpec
) -> None:
    for what, array, width in (("states", states, len(spec.state_names)), ("actions", chunks, len(spec.action_names))):
        if array.shape[-1] != width or not np.isfinite(array).all():
            raise TrainingFault(
                f"{recording.file}: {what} expected {width} finite values, got {array.shape[-1]} with NaN or more:"
                " the file is damaged, or of another robot"
            )
    for frame in frames:
        if missing := spec.cameras.keys() - frame.images.keys():
            raise TrainingFault(f"{recording.file}: frame {frame.seq} has no image of camera {', '.join(missing)}")


def batches(
    found: Sequence[RecordedEpisode], seed: int, frames: int, acting: int, max_age_ms: float
) -> Iterator[RecordedBatch]:
    """Batches without end: frames at random, each with `acting` ticks within `max_age_ms` after it."""
    usable = [(episode, index) for episode in found for index in _usable(episode, max_age_ms)]
    if not usable:
        raise TrainingFault(f"no frame is followed by an action within {max_age_ms:g} ms: nothing to train on")
    rng = np.random.default_rng([seed, 0x4EC0])
    while True:
        chosen = [usable[i] for i in rng.integers(len(usable), size=frames)]
        images = [episode.frames[index].decode().images for episode, index in chosen]
        states, ages, targets, windows = [], [], [], []
        for episode, index in chosen:
            first, end = span(episode, index, max_age_ms)
            ticks = rng.integers(first, end, size=acting)
            states.append(episode.states[ticks])
            targets.append(episode.targets[ticks])
            if episode.windows is not None:
                windows.append(episode.windows[ticks])
            ages.append((episode.tick_ns[ticks] - episode.frame_ns[index]) / NS_PER_MS)
        yield RecordedBatch(
            {name: np.stack([image[name] for image in images]) for name in images[0]},
            np.arange(frames),
            [episode.text for episode, _ in chosen],
            np.stack(states),
            np.array(ages, dtype=np.float32),
            np.stack(targets),
            np.stack(windows) if windows else None,
        )


def span(episode: RecordedEpisode, index: int, max_age_ms: float) -> tuple[int, int]:
    """The ticks [first, end) that may act on a frame."""
    stamp = episode.frame_ns[index]
    first, end = np.searchsorted(episode.tick_ns, (stamp, stamp + round(max_age_ms * NS_PER_MS) + 1))
    return int(first), int(end)


def _usable(episode: RecordedEpisode, max_age_ms: float) -> list[int]:
    after = (span(episode, index, max_age_ms) for index in range(len(episode.frames)))
    return [index for index, (first, end) in enumerate(after) if first < end]


def held_out_batches(found: Recorded, max_age_ms: float, count: int = 3) -> list[RecordedBatch]:
    """A few batches of the held-out episodes, always the same."""
    if not found.held_out:
        return []
    return list(itertools.islice(batches(found.held_out, 0, 24, 4, max_age_ms), count))
