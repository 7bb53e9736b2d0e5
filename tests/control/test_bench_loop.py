"""Pacing rules told apart: on a fake clock to the nanosecond, and as real processes. No time is asserted."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from control import bench_loop
from control.clock import NS_PER_MS, NS_PER_S, FakeClock
from control.errors import ConfigError, MeasurementError
from control.pacing import RULES, Trace, figures, pace

ROOT = Path(__file__).resolve().parents[2]
PERIOD_NS = 100 * NS_PER_MS
KEEPS_GRID = {"grid with skip": True, "catch-up": True, "relative sleep": False, "re-based sleep": False}


class SleepyClock(FakeClock):
    """Every sleep ends 0.2 ms late."""

    def sleep_until(self, deadline_ns):
        if deadline_ns > self.now_ns():
            super().sleep_until(deadline_ns + NS_PER_MS // 5)


def found(rule, *, seconds=10.0, work_ms=2, overruns_at_s=(), clock=None):
    clock = clock or SleepyClock()
    began_ns = clock.now_ns()
    trace = pace(
        rule,
        clock,
        PERIOD_NS,
        began_ns + round(seconds * NS_PER_S),
        lambda: clock.advance(work_ms * NS_PER_MS),
        overruns_at_ns=[began_ns + round(at * NS_PER_S) for at in overruns_at_s],
        overrun_ns=240 * NS_PER_MS,
    )
    return figures(trace, KEEPS_GRID[rule])


@pytest.mark.parametrize(
    ("rule", "late_ms", "drift_a_tick_ms"),
    [("grid with skip", 0.2, 0.0), ("catch-up", 0.2, 0.0), ("re-based sleep", 0.2, 0.2), ("relative sleep", 2.2, 2.2)],
)
def test_only_a_grid_does_not_drift_and_only_relative_sleep_pays_for_the_work(rule, late_ms, drift_a_tick_ms):
    row = found(rule)
    assert row["lateness_ms"]["p50"] == pytest.approx(late_ms)
    assert row["lateness_ms"]["max"] == pytest.approx(late_ms)
    assert row["wakeup_ms"]["p50"] == pytest.approx(0.2)  # the sleep is as good under every rule
    ticks = row["ticks"]
    assert row["drift_ms"] == pytest.approx(0.2 + (ticks - 1) * drift_a_tick_ms)
    assert (row["drift_of_overruns_ms"], row["bursts"]) == (0.0, 0)
    assert row["smallest_interval_ms"] == pytest.approx(100 + drift_a_tick_ms)


@pytest.mark.parametrize(
    ("rule", "smallest_ms", "bursts", "missed", "drift_ms"),
    [
        ("grid with skip", 99.8, 0, 2, 0.0),  # the tick that overran was 0.2 ms late itself
        ("catch-up", 2.0, 1, 1, 0.0),
        ("re-based sleep", 100.0, 0, 1, 140.0),
        ("relative sleep", 102.0, 0, 3, 240.0),  # 240 ms, and by then 44 ms of drift
    ],
)
def test_an_overrun_of_over_two_periods_shows_as_a_burst_a_gap_or_a_shift(rule, smallest_ms, bursts, missed, drift_ms):
    plain, row = found(rule, seconds=2.05), found(rule, seconds=2.05, overruns_at_s=[1.0])
    assert row["overruns"] == 1 and plain["missed"] == 0
    assert row["smallest_interval_ms"] == pytest.approx(smallest_ms, abs=0.5)
    assert (row["bursts"], row["missed"] + row["missed_in_overruns"]) == (bursts, missed)
    assert row["drift_of_overruns_ms"] == pytest.approx(drift_ms, abs=0.5)
    assert row["lateness_ms"]["max"] == pytest.approx(plain["lateness_ms"]["max"])  # what it delayed stands apart


def test_a_wake_up_after_the_next_point_is_not_hidden_as_an_overrun():
    trace = Trace(PERIOD_NS, [100, 230, 300], [100, 200, 300], [0, 0, 0])
    trace.woke_ns, trace.due_ns = ([n * NS_PER_MS for n in values] for values in (trace.woke_ns, trace.due_ns))
    row = figures(trace, keeps_grid=True)
    assert (row["lateness_ms"]["max"], row["after_overrun_ms"]) == (30.0, {})
    assert row["smallest_interval_ms"] == 70.0


def test_every_rule_is_measured_with_the_same_first_deadline():
    for rule in RULES:
        clock = FakeClock()
        trace = pace(rule, clock, PERIOD_NS, clock.now_ns() + NS_PER_S, lambda: None)
        assert trace.due_ns[0] == NS_PER_S + PERIOD_NS
        assert np.diff(trace.woke_ns).tolist() == [PERIOD_NS] * 9


def test_points_given_up_before_the_first_tick_are_missed_and_no_drift():
    class LateStart(FakeClock):
        def sleep_until(self, deadline_ns):
            is_first = self.now_ns() == NS_PER_S
            super().sleep_until(deadline_ns + (130 * NS_PER_MS if is_first else 0))

    clock = LateStart()
    row = figures(pace("grid with skip", clock, PERIOD_NS, clock.now_ns() + NS_PER_S, lambda: None), True)
    assert (row["missed"], row["missed_in_overruns"], row["drift_ms"]) == (2, 0, 0.0)


def test_every_rule_runs_in_a_process_of_its_own_beside_busy_cores_and_none_is_left():
    shown = []
    report = bench_loop.measure_loop([50.0], ["busy"], 1.0, shown.append)
    rows = {row["rule"]: row for row in report["rows"]}
    assert list(rows) == [entry.name for entry in bench_loop.ENTRIES]
    for name, row in rows.items():
        assert row["rate_hz"] == 50 and row["load"] == "busy" and row["work_ms"] == 1.0
        if row["reason"]:
            assert name == bench_loop.OURS_REALTIME and "not permitted" in row["reason"]
            continue
        assert row["ticks"] >= 1 and set(row["lateness_ms"]) <= {"p50", "p95", "p99", "max"}
        assert row["scheduling"].startswith("SCHED_FIFO" if name == bench_loop.OURS_REALTIME else "normal")
    assert report["busy_processes"] >= 1 and any("50 Hz, busy" in text for text in shown)
    assert not workers_of(os.getpid())


def workers_of(parent):
    """Process ids of what `bench loop` started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"control.pacing_worker" in words and str(parent).encode() in words:
            found.append(int(entry.parent.name))
    return found


def test_a_killed_bench_leaves_no_busy_process(tmp_path):
    code = "from control.bench_loop import measure_loop\nmeasure_loop([10.0], ['busy'], 60.0, lambda text: None)"
    bench = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    ends = time.monotonic() + 60
    while not workers_of(bench.pid) and time.monotonic() < ends:
        threading.Event().wait(0.05)
    assert workers_of(bench.pid)
    bench.kill()
    bench.wait()
    while workers_of(bench.pid) and time.monotonic() < ends:
        threading.Event().wait(0.05)
    left = workers_of(bench.pid)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def test_a_worker_that_dies_ends_the_measurement_with_its_name(monkeypatch):
    broken = (*bench_loop.ENTRIES[:-1], bench_loop.Entry("no such rule", "busy waiting", True))
    monkeypatch.setattr(bench_loop, "ENTRIES", broken)
    with pytest.raises(MeasurementError, match="the process of 'no such rule' ended with code 1"):
        bench_loop.measure_loop([100.0], ["idle"], 0.5, lambda text: None)


def made_up(rule, p99_ms, wakeup_ms, reason=None):
    row = {"rate_hz": 10.0, "load": "busy", "rule": rule, "reason": reason}
    if reason:
        return row
    late = {"p50": p99_ms / 2, "p95": p99_ms, "p99": p99_ms, "max": p99_ms}
    return (
        row
        | {"lateness_ms": late, "wakeup_ms": late | {"p99": wakeup_ms}, "ticks": 100, "drift_ms": 0.0}
        | {"drift_of_overruns_ms": 0.0, "smallest_interval_ms": 99.0, "bursts": 0, "missed": 1, "missed_in_overruns": 2}
    )


def test_the_ratio_is_printed_with_the_wake_up_alone_and_a_refused_row_with_its_reason():
    rows = [
        made_up(bench_loop.OURS_REALTIME, 0, 0, "normal (PermissionError: real-time scheduling is not permitted here)"),
        made_up(bench_loop.OURS, 0.25, 0.5),
        made_up(bench_loop.RELATIVE, 2.0, 1.0),
    ]
    report = {"rows": rows, "ratios": bench_loop.ratios(rows), "overrun_periods": 2.4}
    (ratio,) = report["ratios"]
    assert (ratio["ours"], ratio["lateness"], ratio["wakeup"]) == (bench_loop.OURS, 8.0, 2.0)
    assert bench_loop.notes(report)[0] == (
        "10 Hz, busy: p99 lateness of relative sleep is 8.0 times that of saccade; of the wake-up alone 2.0 times;"
        " missed 1 and 1"
    )
    console = Console(width=150, file=io.StringIO())
    for table in bench_loop.tables(report):
        console.print(table)
    assert "10 Hz, all cores busy" in console.file.getvalue() and "not run" in console.file.getvalue()
    assert any("SCHED_FIFO: not run, normal (PermissionError" in line for line in bench_loop.notes(report))


@pytest.mark.parametrize("text", ["", "fast", "0", "10;50", "nan", "10,5000"])
def test_rates_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="--rates takes numbers of Hz from 1 to 1000 like 10,50,100"):
        bench_loop.parse_rates(text)


def test_a_load_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="--loads takes idle and busy with commas, got 'calm'"):
        bench_loop.parse_loads("calm")
