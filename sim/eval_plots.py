"""Success, time, path and jerk against feature age, as a PNG. Knows the report's layout and matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from control.errors import ConfigError, ReportError

_APART_MS = 6.0  # the tasks stand beside each other, so that no bar hides another


def check_plot(file: Path | None) -> None:
    """Before the work: what draws the plot is there, and its file can be written."""
    if file is None:
        return
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport] - an extra
    except ImportError:
        raise ConfigError(
            "--plot needs matplotlib, which is not installed: pip install 'saccade[bench]', or leave --plot out"
        ) from None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()
    except OSError as error:
        raise ConfigError(f"--plot {file} cannot be written: {error.strerror}") from None


def draw(report: dict[str, Any], file: Path, other: dict[str, Any] | None = None) -> None:
    """A line a task, with 95 % bars of success; the expert's own figures as dashed lines where it was asked for, and
    another evaluation's as dotted ones.

    Raises ReportError where the disk refuses it.
    """
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports] - an extra

    success, experts = report["success"], report.get("expert", {})
    first = next(iter(next(iter(success.values())).values()))
    path_key = "path_rad" if "path_rad" in first else "path_m"
    labels = {
        "rate": "success, %",
        "time_s": "time of a success, s (median)",
        path_key: f"path of a success, {path_key.partition('_')[2]} (median)",
        "jerk": "jerk of the commands, rad/s$^3$ (RMS, median)",
    }
    figure = Figure(figsize=(12, 8), layout="constrained")
    for panel, (key, label) in zip(figure.subplots(2, 2).flat, labels.items(), strict=True):
        scale = 100 if key == "rate" else 1
        for number, (task, by_age) in enumerate(success.items()):
            shift = _APART_MS * (number - (len(success) - 1) / 2)
            rows = [(float(age) + shift, row) for age, row in by_age.items() if row[key] is not None]
            ages, values = [age for age, _ in rows], [row[key] * scale for _, row in rows]
            below_above = None
            if key == "rate":
                below_above = [
                    [max(0.0, 100 * (row["rate"] - row["ci95"][0])) for _, row in rows],
                    [max(0.0, 100 * (row["ci95"][1] - row["rate"])) for _, row in rows],
                ]
            panel.errorbar(ages, values, below_above, marker="o", capsize=3, color=f"C{number}", label=task)
            there = other["success"].get(task, {}) if other else {}
            beside = [(float(age) + shift, row[key] * scale) for age, row in there.items() if row.get(key) is not None]
            if beside:
                panel.plot(*zip(*beside, strict=True), ":", marker="o", markerfacecolor="white", color=f"C{number}")
            if experts and experts[task][key] is not None:
                panel.axhline(experts[task][key] * scale, color=f"C{number}", linestyle="--", linewidth=0.8)
        panel.set_xlabel("feature age, ms")
        panel.set_ylabel(label)
        panel.set_ylim(bottom=0)
        panel.set_xlim(left=min(0.0, panel.get_xlim()[0]))
        panel.grid(alpha=0.3)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=9)
    dashes = "; dashed: the scripted expert" if experts else ""
    dots = f"; dotted: policy {other['policy']} in {other.get('precision')}" if other else ""
    what = f"policy {report['policy']} in {report.get('precision')}, wordings {report['wordings']}"
    figure.suptitle(f"Saccade: {what}{dots}{dashes}", fontsize=11)
    try:
        figure.savefig(file, dpi=110, format="png")
    except OSError as error:
        raise ReportError(f"--plot {file} cannot be written ({error.strerror}): likely a full disk") from error
