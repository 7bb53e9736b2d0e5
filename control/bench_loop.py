"""`bench loop`: rules that pace a loop, each in a process of its own at the same time, so that all meet the same load.

The rules' phases are spread over the period, or all would wake at one instant and be measured in each other's way. The
work of a tick is short enough that all of them together leave the machine idle where it is meant to be.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from control.clock import NS_PER_MS, NS_PER_S
from control.errors import ConfigError, MeasurementError
from control.pacing import Trace, figures

_ROOT = Path(__file__).resolve().parents[1]
_OVERRUN_PERIODS = 2.4
_OVERRUN_EVERY_S = 5.0
_START_S = 60.0  # for the processes to get ready, on cores that are all busy
LOADS = ("idle", "busy")


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table: a rule of control/pacing.py, and whether it asks for SCHED_FIFO."""

    name: str
    rule: str
    keeps_grid: bool
    realtime: bool = False


OURS, OURS_REALTIME = "saccade", "saccade, SCHED_FIFO"
RELATIVE = "relative sleep"
ENTRIES = (
    Entry(OURS_REALTIME, "grid with skip", True, True),
    Entry(OURS, "grid with skip", True),
    Entry(RELATIVE, "relative sleep", False),
    Entry("re-based sleep", "re-based sleep", False),
    Entry("absolute with catch-up", "catch-up", True),
)


def parse_rates(text: str) -> list[float]:
    """`10,50,100` as numbers of Hz. Raises ConfigError."""
    try:
        rates = [float(word) for word in text.split(",")]
    except ValueError:
        rates = [0.0]
    if not all(1 <= rate <= 1000 for rate in rates):
        raise ConfigError(f"--rates takes numbers of Hz from 1 to 1000 like 10,50,100, got '{text}'")
    return list(dict.fromkeys(rates))


def parse_loads(text: str) -> list[str]:
    """`idle,busy`, or one of them. Raises ConfigError."""
    loads = list(dict.fromkeys(text.split(",")))
    if not set(loads) <= set(LOADS):
        raise ConfigError(f"--loads takes {' and '.join(LOADS)} with commas, got '{text}'")
    return loads


def work_ns(period_ns: int) -> int:
    """The work of a tick: 1 ms, as a controller's cycle, or a twentieth of a short period."""
    return min(NS_PER_MS, period_ns // 20)


def measure_loop(
    rates: Sequence[float], loads: Sequence[str], duration_s: float, show: Callable[[str], None]
) -> dict[str, Any]:
    """Every rate under every load for `duration_s` each, all rules at once.

    Raises MeasurementError when one of the processes ends early.
    """
    before = os.getloadavg()
    rows = []
    for load in loads:
        for rate in rates:
            rows += _measure(rate, load, duration_s, show)
    return {
        "duration_s": duration_s,
        "overrun_periods": _OVERRUN_PERIODS,
        "busy_processes": _cores() if "busy" in loads else 0,
        "load_average_before": list(before),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "rows": rows,
        "ratios": ratios(rows),
    }


def _measure(rate_hz: float, load: str, duration_s: float, show: Callable[[str], None]) -> list[dict[str, Any]]:
    period_ns = round(NS_PER_S / rate_hz)
    with ExitStack() as processes:
        if load == "busy":
            for _ in range(_cores()):
                _start("busy", processes)
        workers = [_start("rule", processes) for _ in ENTRIES]
        for entry, worker in zip(ENTRIES, workers, strict=True):
            _tell(worker, json.dumps(_settings(entry, period_ns, duration_s)))
        show(f"{rate_hz:g} Hz, {load}: starting")
        for worker in workers:
            if _hear(worker).strip() != "ready":
                raise MeasurementError(f"a process of the measurement ended before it began, code {worker.wait()}")
        start_ns = time.monotonic_ns() + NS_PER_S // 5
        for index, worker in enumerate(workers):
            _tell(worker, str(start_ns + index * period_ns // len(workers)))
        _wait(start_ns, duration_s, workers[0], lambda passed_s: show(f"{rate_hz:g} Hz, {load}: {passed_s:.0f} s"))
        return [
            {"rate_hz": rate_hz, "load": load, "work_ms": work_ns(period_ns) / NS_PER_MS} | _row(entry, worker)
            for entry, worker in zip(ENTRIES, workers, strict=True)
        ]


def _settings(entry: Entry, period_ns: int, duration_s: float) -> dict[str, Any]:
    every_s = min(_OVERRUN_EVERY_S, duration_s)
    return {
        "rule": entry.rule,
        "realtime": entry.realtime,
        "period_ns": period_ns,
        "duration_ns": round(duration_s * NS_PER_S),
        "work_ns": work_ns(period_ns),
        "overruns_ns": [round((n + 0.5) * every_s * NS_PER_S) for n in range(int(duration_s / every_s))],
        "overrun_ns": round(_OVERRUN_PERIODS * period_ns),
    }


def _row(entry: Entry, worker: subprocess.Popen[str]) -> dict[str, Any]:
    answer, _ = worker.communicate(timeout=_START_S)
    if worker.returncode != 0 or not answer.strip():
        raise MeasurementError(f"the process of '{entry.name}' ended with code {worker.returncode} and no figures")
    trace = json.loads(answer)
    scheduling = trace.pop("scheduling")
    row = {"rule": entry.name, "scheduling": scheduling, "reason": None}
    if entry.realtime and not scheduling.startswith("SCHED_FIFO"):
        return row | {"reason": scheduling}
    return row | figures(Trace(**trace), entry.keeps_grid)


def ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each rate and load, p99 of relative sleep over ours: of the lateness, and of the wake-up in it alone."""
    found = []
    for key in dict.fromkeys((row["rate_hz"], row["load"]) for row in rows):
        by_rule = {row["rule"]: row for row in rows if (row["rate_hz"], row["load"]) == key and not row["reason"]}
        relative = by_rule.get(RELATIVE)
        for ours in (OURS_REALTIME, OURS):
            mine = by_rule.get(ours)
            names = ("lateness_ms", "wakeup_ms")
            if relative and mine and all(row[name] for row in (relative, mine) for name in names):
                lateness, wakeup = (  # no less than 1 ns, the clock's own step
                    relative[name]["p99"] / max(mine[name]["p99"], 1e-6) for name in names
                )
                found.append(
                    {"rate_hz": key[0], "load": key[1], "ours": ours, "lateness": lateness, "wakeup": wakeup}
                    | {"missed": [relative["missed"], mine["missed"]]}
                )
    return found


def tables(report: dict[str, Any]) -> list[Table]:
    """One for each rate and load."""
    found: dict[tuple[float, str], Table] = {}
    for row in report["rows"]:
        key = (row["rate_hz"], row["load"])
        if key not in found:
            found[key] = table = Table(title=_title(row), title_justify="left", show_edge=False, pad_edge=False)
            table.add_column("")
            for heading in (
                *("ticks", "late p50, ms", "p99", "max", "wake-up p99", "drift, ms", "of overruns"),
                *("least interval", "bursts", "missed", "in overruns"),
            ):
                table.add_column(heading, justify="right")
        if row["reason"]:
            found[key].add_row(row["rule"], "not run")
            continue
        late = row["lateness_ms"]
        shown = (late.get("p50"), late.get("p99"), late.get("max"), row["wakeup_ms"].get("p99"))
        cells = [_shown(value, 3) for value in shown]
        cells += [_shown(row["drift_ms"], 2), _shown(row["drift_of_overruns_ms"], 0)]
        cells += [_shown(row["smallest_interval_ms"], 2), str(row["bursts"])]
        cells += [str(row["missed"]), str(row["missed_in_overruns"])]
        found[key].add_row(row["rule"], str(row["ticks"]), *cells)
    return list(found.values())


def notes(report: dict[str, Any]) -> list[str]:
    """The ratios in words, and what the columns mean."""
    lines = [
        f"{ratio['rate_hz']:g} Hz, {ratio['load']}: p99 lateness of relative sleep is {ratio['lateness']:.1f} times"
        f" that of {ratio['ours']}; of the wake-up alone {ratio['wakeup']:.1f} times;"
        f" missed {ratio['missed'][0]} and {ratio['missed'][1]}"
        for ratio in report["ratios"]
    ]
    lines += dict.fromkeys(f"{row['rule']}: not run, {row['reason']}" for row in report["rows"] if row["reason"])
    return [
        *lines,
        "late: after the rule's own deadline, without the ticks that an injected overrun"
        f" ({report['overrun_periods']:g} periods, asleep) delayed. The deadline of an absolute rule is its grid point,"
        " of the other two one period after the tick before. wake-up: what the sleep call itself was late.",
        "drift: last tick against the ideal grid, and how much of it the overruns made; bursts: intervals under half a"
        " period; missed: periods of the ideal grid without a tick, those of the overruns apart. Ours gives up what it"
        " would meet more than a quarter of a period late: that is missed, and not late.",
    ]


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _title(row: dict[str, Any]) -> str:
    return f"{row['rate_hz']:g} Hz, {'all cores busy' if row['load'] == 'busy' else 'idle'}"


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _start(what: str, processes: ExitStack) -> subprocess.Popen[str]:
    """A process that is killed when `processes` closes, if it has not ended by then."""
    process = subprocess.Popen(
        [sys.executable, "-m", "control.pacing_worker", what, str(os.getpid())],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    processes.callback(_end, process)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _tell(worker: subprocess.Popen[str], line: str) -> None:
    assert worker.stdin is not None
    try:
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
    except BrokenPipeError:
        raise MeasurementError(f"a process of the measurement ended early, code {worker.wait()}") from None


def _hear(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    return worker.stdout.readline()


def _wait(start_ns: int, duration_s: float, worker: subprocess.Popen[str], show: Callable[[float], None]) -> None:
    """Until the time is over: what the workers have to say then no longer fits a pipe, so they are not waited for."""
    while (passed_s := (time.monotonic_ns() - start_ns) / NS_PER_S) < duration_s:
        show(max(0.0, passed_s))
        try:
            worker.wait(min(0.5, max(0.01, duration_s - passed_s)))
        except subprocess.TimeoutExpired:
            continue
        return  # it has ended early; its exit code says so
