"""The figures of a run, from the cycles and features on the bus. Actions are counted as actions, encodes as encodes.

Everything before the first RUN cycle is start-up: it is stated as `startup_s` and in no other figure. Percentiles and
the count over the age bound look at the newest 36,000 values (an hour at 10 Hz), whose memory is taken at the start, so
that a long run does not grow; the other counts cover the whole run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from control.clock import NS_PER_S
from control.errors import ConfigError, ReportError
from control.messages import Cycle, Features, Mode
from control.reasons import kind

_WINDOW = 36_000  # one hour at 10 Hz


class _Newest:
    """The newest values of one figure, in memory that is there from the start."""

    def __init__(self) -> None:
        self._values = np.full(_WINDOW, np.nan)
        self._count = 0

    def add(self, value: float) -> None:
        self._values[self._count % _WINDOW] = value
        self._count += 1

    def values(self) -> np.ndarray:
        return self._values[: min(self._count, _WINDOW)]


class RunFigures:
    """Takes what the bus delivers; `report` is the summary of it so far."""

    def __init__(self, period_ms: float, view_period_ms: float, started_ns: int) -> None:
        self._period_ms, self._view_period_ms, self._started_ns = period_ms, view_period_ms, started_ns
        self._lateness_ms, self._cycle_ms, self._state_age_ms = _Newest(), _Newest(), _Newest()
        self._feature_age_ms, self._encode_ms = _Newest(), _Newest()
        self._stages: dict[str, _Newest] = {}
        self._encode_stages: dict[str, _Newest] = {}
        self._first: Cycle | None = None
        self._modes: Counter[Mode] = Counter()
        self._limits: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._switch_ms: list[float] = []
        self._missed = self._lost_records = self._encodes = 0
        self._first_encode_ns = self._last_encode_ns = 0
        self._warm_up_cycles = 0
        self.last: Cycle | None = None

    def add_cycle(self, cycle: Cycle) -> None:
        if self.last is not None:
            self._lost_records += max(0, cycle.seq - self.last.seq - 1)
        self.last = cycle
        self._modes[cycle.mode] += 1
        if self._first is None:
            if cycle.mode is not Mode.RUN:
                self._warm_up_cycles += 1
                return
            self._first = cycle
        else:
            self._missed += cycle.missed_ticks
            if cycle.switch_ms is not None:  # the first one waited for the encoder to start: part of `startup_s`
                self._switch_ms.append(cycle.switch_ms)
        self._lateness_ms.add(cycle.lateness_ms)
        self._cycle_ms.add(cycle.cycle_ms)
        if cycle.state_age_ms is not None:
            self._state_age_ms.add(cycle.state_age_ms)
        if cycle.feature_age_ms is not None and cycle.mode is Mode.RUN:
            self._feature_age_ms.add(cycle.feature_age_ms)
        _add_stages(self._stages, cycle.stage_ms)
        self._limits.update(cycle.limits)
        if cycle.reason and cycle.mode is not Mode.RUN:
            self._reasons[kind(cycle.reason)[:160]] += 1

    def add_features(self, features: Features) -> None:
        if self._first is None or features.fault:
            return
        self._encodes += 1
        self._first_encode_ns = self._first_encode_ns or features.stamp_ns
        self._last_encode_ns = features.stamp_ns
        self._encode_ms.add(features.encode_ms)
        _add_stages(self._encode_stages, features.stage_ms)

    @property
    def has_run(self) -> bool:
        """Whether start-up is over: there was a RUN cycle."""
        return self._first is not None

    @property
    def encode_hz(self) -> float | None:
        return _rate(self._encodes, self._first_encode_ns, self._last_encode_ns)

    @property
    def action_hz(self) -> float | None:
        """Actions in mode RUN over the time since the first: HOLD and missed ticks lower it."""
        if self._first is None or self.last is None:
            return None
        return _rate(self._modes[Mode.RUN], self._first.deadline_ns, self.last.deadline_ns)

    def report(self) -> dict[str, Any]:
        ages, encode = self._feature_age_ms.values(), percentiles(self._encode_ms.values())
        bound_ms = 2 * encode["max"] + self._period_ms + self._view_period_ms if encode else None
        last = self.last
        return {
            "action_hz": self.action_hz,
            "encode_hz": self.encode_hz,
            "cycles": sum(self._modes.values()) - self._warm_up_cycles,
            "warm_up_cycles": self._warm_up_cycles,
            "missed_ticks": self._missed,
            "lost_records": self._lost_records,
            "encodes": self._encodes,
            "lateness_ms": percentiles(self._lateness_ms.values()),
            "cycle_ms": percentiles(self._cycle_ms.values()),
            "stage_ms": _by_stage(self._stages),
            "encode_ms": encode,
            "encode_stage_ms": _by_stage(self._encode_stages),
            "feature_age_ms": percentiles(ages),
            "feature_age_bound_ms": bound_ms,  # 2 x the slowest encode + control period + time between two views
            "feature_age_over_bound": int((ages > bound_ms).sum()) if bound_ms else 0,
            "state_age_ms": percentiles(self._state_age_ms.values()),
            "switch_ms": self._switch_ms,
            "modes": {str(mode): self._modes[mode] for mode in Mode},
            "limits": dict(self._limits.most_common()),
            "reasons": dict(self._reasons.most_common(10)),
            "rejected_messages": last.rejected if last else 0,
            "startup_s": (self._first.deadline_ns - self._started_ns) / NS_PER_S if self._first else None,
        }


def check_writable(file: Path | None) -> None:
    """Before the work and not after it: figures that cannot be written are lost."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
    except OSError as error:
        raise ConfigError(f"--report {file} cannot be written: {error.strerror}") from None


def write_report(file: Path | None, report: dict[str, Any]) -> None:
    """Raises ReportError where the disk refuses it, and leaves no half of a report."""
    if file is None:
        return
    try:
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        if file.is_file():
            file.unlink()
        raise ReportError(
            f"--report {file} cannot be written ({error.strerror}): likely a full disk; the figures are in no file"
        ) from error


def percentiles(values: Any) -> dict[str, float]:
    """p50, p95, p99 and max; {} when there is nothing."""
    array = np.asarray(list(values), dtype=np.float64)
    if not array.size:
        return {}
    p50, p95, p99 = np.percentile(array, (50, 95, 99))
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "max": float(array.max())}


def _add_stages(figures: dict[str, _Newest], stages: Mapping[str, float]) -> None:
    for stage, value in stages.items():
        if stage not in figures:
            figures[stage] = _Newest()
        figures[stage].add(value)


def _by_stage(figures: Mapping[str, _Newest]) -> dict[str, dict[str, float]]:
    return {stage: percentiles(newest.values()) for stage, newest in figures.items()}


def _rate(count: int, first_ns: int, last_ns: int) -> float | None:
    return (count - 1) * NS_PER_S / (last_ns - first_ns) if count > 1 and last_ns > first_ns else None


def table(report: dict[str, Any]) -> Table:
    """The report as a person reads it."""
    grid = Table(title="run", title_justify="left", show_edge=False, pad_edge=False)
    for heading in ("", "p50", "p95", "p99", "max"):
        grid.add_column(heading, justify="left" if not heading else "right")
    labels = {
        "lateness_ms": "lateness, ms",
        "cycle_ms": "controller work a cycle, ms",
        "encode_ms": "encode, ms",
        "feature_age_ms": "feature age in RUN, ms",
        "state_age_ms": "state age, ms",
    }
    for key, label in labels.items():
        if row := report[key]:
            grid.add_row(label, *(f"{row[column]:.2f}" for column in ("p50", "p95", "p99", "max")))
    if switches := percentiles(report["switch_ms"]):
        grid.add_row("say to first action, ms", *(f"{switches[c]:.0f}" for c in ("p50", "p95", "p99", "max")))
    return grid


def summary(report: dict[str, Any]) -> list[str]:
    """The counts around the table, a line each."""

    def shown(value: float | None, unit: str) -> str:
        return f"{value:.2f} {unit}" if value is not None else "none"

    modes = ", ".join(f"{mode} {count}" for mode, count in report["modes"].items() if count)
    lines = [
        f"actions {shown(report['action_hz'], 'Hz')}, encodes {shown(report['encode_hz'], 'Hz')},"
        f" missed ticks {report['missed_ticks']} of {report['cycles']}",
        f"modes in cycles: {modes or 'none'}; encoder restarts {report.get('encoder_restarts', 0)};"
        f" start-up {shown(report['startup_s'], 's')} (not in the figures)",
    ]
    if report["feature_age_bound_ms"]:
        lines.append(
            f"feature age bound {report['feature_age_bound_ms']:.0f} ms"
            " (2 x slowest encode + period + time between two views):"
            f" {report['feature_age_over_bound']} RUN cycles over it"
        )
    if report.get("episodes_judged"):
        lines.append(
            f"tasks done: {report['episodes_done']} of {report['episodes_judged']}, judged by the robot itself"
        )
    shares = {name: share for name, share in report.get("core_share", {}).items() if share is not None}
    if shares:
        lines.append("share of one core: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
    if recording := report.get("recording"):
        early = "" if recording["is_whole"] else f"ended early ({recording['ended']}): "
        lines.append(f"recording {early}{recording['said'] or 'its file can be read up to its last whole second'}")
    lines += [f"{count} cycles not in RUN: {reason}" for reason, count in report["reasons"].items()]
    return lines
