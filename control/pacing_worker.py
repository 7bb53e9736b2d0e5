"""One rule of `bench loop` in a process of its own, or one process that keeps a core busy. Started by
control/bench_loop.py, which it answers in JSON; both end by themselves when that command is gone."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from dataclasses import asdict

from control.clock import NS_PER_S, MonotonicClock
from control.pacing import pace


def spin(duration_ns: int) -> None:
    """Work: computes for this long, by the clock."""
    ends_ns = time.monotonic_ns() + duration_ns
    while time.monotonic_ns() < ends_ns:
        pass


def keep_busy(parent: int) -> None:
    while os.getppid() == parent:
        spin(NS_PER_S // 10)


def run_rule(parent: int) -> None:
    """Settings as a JSON line on stdin, `ready` out, the start in ns as a line in, the trace as JSON out."""
    settings = json.loads(sys.stdin.readline())
    scheduling = "normal"
    if settings["realtime"]:
        from control.controller import ask_for_realtime

        scheduling = ask_for_realtime()
    gc.collect()
    gc.freeze()
    clock, period_ns, work_ns = MonotonicClock(), settings["period_ns"], settings["work_ns"]
    print("ready", flush=True)
    start = sys.stdin.readline()
    if not start.strip():
        return
    start_ns = int(start)
    clock.sleep_until(start_ns)
    trace = pace(
        settings["rule"],
        clock,
        period_ns,
        start_ns + settings["duration_ns"],
        lambda: spin(work_ns),
        overruns_at_ns=[start_ns + offset for offset in settings["overruns_ns"]],
        overrun_ns=settings["overrun_ns"],
        going=lambda: os.getppid() == parent,
    )
    print(json.dumps(asdict(trace) | {"scheduling": scheduling}))


if __name__ == "__main__":
    what, started_by = sys.argv[1], int(sys.argv[2])
    {"busy": keep_busy, "rule": run_rule}[what](started_by)
