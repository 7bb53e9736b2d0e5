"""A profile as one PNG page: feature age against the ladder, where it comes from, two rates on one line, histograms.

Knows the samples and matplotlib, which is an extra and imported only here.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from control.clock import NS_PER_MS, NS_PER_S
from control.errors import ConfigError
from control.messages import Cycle, Mode
from control.profile_figures import check_file, used_encodes
from control.profile_parts import age_parts, foreign_epochs, in_order
from control.profile_source import Samples
from control.profile_tables import shown_ms

_RUNGS = {"slow_after": "#d9a400", "hold_after": "#e06c00", "stop_after": "#b00020"}
_MODES = {Mode.INIT: "#b0b0b0", Mode.HOLD: "#f5b971", Mode.STOP: "#e88a8a"}
_COLOURS = {
    "reuse": "#8c8c8c",
    "camera": "#7b5ea7",
    "queue": "#c58fd6",
    "preprocess": "#9ecae1",
    "vision": "#4292c6",
    "language": "#08519c",
    "aggregate": "#6baed6",
    "other": "#c6dbef",
    "transport": "#74c476",
    "cache": "#238b45",
}
_MOST_HOLDS = 2.5  # of the timeline, in units of `hold_after`
_MOST_POINTS = 3000  # of the timeline; more than the page is wide
_ZOOM_PERIODS, _ZOOM_ENCODES = 12, 4  # the longer of the two is drawn of both rates


def check_plot(file: Path | None) -> None:
    """Before the measurement: what draws the page is there, and its file can be written."""
    if file is None:
        return
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport] - an extra
    except ImportError:
        raise ConfigError(
            "--plot needs matplotlib, which is not installed: pip install 'saccade[bench]', or leave --plot out"
        ) from None
    check_file("--plot", file)


def draw(profile: dict[str, Any], samples: Samples, file: Path) -> None:
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports] - an extra

    figure = Figure(figsize=(14, 12), layout="constrained")
    grid = figure.add_gridspec(4, 4, height_ratios=(1.3, 0.55, 0.9, 0.9))
    _timeline(figure.add_subplot(grid[0, :]), profile, samples)
    _mean_age(figure.add_subplot(grid[1, :]), profile)
    _two_rates(figure.add_subplot(grid[2, :]), samples)
    chosen = [
        ("feature age", "feature age", "feature age, ms"),
        ("encode", "encode", "encode, ms"),
        ("cycle", "work", "controller work a cycle, ms"),
        ("cycle", "lateness", "lateness of a tick, ms"),
    ]
    for column, (group, name, label) in enumerate(chosen):
        _histogram(figure.add_subplot(grid[3, column]), profile["figures"].get(group, {}).get(name), label)
    source = profile["source"] if len(profile["source"]) < 80 else f"...{profile['source'][-77:]}"
    rates = ", ".join(
        f"{profile[key]:.2f} {label}/s"
        for key, label in (("action_hz", "actions"), ("encode_hz", "encodes"))
        if profile[key]
    )
    figure.suptitle(f"Saccade: profile of {source}; {rates}; missed ticks {profile['missed_ticks']}", fontsize=12)
    figure.savefig(file, dpi=100, format="png")


def _timeline(axes: Any, profile: dict[str, Any], samples: Samples) -> None:
    """The age that each cycle acted on, filled by its parts, under the rungs of the ladder."""
    foreign, cycles = foreign_epochs(samples), _thinned(samples.cycles, _MOST_POINTS)
    begin_ns = samples.cycles[0].stamp_ns
    at_s = np.array([(cycle.stamp_ns - begin_ns) / NS_PER_S for cycle in cycles])
    ages = np.array([np.nan if cycle.feature_age_ms is None else cycle.feature_age_ms for cycle in cycles])
    split = [age_parts(cycle, samples, foreign) or {} for cycle in cycles]
    names = in_order({name for row in split for name in row})
    below = np.zeros(len(cycles))
    for name in names:
        above = below + np.array([max(0.0, row.get(name, 0.0)) for row in split])
        if (above > below).any():
            axes.fill_between(at_s, below, above, step="post", color=_colour(name), linewidth=0, label=name)
        below = above
    axes.step(at_s, ages, where="post", color="black", linewidth=0.8, label="feature age")
    oldest, hold = float(np.nanmax(ages, initial=0.0)), profile["freshness_ms"]["hold_after"]
    top = max(1.4 * hold, min(1.4 * oldest, _MOST_HOLDS * hold))
    if oldest > top:  # minutes of STOP must not flatten the rest
        axes.text(0.005, 0.97, f"cut here: up to {oldest:,.0f} ms", transform=axes.transAxes, va="top", fontsize=9)
    for rung, colour in _RUNGS.items():
        value = profile["freshness_ms"][rung]
        if value < top:
            axes.axhline(value, color=colour, linestyle="--", linewidth=1.2)
        label = f"{rung} {value:g}{'' if value < top else ' (above)'}"
        box = {"facecolor": "white", "alpha": 0.85, "edgecolor": colour, "linewidth": 0.8, "pad": 1.5}
        place = {"xy": (1, min(value, top)), "xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        below = 0 if value < top else -12
        axes.annotate(label, **place, xytext=(-4, below), color=colour, fontsize=9, ha="right", va="center", bbox=box)
    _shade_modes(axes, cycles, at_s)
    axes.set(xlim=(at_s[0], max(at_s[-1], at_s[0] + 0.1)), ylim=(0, top), xlabel="s", ylabel="feature age, ms")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=8, ncols=14, frameon=False, columnspacing=1.2)


def _thinned(cycles: list[Cycle], most: int) -> list[Cycle]:
    """So many cycles at most: of each few in a row the one that went worst, so that no HOLD and no old age is lost."""
    step = -(-len(cycles) // most)
    groups = (cycles[begin : begin + step] for begin in range(0, len(cycles), step))
    return [max(group, key=lambda cycle: (cycle.mode is not Mode.RUN, cycle.feature_age_ms or 0.0)) for group in groups]


def _shade_modes(axes: Any, cycles: list[Cycle], at_s: np.ndarray) -> None:
    """A band behind each stretch that is not RUN."""
    begin, named = 0, set()
    for index in range(1, len(cycles) + 1):
        if index < len(cycles) and cycles[index].mode is cycles[begin].mode:
            continue
        mode = cycles[begin].mode
        if mode in _MODES:
            label = None if mode in named else str(mode)
            axes.axvspan(
                at_s[begin], at_s[min(index, len(at_s) - 1)], color=_MODES[mode], alpha=0.4, lw=0, zorder=0, label=label
            )
            named.add(mode)
        begin = index


def _mean_age(axes: Any, profile: dict[str, Any]) -> None:
    """One bar: the mean feature age by its parts."""
    rows = {
        name: row["mean"] for name, row in profile["figures"].get("feature age", {}).items() if name != "feature age"
    }
    left, total = 0.0, sum(rows.values())
    for name, value in rows.items():
        if value <= 0:
            continue
        axes.barh(0, value, left=left, color=_colour(name), edgecolor="white", height=0.6)
        if value > 0.05 * total:
            dark = name in ("vision", "language", "cache", "camera")
            text = f"{name}\n{value:.1f} ms"
            axes.text(
                left + value / 2, 0, text, ha="center", va="center", fontsize=9, color="white" if dark else "black"
            )
        left += value
    axes.set(yticks=[], xlim=(0, max(left, 1e-3)), ylim=(-0.45, 0.45), title="where the mean feature age goes, ms")
    axes.title.set_fontsize(10)


def _two_rates(axes: Any, samples: Samples) -> None:
    """A stretch from the middle: captures, encodes, actions, and lines from each encode to its capture and actions."""
    cycles, foreign = samples.steady, foreign_epochs(samples)
    middle = cycles[len(cycles) // 2]
    encode_ms = median([row.encode_ms for row in used_encodes(samples)] or [0.0])
    zoom_ms = max(_ZOOM_PERIODS * samples.period_ms, _ZOOM_ENCODES * encode_ms, 1.0)
    begin_ns = max(middle.stamp_ns - round(zoom_ms / 2 * NS_PER_MS), cycles[0].stamp_ns)
    end_ns = begin_ns + round(zoom_ms * NS_PER_MS)

    def ms(stamp_ns: int) -> float:
        return (stamp_ns - begin_ns) / NS_PER_MS

    shown = [row for row in used_encodes(samples) if row.epoch not in foreign and begin_ns <= row.stamp_ns]
    shown = [row for row in shown if row.frame_stamp_ns <= end_ns]
    ticks = [cycle for cycle in cycles if begin_ns <= cycle.stamp_ns <= end_ns]
    axes.scatter([ms(row.frame_stamp_ns) for row in shown], [2] * len(shown), s=14, color=_COLOURS["camera"])
    bars = [(ms(row.begun_ns), row.encode_ms) for row in shown]
    axes.broken_barh(bars, (0.85, 0.3), color=_COLOURS["vision"], edgecolor="white", linewidth=0.5)
    for row in shown:
        axes.plot([ms(row.frame_stamp_ns), ms(row.begun_ns)], [2, 1.15], color="#999999", linewidth=0.6)
    for is_running, colour in ((True, _COLOURS["cache"]), (False, _RUNGS["hold_after"])):
        chosen = [cycle for cycle in ticks if (cycle.mode is Mode.RUN) == is_running]
        axes.scatter([ms(cycle.stamp_ns) for cycle in chosen], [0] * len(chosen), marker="|", s=160, color=colour)
    for cycle in ticks:
        row = samples.encodes.get((cycle.encoder_epoch or 0, cycle.feature_seq or 0))
        if row is not None and row.epoch not in foreign:
            axes.plot([ms(row.stamp_ns), ms(cycle.stamp_ns)], [0.85, 0.06], color=_COLOURS["cache"], linewidth=0.9)
    axes.set(xlim=(0, zoom_ms), ylim=(-0.4, 2.4), xlabel="ms, a stretch from the middle")
    axes.set_yticks([0, 1, 2], ["actions", "encodes", "captures\nencoded"])
    axes.set_title("two rates: which capture each action saw", fontsize=10)


def _histogram(axes: Any, figure: dict[str, Any] | None, label: str) -> None:
    axes.set_xlabel(label)
    if not figure:
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    edges = figure["histogram"]["edges"]
    axes.stairs(figure["histogram"]["counts"], edges, fill=True, color="#4292c6")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    for column, style in (("p50", "-"), ("p99", "--"), ("max", ":")):
        axes.axvline(
            figure[column], color="black", linestyle=style, linewidth=1, label=f"{column} {shown_ms(figure[column])}"
        )
    axes.legend(fontsize=8)
    axes.set_ylabel("count")


def _colour(name: str) -> str:
    return _COLOURS.get(name.partition(" + ")[0], "#dddddd")
