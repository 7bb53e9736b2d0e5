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

from control.clock import NS_PER_MS, NS_PER_S
from control.errors import ConfigError, RecordingError
from control.lerobot_files import DatasetFiles, describe, load_pyarrow
from control.messages import ActionChunk, Mode, RobotSpec
from control.recording_images import StoredFrames
from control.recording_reader import Recording, read_recording

_TOPICS = ("frames", "state", "instruction", "action", "label", "episode")
_MAX_AGE_MS = 500.0  # of the state or capture of a row
_PERIOD_TOLERANCE = 0.02
_ENDLESS_NS = 2**63 - 1


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
            _expect_same_robot(spec or recording.spec, recording)
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
        return f"{exported.dropped} actions had no state or capture within {_MAX_AGE_MS:g} ms before them"
    return "no episode is a success" if only_successes else "they hold no labels, and no actions of mode RUN"


def _expect_same_robot(expected: RobotSpec, recording: Recording) -> None:
    """Limits may differ, names and cameras may not: they are the columns."""
    for what in ("name", "cameras", "state_names", "action_names"):
        ours, theirs = getattr(expected, what), getattr(recording.spec, what)
        if ours != theirs:
            raise ConfigError(
                f"{recording.file}: expected {what} {ours} as in the recordings before, got {theirs};"
                " a dataset holds one robot, export the others to another folder"
            )


def _period(recording: Recording) -> float | None:
    """The usual time between two actions in s; None without two."""
    topic = "label" if recording.labels else "action"
    gaps_ns = np.diff(recording.log_ns[topic])
    return float(np.median(gaps_ns)) / NS_PER_S if len(gaps_ns) and np.median(gaps_ns) > 0 else None


def _episodes(recording: Recording, period_s: float, only_successes: bool, exported: Exported) -> list[Rows]:
    found: list[Rows] = []
    for task, begin_ns, end_ns in _spans(recording, only_successes):
        stamps, actions = _actions(recording, begin_ns, end_ns)
        runs: list[list[tuple[int, np.ndarray, int, int]]] = []
        before_ns = None
        for stamp_ns, action in zip(stamps, actions, strict=True):
            state, capture = recording.newest("state", stamp_ns), recording.newest("frames", stamp_ns)
            if _is_too_old(recording, "state", state, stamp_ns) or _is_too_old(recording, "frames", capture, stamp_ns):
                exported.dropped += 1
                continue
            if before_ns is None or stamp_ns - before_ns > 1.5 * period_s * NS_PER_S:
                exported.pauses += before_ns is not None
                runs.append([])
            before_ns = stamp_ns
            runs[-1].append((stamp_ns, action, state, capture))
        found += [_rows(recording, task, run) for run in runs]
    return found


def _spans(recording: Recording, only_successes: bool) -> list[tuple[str, int, int]]:
    """Task, begin and end: the marked episodes, else one an instruction."""
    if recording.episodes:
        return [
            (episode.task, episode.begin_ns, episode.end_ns or _ENDLESS_NS)
            for episode in recording.episodes
            if episode.success or not only_successes
        ]
    if only_successes:
        return []
    spans: list[tuple[str, int, int]] = []
    last: tuple[int, str] = (0, "")
    for action in recording.actions:
        text = _text(recording, action)
        if text is not None and (action.instruction_id, text) != last:
            if spans:
                spans[-1] = (*spans[-1][:2], action.stamp_ns)
            spans.append((text, action.stamp_ns, _ENDLESS_NS))
            last = action.instruction_id, text
    return spans


def _text(recording: Recording, action: ActionChunk) -> str | None:
    """Of the instruction that an action followed. Its id begins at 1 again with each controller."""
    said = [row for row in recording.instructions if row.id == action.instruction_id]
    before = [row for row in said if row.stamp_ns <= action.stamp_ns]
    return (before or said)[-1 if before else 0].text if said else None


def _actions(recording: Recording, begin_ns: int, end_ns: int) -> tuple[list[int], list[np.ndarray]]:
    """Stamps and first targets (A,) inside [begin, end)."""
    for topic, nouns in (("label", recording.labels), ("action", recording.actions)):
        first, end = np.searchsorted(recording.log_ns[topic], (begin_ns, end_ns))
        chosen = [noun for noun in nouns[first:end] if len(noun.targets) and getattr(noun, "mode", "RUN") == Mode.RUN]
        if chosen:
            return [noun.stamp_ns for noun in chosen], [noun.targets[0] for noun in chosen]
    return [], []


def _is_too_old(recording: Recording, topic: str, index: int, stamp_ns: int) -> bool:
    return index < 0 or stamp_ns - recording.log_ns[topic][index] > _MAX_AGE_MS * NS_PER_MS


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
