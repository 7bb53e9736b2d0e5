"""What a replay found: differences of features and actions, a row a tick and in summary, for a person and as JSON.

Differences are replayed minus recorded. A recorded action is what was sent, so both have passed the safety gate.
Features are compared only with those of the same policy: those of another one live in another space.

Letters: H horizon, A actions.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from control.clock import NS_PER_S
from control.messages import Features
from control.plain_text import printable
from control.reasons import kind
from control.recording_reader import Recording
from control.replay import ReplayedTick
from control.report import percentiles


def report(
    recording: Recording, replayed: list[ReplayedTick], left_out: Counter[str], policy_id: str
) -> dict[str, Any]:
    """Everything, for JSON. `left_out` counts recorded ticks that could not be replayed, by reason."""
    rows = [_row(recording, tick, policy_id) for tick in replayed]
    recorded_by = sorted({tick.recorded.features.policy_id for tick in replayed if tick.recorded.features is not None})
    faults = Counter(kind(tick.fault)[:160] for tick in replayed if tick.fault)
    ages = [tick.feature_age_ms for tick in replayed if tick.feature_age_ms is not None]
    encodes = {id(tick.features): tick.features.encode_ms for tick in replayed if tick.features is not None}
    return {
        "recording": recording.file.name,
        "robot": recording.spec.name,
        "lost": recording.lost or None,
        "policy": policy_id,
        "recorded_policy": recorded_by,
        "ticks": {
            "replayed": len(replayed),
            "compared": sum(tick.targets is not None for tick in replayed),
            "left_out": dict(left_out.most_common()),
            "faults": dict(faults.most_common()),
        },
        "features": _features_summary(rows, recorded_by, policy_id),
        "feature_age_ms": {
            "recorded": percentiles([tick.recorded.feature_age_ms for tick in replayed]),
            "replayed": percentiles(ages),
        },
        "encode_ms": percentiles(list(encodes.values())),
        "actions": _actions_summary(recording, replayed),
        "limits_hit": dict(Counter(name for tick in replayed for name in tick.limits).most_common()),
        "per_tick": rows,
    }


def compare_features(recorded: Features, replayed: Features) -> dict[str, float] | None:
    """Cosine, largest difference of any value, and norm of the difference over the recorded norm; None where shapes or
    values forbid it."""
    ours, theirs = (features.tokens.astype(np.float64).ravel() for features in (replayed, recorded))
    if replayed.tokens.shape != recorded.tokens.shape or not np.isfinite(theirs).all():
        return None
    norms = np.linalg.norm(ours), np.linalg.norm(theirs)
    if min(norms) == 0.0:
        return None
    difference = ours - theirs
    return {
        "cosine": float(ours @ theirs / (norms[0] * norms[1])),
        "largest": float(np.abs(difference).max()),
        "relative": float(np.linalg.norm(difference) / norms[1]),
    }


def differences(tick: ReplayedTick) -> np.ndarray | None:
    """(H, A) of the rows that both chunks have, None where nothing was acted."""
    if tick.targets is None:
        return None
    recorded = tick.recorded.action.targets
    rows = min(len(tick.targets), len(recorded))
    return tick.targets[:rows] - recorded[:rows]


def _row(recording: Recording, tick: ReplayedTick, policy_id: str) -> dict[str, Any]:
    action, recorded = tick.recorded.action, tick.recorded.features
    found, names = differences(tick), recording.spec.action_names
    features = None
    if recorded is not None and tick.features is not None and recorded.policy_id == policy_id:
        features = compare_features(recorded, tick.features)
    return {
        "seq": action.seq,
        "stamp_ns": action.stamp_ns,
        "instruction_id": action.instruction_id,
        "frame_seq": tick.features.frame_seq if tick.features is not None else None,
        "feature_age_ms": tick.feature_age_ms,
        "recorded_feature_age_ms": tick.recorded.feature_age_ms,
        "features": features,
        "actions": None
        if found is None
        else {
            name: {"rms": _rms(found[:, i]), "max": float(np.abs(found[:, i]).max())} for i, name in enumerate(names)
        },
        "limits": list(tick.limits),
        "fault": tick.fault,
    }


def _features_summary(rows: list[dict[str, Any]], recorded_by: list[str], policy_id: str) -> dict[str, Any]:
    found = [row["features"] for row in rows if row["features"] is not None]
    if not found:
        why = "the recording holds none"
        if recorded_by and policy_id not in recorded_by:
            why = f"recorded by policy {', '.join(recorded_by)}, another one than {policy_id}"
        elif recorded_by:
            why = "of other shapes, or not finite"
        return {"compared": 0, "why": why}
    cosines = [each["cosine"] for each in found]
    return {
        "compared": len(found),
        "cosine": {"min": min(cosines), "p50": float(np.median(cosines))},
        "largest": percentiles([each["largest"] for each in found]),
        "relative": percentiles([each["relative"] for each in found]),
    }


def _actions_summary(recording: Recording, replayed: list[ReplayedTick]) -> dict[str, dict[str, float]]:
    """Of each joint: RMS over all ticks and rows of the chunk, of the row due next, the largest, and when that was."""
    found = [(tick, difference) for tick in replayed if (difference := differences(tick)) is not None]
    if not found:
        return {}
    every = np.concatenate([difference for _, difference in found])
    first = np.stack([difference[0] for _, difference in found])
    largest = np.stack([np.abs(difference).max(axis=0) for _, difference in found])  # (ticks, A)
    summary = {}
    for i, name in enumerate(recording.spec.action_names):
        worst = int(largest[:, i].argmax())
        action = found[worst][0].recorded.action
        summary[name] = {
            "rms": _rms(every[:, i]),
            "first_row_rms": _rms(first[:, i]),
            "max": float(largest[worst, i]),
            "max_seq": action.seq,
            "max_at_s": (action.stamp_ns - begin_ns(recording)) / NS_PER_S,
        }
    return summary


def begin_ns(recording: Recording) -> int:
    """The stamp of the first thing recorded."""
    return min(int(stamps[0]) for stamps in recording.log_ns.values() if len(stamps))


def table(found: dict[str, Any]) -> Table:
    """The actions, a row a joint."""
    grid = Table(title="replayed against recorded actions", title_justify="left", show_edge=False, pad_edge=False)
    for heading in ("", "rms", "rms of the next row", "max", "at"):
        grid.add_column(heading, justify="left" if not heading else "right")
    for name, row in found["actions"].items():
        values = (f"{row[key]:.5f}" for key in ("rms", "first_row_rms", "max"))
        grid.add_row(Text(printable(name)), *values, f"{row['max_at_s']:.1f} s (tick {row['max_seq']})")
    return grid


def lines(found: dict[str, Any]) -> list[str]:
    """What stands around the table, a line each."""
    ticks, features, ages = found["ticks"], found["features"], found["feature_age_ms"]
    said = [f"{found['recording']}: {ticks['compared']} of {ticks['replayed']} replayed ticks gave an action"]
    if found["lost"]:
        said.append(found["lost"])
    if features["compared"]:
        cosine, largest = features["cosine"], features["largest"]
        said.append(
            f"features of {features['compared']} ticks: cosine at least {cosine['min']:.6f}"
            f" (median {cosine['p50']:.6f}), largest difference {largest['max']:.4g} (median {largest['p50']:.4g})"
        )
    else:
        said.append(f"features not compared: {features['why']}")
    if ages["replayed"] and ages["recorded"]:
        both = (f"{key} {ages[key]['p50']:.0f} ms (max {ages[key]['max']:.0f})" for key in ("recorded", "replayed"))
        said.append(f"feature age, median: {', '.join(both)}; encode {found['encode_ms']['p50']:.1f} ms")
    said += [f"{count} ticks without an action this time: {why}" for why, count in ticks["faults"].items()]
    said += [f"{count} recorded ticks not replayed: {why}" for why, count in ticks["left_out"].items()]
    return [printable(line) for line in said]


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
