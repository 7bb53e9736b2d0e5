"""Recordings as a LeRobot dataset, version 3.0, so that other trainers can use them.

Version 3.0 because it is what LeRobot itself has read since 0.4, which refuses 2.1 until it is converted. Images lie in
the parquet files as the recording holds them (dtype `image`), not in videos: nothing is compressed a second time and
no ffmpeg is needed. Layout, column names and statistics follow LeRobot 0.4.4. Its own LeRobotDataset has read a dataset
of this module, tried by hand without its video part: its many dependencies are not ours.

A row is one action: the expert's label where an episode has labels, else what the controller commanded in RUN; with the
newest state and capture of that moment. Rows are as regular as LeRobot wants them, `timestamp` = frame_index / fps: a
pause (HOLD, a missed tick) ends an episode, and the next row begins another of the same task.

Letters: N rows, S state values, A actions.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from control.clock import NS_PER_S
from control.episodes import MAX_AGE_MS, actions, expect_same_robot, is_too_old, spans
from control.errors import ConfigError, RecordingError
from control.lerobot_files import DatasetFiles, describe, load_pyarrow
from control.recording_images import StoredFrames
from control.recording_reader import Recording, read_recording

_TOPICS = ("frames", "state", "instruction", "action", "label", "episode")
_PERIOD_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """One episode of the dataset: N actions, a period apart."""

    task: str
    states: np.ndarray  # (N, S) float32
    actions: np.ndarray  # (N, A) float32
    captures: list[StoredFrames]  # N


@dataclass(slots=True)
class Exported:
    """What became of the recordings. `dropped` rows had no state or capture young enough."""

    episodes: int = 0
    rows: int = 0
    dropped: int = 0
    pauses: int = 0  # where an episode was ended by a pause
    lost: list[str] = field(default_factory=list)  # in words, of files that were cut


def export(
    recordings: Sequence[Path],
    folder: Path,
    *,
    only_successes: bool = False,
    show: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Write `folder`, which must not exist, from recordings of one robot; `folder` appears only when it is whole.

    `only_successes` leaves out episodes that were not judged a success. Raises ConfigError for recordings of different
    robots, action spaces or rates, a camera that is missing, NaN, and when no episode is left; RecordingError when the
    disk is full.
    """
    if not recordings:
        raise ConfigError("nothing to export: name at least one recording")
    if folder.exists():
        raise ConfigError(f"dataset {folder} exists already; name another folder, or remove it first")
    load_pyarrow()
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        raise ConfigError(f"{partial} is left of an export that did not end; remove it first")
    exported, spec, period_s = Exported(), None, 0.0
    try:
        files: DatasetFiles | None = None
        for number, file in enumerate(recordings, 1):
            show(f"{file} ({number} of {len(recordings)}): {exported.episodes} episodes, {exported.rows} rows so far")
            recording = read_recording(file, _TOPICS)
            if recording.lost:
                exported.lost.append(recording.lost)
            expect_same_robot(spec or recording.spec, recording)
            spec = spec or recording.spec
            own_period_s = _period(recording)
            if own_period_s is None:
                continue
            period_s = period_s or own_period_s
            if abs(own_period_s - period_s) > _PERIOD_TOLERANCE * period_s:
                raise ConfigError(
                    f"{file}: expected actions every {period_s:.4g} s as before, got {own_period_s:.4g} s"
                )
            for rows in _episodes(recording, own_period_s, only_successes, exported):
                files = files or DatasetFiles(partial, spec, period_s)
                files.add(rows.task, rows.states, rows.actions, rows.captures)
                exported.episodes += 1
                exported.rows += len(rows.states)
        if files is None:
            raise ConfigError(f"no episode to export in {describe(recordings)}: {_why_none(exported, only_successes)}")
        files.close()
        partial.rename(folder)
    except OSError as error:
        if isinstance(error, RecordingError):
            raise
        why = error.strerror or error
        raise RecordingError(f"dataset {folder} cannot be written: {why}; is the disk full?") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return exported


def _why_none(exported: Exported, only_successes: bool) -> str:
    if exported.dropped:
        return f"{exported.dropped} actions had no state or capture within {MAX_AGE_MS:g} ms before them"
    return "no episode is a success" if only_successes else "they hold no labels, and no actions of mode RUN"


def _period(recording: Recording) -> float | None:
    """The usual time between two actions in s; None without two."""
    topic = "label" if recording.labels else "action"
    gaps_ns = np.diff(recording.log_ns[topic])
    return float(np.median(gaps_ns)) / NS_PER_S if len(gaps_ns) and np.median(gaps_ns) > 0 else None


def _episodes(recording: Recording, period_s: float, only_successes: bool, exported: Exported) -> list[Rows]:
    found: list[Rows] = []
    for task, begin_ns, end_ns in spans(recording, only_successes):
        stamps, done = actions(recording, begin_ns, end_ns)
        runs: list[list[tuple[int, np.ndarray, int, int]]] = []
        before_ns = None
        for stamp_ns, action in zip(stamps, done, strict=True):
            state, capture = recording.newest("state", stamp_ns), recording.newest("frames", stamp_ns)
            if is_too_old(recording, "state", state, stamp_ns) or is_too_old(recording, "frames", capture, stamp_ns):
                exported.dropped += 1
                continue
            if before_ns is None or stamp_ns - before_ns > 1.5 * period_s * NS_PER_S:
                exported.pauses += before_ns is not None
                runs.append([])
            before_ns = stamp_ns
            runs[-1].append((stamp_ns, action, state, capture))
        found += [_rows(recording, task, run) for run in runs]
    return found


def _rows(recording: Recording, task: str, run: list[tuple[int, np.ndarray, int, int]]) -> Rows:
    spec = recording.spec
    for stamp_ns, action, state, capture in run:
        for what, names, values in (
            ("state", spec.state_names, recording.states[state].values),
            ("action", spec.action_names, action),
        ):
            if len(values) != len(names):
                got = f"expected {len(names)} values, got {len(values)}"
                raise ConfigError(f"{recording.file}: {what} at {stamp_ns} ns: {got}")
            with np.errstate(over="ignore"):  # what no float32 holds is no value of a robot either
                finite = np.isfinite(values.astype(np.float32))
            if not finite.all():
                bad = ", ".join(name for name, fine in zip(names, finite, strict=True) if not fine)
                raise ConfigError(f"{recording.file}: {what} at {stamp_ns} ns is NaN or infinite in {bad}")
        missing = spec.cameras.keys() - recording.frames[capture].images.keys()
        if missing:
            number = recording.frames[capture].seq
            raise ConfigError(f"{recording.file}: frame {number} has no image of camera {', '.join(sorted(missing))}")
    return Rows(
        task,
        np.array([recording.states[state].values for _, _, state, _ in run], dtype=np.float32),
        np.array([action for _, action, _, _ in run], dtype=np.float32),
        [recording.frames[capture] for _, _, _, capture in run],
    )
