"""A profile as a person reads it: a table, the counts around it, and two profiles side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from control.plain_text import printable
from control.profile_figures import COLUMNS

_BARS = " ▁▂▃▄▅▆▇█"
_BINS_A_BAR = 2
_WIDE = 110  # columns of a terminal; on a narrower one the histograms, p95 and p99.9 stand in the report only
_NARROW_LEAVES_OUT = ("p95", "p99.9", "histogram")
_COMPARED = ("p50", "p99", "max")


def table(profile: dict[str, Any], width: int) -> Table:
    """All figures, for `width` characters; of the feature age and the encode, the share of the mean too."""
    headings = ["mean", "share", *COLUMNS[1:], "histogram"]
    headings = [name for name in headings if width >= _WIDE or name not in _NARROW_LEAVES_OUT]
    grid = _grid(f"profile of {profile['source']}, ms", ["", *headings])
    for group, rows in profile["figures"].items():
        grid.add_section()
        whole = rows.get(group, {}).get("mean")
        if rows and whole is None:
            grid.add_row(group)
        for name, row in rows.items():
            cells = {column: shown_ms(row[column]) for column in COLUMNS}
            cells["share"] = f"{row['mean'] / whole:.0%}" if whole and name != group else ""
            cells["histogram"] = _bars(row["histogram"])
            label = name if name == group else f"  {name}"
            grid.add_row(escape(printable(label)), *(cells[heading] for heading in headings))
    return grid


def comparison(ours: dict[str, Any], theirs: dict[str, Any], file: str, width: int) -> Table:
    """Two profiles: for each column ours, theirs, and ours over theirs."""
    compared = _COMPARED if width >= _WIDE else _COMPARED[:2]
    grid = _grid(f"this profile against {file}, ms", ["", *(h for c in compared for h in (c, "against", "ratio"))])
    for group in dict.fromkeys([*ours["figures"], *theirs["figures"]]):
        ours_here, theirs_here = ours["figures"].get(group, {}), theirs["figures"].get(group, {})
        grid.add_section()
        if group not in ours_here and group not in theirs_here:
            grid.add_row(escape(group))
        for name in dict.fromkeys([*ours_here, *theirs_here]):
            cells: list[str] = []
            for column in compared:
                mine, other = ours_here.get(name, {}).get(column), theirs_here.get(name, {}).get(column)
                ratio = f"{mine / other:.2f}" if mine is not None and other else ""
                cells += [shown_ms(mine), shown_ms(other), ratio]
            label = name if name == group else f"  {name}"
            grid.add_row(escape(printable(label)), *cells)
    return grid


def compared_counts(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """The rates and counts of both in a line each, and what makes them hard to compare."""
    lines = []
    for key, label in (
        ("action_hz", "actions/s"),
        ("encode_hz", "encodes/s"),
        ("missed_ticks", "missed ticks"),
        ("cycles", "cycles"),
    ):
        lines.append(f"{label}: {_shown(ours[key])} against {_shown(theirs.get(key))}")
    if theirs.get("period_ms") and abs(ours["period_ms"] / theirs["period_ms"] - 1) > 0.01:
        lines.append(f"the periods differ: {ours['period_ms']:g} against {theirs['period_ms']:g} ms")
    if ours.get("machine") != theirs.get("machine"):
        lines.append(f"another machine: {ours.get('machine')} against {theirs.get('machine')}")
    return lines


def summary(profile: dict[str, Any]) -> list[str]:
    """The counts around the table, a line each."""
    modes = ", ".join(f"{mode} {count:,}" for mode, count in profile["modes"].items() if count)
    lines = [
        f"{profile['cycles']:,} cycles in {profile['seconds']:.1f} s (start-up, {profile['start_up_cycles']:,} cycles,"
        f" left out); period {profile['period_ms']:g} ms; missed ticks {profile['missed_ticks']:,};"
        f" records lost on the way {profile['lost_records']:,}",
        f"actions in RUN {_shown(profile['action_hz'])}/s, encodes {_shown(profile['encode_hz'])}/s;"
        f" captures never encoded {profile['frames_skipped']:,}",
        f"modes in cycles: {modes}",
    ]
    lines += [f"{count:,} cycles in {reason}" for reason, count in profile["reasons"].items()]
    lines += [f"limit hit in {count:,} cycles: {limit}" for limit, count in profile["limits"].items()]
    if profile["switch_ms"]:
        lines.append("say to first action, ms: " + ", ".join(f"{value:.0f}" for value in profile["switch_ms"][:10]))
    lines += [f"note: {note}" for note in profile["notes"]]
    if cost := profile.get("cost"):
        lines.append(cost_line(cost))
    return [printable(line) for line in lines]


def cost_line(cost: dict[str, Any]) -> str:
    return (
        f"cost of the stamps and the cycle record: {cost['us']['p50']:.0f} us a cycle (p99 {cost['us']['p99']:.0f}),"
        f" {cost['share']:.3%} of {cost['period_ms']:g} ms; a profile itself is a process that nobody waits for"
    )


def _grid(title: str, headings: list[str]) -> Table:
    grid = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in headings:
        grid.add_column(heading, justify="left" if heading in ("", "histogram") else "right", no_wrap=True)
    return grid


def _bars(histogram: dict[str, Any]) -> str:
    """A character a bin, from the least to the largest value."""
    counts = np.add.reduceat(histogram["counts"], np.arange(0, len(histogram["counts"]), _BINS_A_BAR))
    heights = np.ceil(counts / max(counts.max(), 1) * (len(_BARS) - 1)).astype(int)
    return "".join(_BARS[height] for height in heights)


def shown_ms(value: float | None) -> str:
    """Three decimals where they say something."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
