"""What `bench encode` found: one row a step and scene as plain figures, as a table and as a chart.

A row that could not run stays there with its reason, and its figures are None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.markup import escape
from rich.table import Table

from control.errors import ConfigError
from vla.bench_build import Prepared
from vla.bench_steps import Scene, Step
from vla.census import Census
from vla.floor import Peaks, Work, floor_ms

FIGURES = (
    *("p50_ms", "p95_ms", "speedup", "speedup_here", "cosine", "operators", "attention_calls", "host_reads"),
    *("peak_memory_mb", "tokens", "tflop", "floor_ms", "floor_ratio", "repeats", "prepare_s"),
)
COLOURS = {"stock": "#8c8c8c", "exact": "#2a6fbb", "approximate": "#e08a2c"}
References = dict[tuple[Scene, str], torch.Tensor]  # (V, D) float32 features by scene and layout


@dataclass(slots=True)
class Cell:
    """One row of the table while it is measured."""

    step: Step
    scene: Scene
    reason: str = ""  # why it has no figures
    prepared: Prepared | None = None
    prepare_s: float = 0.0
    features: torch.Tensor | None = None  # (V, D) float32 on the CPU
    census: Census = field(default_factory=Census)
    tokens: int = 0
    work: Work | None = None
    peak_mb: float | None = None
    times_ms: list[float] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.scene.views} x {self.scene.width}x{self.scene.height}, {self.step.name}, {self.step.precision}"


def rows(cells: Sequence[Cell], peaks: Peaks, references: References) -> list[dict[str, Any]]:
    """The table. `speedup` is over the first row of the run, `speedup_here` over the first of the same scene."""
    p50 = [float(np.median(cell.times_ms)) if cell.times_ms else None for cell in cells]
    first_of: dict[Scene, float | None] = {}
    for cell, value in zip(cells, p50, strict=True):
        first_of.setdefault(cell.scene, value)
    return [_row(cell, p50[0], first_of[cell.scene], peaks, references) for cell in cells]


def _row(
    cell: Cell,
    first_ms: float | None,
    first_here_ms: float | None,
    peaks: Peaks,
    references: References,
) -> dict[str, Any]:
    step, scene = cell.step, cell.scene
    row: dict[str, Any] = {"step": step.name, "views": scene.views, "height": scene.height, "width": scene.width}
    row |= {"precision": step.precision, "exact": step.exact, "reason": cell.reason or None}
    row |= dict.fromkeys(FIGURES)
    if not cell.times_ms or cell.work is None:
        return row
    p50, p95 = (float(value) for value in np.percentile(cell.times_ms, (50, 95)))
    least_ms = floor_ms(cell.work, peaks, *step.weight_precisions)
    reference = references.get((scene, step.reference))
    cosine = None
    if reference is not None and cell.features is not None:
        cosine = float(F.cosine_similarity(cell.features, reference, dim=-1).min())
    return row | {
        "p50_ms": p50,
        "p95_ms": p95,
        "speedup": first_ms / p50 if first_ms else None,
        "speedup_here": first_here_ms / p50 if first_here_ms else None,
        "cosine": cosine,  # of the view that is furthest from float32
        "operators": cell.census.operators,
        "attention_calls": cell.census.attention_calls,
        "host_reads": cell.census.host_reads,
        "peak_memory_mb": cell.peak_mb,
        "tokens": cell.tokens,
        "tflop": cell.work.flop / 1e12,
        "floor_ms": least_ms,
        "floor_ratio": p50 / least_ms,
        "repeats": len(cell.times_ms),
        "prepare_s": cell.prepare_s,
    }


def tables(report: dict[str, Any]) -> list[Table]:
    """One table a scene."""
    return [_table(title, rows) for title, rows in _by_scene(report).items()]


def notes(report: dict[str, Any]) -> list[str]:
    """What has to be known to read the tables, a line each, and why rows have no figures."""
    peaks = ", ".join(f"{name} {value:.3g}" for name, value in report["peak_tflop_per_s"].items())
    lines = [
        f"geometry {report['geometry']} (vision {_by(report['sizes']['vision'])}, language"
        f" {_by(report['sizes']['language'])}), weights {report['weights']}; {report['device']},"
        f" {report['threads']} CPU threads; measured {report['order']} in {report['took_s']:.0f} s",
        f"times: {report['timing']}",
        "speed-up: over the first row of the run, and of the table; cosine: the worst view's mean-pooled features"
        " against the stock model's in float32 (one sequence: against itself, since its views see each other)",
        "operators: of the forward before it is compiled or captured, which launches fewer; reads: times the host waits"
        " for a value",
        f"floor: products over the peak measured here ({peaks} TFLOP/s), weights over"
        f" {report['bandwidth_gb_per_s']:.0f} GB/s; memory: weights and what an encode adds at its peak",
    ]
    if all(row["peak_memory_mb"] is None for row in report["rows"]):
        lines.append("memory: not measured, this system does not let a process reset its peak")
    reasons: dict[str, list[str]] = {}
    for row in report["rows"]:
        if row["reason"]:
            names = reasons.setdefault(row["reason"], [])
            names += [row["step"]] * (row["step"] not in names)
    return [*lines, *(f"not run: {', '.join(names)}: {reason}" for reason, names in reasons.items())]


def check_chart(file: Path | None) -> None:
    """Before the work: what draws the chart is there, and its file can be written."""
    if file is None:
        return
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport] - an extra
    except ImportError:
        raise ConfigError(
            "--chart needs matplotlib, which is not installed: pip install 'saccade[bench]', or leave --chart out"
        ) from None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()
    except OSError as error:
        raise ConfigError(f"--chart {file} cannot be written: {error.strerror}") from None


def draw(report: dict[str, Any], file: Path) -> None:
    """A PNG of bars: p50 of every row that ran, a panel a scene, the floor as a mark."""
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports] - an extra
    from matplotlib.patches import Patch  # pyright: ignore[reportMissingImports]

    scenes = {title: [row for row in rows if row["p50_ms"]] for title, rows in _by_scene(report).items()}
    tallest = max(len(rows) for rows in scenes.values())
    across = min(3, len(scenes))
    down = -(-len(scenes) // across)
    figure = Figure(figsize=(7.5 * across, down * (1.5 + 0.32 * tallest)), layout="constrained")
    for panel, (title, rows) in zip(figure.subplots(down, across, squeeze=False).flat, scenes.items(), strict=False):
        names = [f"{row['step']}, {row['precision']}" for row in rows]
        values = [row["p50_ms"] for row in rows]
        places = range(len(rows))
        panel.barh(places, values, color=[COLOURS[_kind(row)] for row in rows])
        panel.plot([row["floor_ms"] for row in rows], places, "k|", markersize=11)
        for place, row in zip(places, rows, strict=True):
            panel.annotate(
                f"{_number(row['p50_ms'])} ms  x{_number(row['speedup_here'])}",
                (row["p50_ms"], place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        panel.set_yticks(list(places), names, fontsize=8)
        panel.invert_yaxis()
        panel.margins(x=0.25)
        panel.set_xlabel("ms an encode (p50)")
        panel.set_title(title, loc="left", fontsize=10)
    for panel in list(figure.axes)[len(scenes) :]:
        panel.set_visible(False)
    figure.legend(
        handles=[Patch(color=colour, label=kind) for kind, colour in COLOURS.items()],
        loc="outside lower center",
        ncols=3,
        fontsize=8,
    )
    figure.suptitle(f"Saccade: encode, geometry {report['geometry']}, {report['device']}; | is the floor", fontsize=11)
    figure.savefig(file, dpi=110, format="png")


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    grid = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    grid.add_column("step", no_wrap=True)
    for heading in (
        *("precision", "p50 ms", "p95 ms", "speed-up", "here", "cosine", "operators", "reads", "MB", "tokens"),
        *("TFLOP", "floor ms", "x floor", "times"),
    ):
        grid.add_column(heading, justify="left" if heading == "precision" else "right", no_wrap=True)
    for row in rows:
        if row["p50_ms"] is None:
            grid.add_row(escape(row["step"]), row["precision"], "not run", style="dim")
            continue
        grid.add_row(
            escape(row["step"]),
            row["precision"],
            *(_number(row[key]) for key in ("p50_ms", "p95_ms", "speedup", "speedup_here")),
            "" if row["cosine"] is None else f"{row['cosine']:.5f}",
            str(row["operators"]),
            str(row["host_reads"]),
            _number(row["peak_memory_mb"]),
            str(row["tokens"]),
            *(_number(row[key]) for key in ("tflop", "floor_ms", "floor_ratio")),
            str(row["repeats"]),
        )
    return grid


def _by_scene(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    scenes: dict[str, list[dict[str, Any]]] = {}
    for row in report["rows"]:
        plural = "view" if row["views"] == 1 else "views"
        scenes.setdefault(f"{row['views']} {plural} of {row['width']}x{row['height']}", []).append(row)
    return scenes


def _kind(row: dict[str, Any]) -> str:
    return "stock" if row["step"].startswith("stock") else "exact" if row["exact"] else "approximate"


def _by(sizes: list[int]) -> str:
    return " x ".join(map(str, sizes))


def _number(value: float | None) -> str:
    """Three digits, or four places of what is small."""
    if value is None:
        return ""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 4
    return f"{value:.{digits}f}"
