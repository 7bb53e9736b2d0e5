"""The figures of an evaluation as a person reads them: tables for the terminal. Knows the report's layout alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

_EXPERT_ROW = "expert"


def tables(report: dict[str, Any]) -> Iterator[Table]:
    """Success by task and age with the expert's own rows; the controls; another evaluation beside this one."""
    yield _success(report)
    if "controls" in report:
        yield _controls(report["controls"])
    if "against" in report:
        yield _against(report["against"])


def _success(report: dict[str, Any]) -> Table:
    rows = [
        (task, age, row)
        for task, by_age in report["success"].items()
        for age, row in [*by_age.items(), *([(_EXPERT_ROW, report["expert"][task])] if "expert" in report else [])]
    ]
    path_key = "path_rad" if any("path_rad" in row for _, _, row in rows) else "path_m"
    grid = Table(title="success", title_justify="left", show_edge=False, pad_edge=False)
    for heading in ("task", "age ms", "done", "of", "rate", "95 %", "time s", path_key.replace("_", " "), "jerk"):
        grid.add_column(heading, justify="left" if heading == "task" else "right", no_wrap=True)
    grid.add_column("how failures ended")
    for task, age, row in rows:
        low, high = row["ci95"]
        grid.add_row(
            task,
            age,
            str(row["successes"]),
            str(row["episodes"]),
            _percent(row["rate"]),
            f"{low:.0%}-{high:.0%}",
            _number(row["time_s"], 2),
            _number(row[path_key], 2),
            _number(row["jerk"], 1),
            ", ".join(f"{count} {how}" for how, count in row["ended"].items()),
            end_section=age == list(report["success"][task])[-1] and "expert" not in report or age == _EXPERT_ROW,
        )
    return grid


def _controls(controls: dict[str, Any]) -> Table:
    title = f"controls at a feature age of {controls['feature_age_ms']:g} ms (chance in brackets, at most)"
    grid = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    grid.add_column("task", no_wrap=True)
    names = {"empty": "no instruction", "frozen_image": "frozen image", "frozen_first_image": "frozen first image"}
    names = {kind: label for kind, label in names.items() if kind in controls}
    swapped = ["follows the new one", "does the old one"] if "swapped" in controls else []
    for heading in (*swapped, *names.values()):
        grid.add_column(heading, justify="right")
    for task, row in [*controls["by_task"].items(), ("all", controls)]:
        chance = row.get("chance", {})
        cells = [_percent(row["swapped"]["follows_new"]), _percent(row["swapped"]["does_old"])] if swapped else []
        for kind in names:
            cells.append(_percent(row[kind]) + (f" ({chance[kind]:.1%})" if kind in chance else ""))
        grid.add_row(task, *cells)
    return grid


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1%}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _against(against: dict[str, Any]) -> Table:
    precision = f" in {against['precision']}" if against["precision"] else ""
    also = "".join(f"; {difference}" for difference in against["differs"])
    title = f"against policy {against['policy']}{precision} ({against['file']}{also})"
    grid = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for heading in ("task", "age ms", "here", "there", "points", "95 %"):
        grid.add_column(heading, justify="left" if heading == "task" else "right", no_wrap=True)
    for task, by_age in against["points"].items():
        for age, row in by_age.items():
            low, high = row["ci95"]
            done = [f"{successes} of {episodes}" for successes, episodes in zip(row["done"], row["of"], strict=True)]
            spread = f"{low:+.1f} to {high:+.1f}"
            grid.add_row(task, age, *done, f"{row['points']:+.1f}", spread, end_section=age == list(by_age)[-1])
    return grid
