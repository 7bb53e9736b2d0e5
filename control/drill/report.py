"""The report of a drill: one row a kind of fault on the terminal, one row a fault in the file."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from control.drill.campaign import Outcome
from control.report import percentiles

_LATE_MS = 1500.0  # until features are fresh again, after a killed encoder has loaded: notice, pause, connect, encode


def table(outcomes: Sequence[Outcome]) -> Table:
    """p50 and max of each time over the faults of a kind and target."""
    shown = Table(
        title="faults", caption="ms from the injection; recovery from the end of the fault; step of the limit"
    )
    for heading in (
        "fault",
        "of",
        "faults",
        "noticed by",
        "after",
        "held after",
        "largest step",
        "recovery",
        "promises",
    ):
        shown.add_column(heading, justify="left" if heading in ("fault", "of", "noticed by") else "right")
    for (kind, target), group in _grouped(outcomes).items():
        by = sorted({outcome.detected_by for outcome in group if outcome.detected_by})
        broken = sum(not outcome.promise_kept for outcome in group)
        shown.add_row(
            kind,
            target,
            str(len(group)),
            ", ".join(by) or "-",
            _spread([outcome.detect_ms for outcome in group]),
            _spread([outcome.held_ms for outcome in group]),
            f"{max(outcome.largest_step for outcome in group):.3f}",
            _spread([outcome.recover_ms for outcome in group]),
            f"{broken} broken" if broken else "kept",
            style="red" if broken else None,
        )
    return shown


def result(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """`faults` with one row each, how many promises are broken, and the figures that matter over all."""
    groups = _grouped(outcomes)
    late = encoder_lateness(outcomes)
    broken = [sentence for outcome in outcomes for sentence in outcome.broken]
    if late and late["p95"] >= _LATE_MS:
        broken.append(f"killed encoder: p95 {late['p95']:.0f} ms beyond its own load time, limit {_LATE_MS:g}")
    return {
        "faults": [outcome.row() for outcome in outcomes],
        "promises_broken": len(broken),
        "broken": broken,
        "largest_step": max((outcome.largest_step for outcome in outcomes), default=0.0),
        "oldest_action_ms": max((outcome.oldest_action_ms for outcome in outcomes), default=0.0),
        "oldest_features_ms": max((outcome.oldest_features_ms for outcome in outcomes), default=0.0),
        "longest_silence_ms": max((outcome.silence_ms for outcome in outcomes), default=0.0),
        "longest_recovery_ms": max((outcome.recover_ms or 0.0 for outcome in outcomes), default=0.0),
        "not_recovered": sum(not outcome.recovered for outcome in outcomes),
        "resumed": sum(outcome.was_stopped for outcome in outcomes),
        "new_runs": sum(outcome.has_new_run for outcome in outcomes),
        "encoder_killed_ms": {
            "recover": percentiles([each.recover_ms for each in _killed_encoders(outcomes)]),
            "load": percentiles([each.load_ms for each in _killed_encoders(outcomes)]),
            "recover_after_load": late,
        },
        "recover_ms": {
            f"{target}, {kind}": percentiles([each.recover_ms for each in group if each.recover_ms is not None])
            for (kind, target), group in groups.items()
        },
    }


def encoder_lateness(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """From SIGKILL of an encoder to fresh features, less the time that the next one took to load: percentiles, ms."""
    return percentiles([each.recover_ms - each.load_ms for each in _killed_encoders(outcomes)])


def _killed_encoders(outcomes: Sequence[Outcome]) -> list[Any]:
    """With both times known."""
    killed = [each for each in outcomes if (each.target, each.kind) == ("encoder", "killed")]
    return [each for each in killed if each.recover_ms is not None and each.load_ms is not None]


def summary(found: dict[str, Any]) -> list[str]:
    """The result in a few lines."""
    lines = [
        f"{len(found['faults'])} faults in {found['minutes']:.1f} min, {found['promises_broken']} promises broken",
        f"largest step {found['largest_step']:.4f} of the limit; a motion at most {found['oldest_action_ms']:.0f} ms"
        f" after the last action; RUN on features of at most {found['oldest_features_ms']:.0f} ms; controller silent"
        f" for at most {found['longest_silence_ms']:.0f} ms",
        f"not recovered {found['not_recovered']}; resumed by hand after a latched STOP {found['resumed']};"
        f" new runs after one that ended {found['new_runs']}; longest recovery {found['longest_recovery_ms']:.0f} ms",
    ]
    if late := found["encoder_killed_ms"]["recover_after_load"]:
        whole, load = found["encoder_killed_ms"]["recover"], found["encoder_killed_ms"]["load"]
        lines.append(
            f"encoder SIGKILL to fresh features: p95 {whole['p95']:.0f} ms, of which loading {load['p95']:.0f};"
            f" beyond its own loading p95 {late['p95']:.0f} ms"
        )
    return lines


def write(file: Path | None, found: dict[str, Any]) -> None:
    """A fault a line, since there are many."""
    if file is None:
        return
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in found["faults"])
    rest = json.dumps({name: value for name, value in found.items() if name != "faults"}, indent=1)
    file.write_text(f'{{"faults":[\n{rows}\n],\n{rest[2:]}\n', encoding="utf-8")


def _grouped(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], list[Outcome]]:
    groups: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.kind, outcome.target].append(outcome)
    return dict(sorted(groups.items(), key=lambda item: (item[0][1], item[0][0])))


def _spread(values: Sequence[float | None]) -> str:
    known = sorted(value for value in values if value is not None)
    if not known:
        return "-"
    return f"{known[len(known) // 2]:.0f}, {known[-1]:.0f}" if len(known) > 1 else f"{known[0]:.0f}"
