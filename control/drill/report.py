"""The report of a drill: one row a kind of fault on the terminal, one row a fault in the file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from control.drill.campaign import Outcome
from control.report import percentiles


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
    """`faults` with one row each, how many promises are broken, and the times that matter over all."""
    return {
        "faults": [outcome.row() for outcome in outcomes],
        "promises_broken": sum(len(outcome.broken) for outcome in outcomes),
        "largest_step": max((outcome.largest_step for outcome in outcomes), default=0.0),
        "not_recovered": sum(not outcome.recovered for outcome in outcomes),
        "recover_ms": {
            f"{target}, {kind}": percentiles([each.recover_ms for each in group if each.recover_ms is not None])
            for (kind, target), group in _grouped(outcomes).items()
        },
    }


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
