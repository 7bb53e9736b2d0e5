"""What a listener makes of a run: rates, ages, reasons, and which processes it is made of."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from speaking import FakeRun, cycle, heard

from control.address import BusAddress, Lease, announced
from control.clock import NS_PER_MS, NS_PER_S
from control.holders import find_processes, rss_mb, scheduling
from control.messages import Mode
from control.watch import Rate, Watch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fake_run(bus):
    run = FakeRun(bus)
    yield run
    run.close()


@pytest.fixture
def watch(bus):
    watch = Watch(bus)
    yield watch
    watch.close()


def test_a_rate_is_exact_whatever_was_skipped_in_between():
    rate = Rate(10 * NS_PER_S)
    assert rate.hz(0) is None
    for seq in (10, 11, 17, 30, 30):  # 30 came twice: said again to somebody who joined
        rate.add("a", seq, seq * 40 * NS_PER_MS, now_ns=seq)
    assert rate.hz(30) == pytest.approx(25.0)


def test_a_rate_begins_anew_with_another_sender_and_falls_to_zero_in_silence():
    rate = Rate(10 * NS_PER_S)
    for seq in (1, 2):
        rate.add("first", seq, seq * NS_PER_S, now_ns=0)
    assert rate.hz(0) == 1.0
    rate.add("second", 3, 3 * NS_PER_S, now_ns=0)
    assert rate.hz(0) is None
    rate.add("second", 8, 7 * NS_PER_S // 2, now_ns=0)
    assert rate.hz(NS_PER_S) == pytest.approx(10.0)
    assert rate.hz(3 * NS_PER_S) == 0.0


def test_a_listener_on_real_sockets_knows_rates_ages_instruction_and_robot(bus, fake_run, watch):
    seq = 0
    while seq < 400:
        seq += 1
        fake_run.speak(seq)
        threading.Event().wait(0.01)
        watch.step(time.monotonic_ns())
        found = watch.snapshot(time.monotonic_ns())
        if found.get("rates_hz", {}).get("cycles") and all(found["rates_hz"].values()) and found["robot"]:
            break
    rates = found["rates_hz"]
    assert rates["cycles"] == pytest.approx(10.0) and rates["actions"] == pytest.approx(10.0)
    assert rates["encodes"] == pytest.approx(25.0) and rates["states"] == pytest.approx(50.0)
    assert rates["frames"] == pytest.approx(75.0)  # the features say so: no image was subscribed to
    assert found["live"] and found["mode"] == "RUN" and found["robot"] == "two-joint"
    assert found["instruction"] == {
        "id": 1,
        "pending_id": None,
        "newest_id": 1,
        "newest_text": "touch the red block",
        "done": None,
    }
    json.dumps(found)


def test_only_actions_in_run_count_as_actions(watch):
    now_ns = heard(watch, *(cycle(n, mode=Mode.HOLD if n % 2 else Mode.RUN) for n in range(21)))
    rates = watch.snapshot(now_ns)["rates_hz"]
    assert (rates["cycles"], rates["actions"]) == (10.0, 5.0)


def test_figures_cover_the_window_and_counts_the_whole_run(watch):
    cycles = [cycle(n, missed_ticks=int(n == 3), limits=("velocity elbow",) if n == 4 else ()) for n in range(150)]
    now_ns = heard(watch, *cycles)
    found = watch.snapshot(now_ns)
    assert (found["missed_ticks"], found["missed_ticks_window"]) == (1, 0)
    assert (found["limits"], found["limits_window"]) == ({"velocity elbow": 1}, {})
    assert found["cycle_ms"]["max"] == 150.0 and found["cycle_ms"]["p50"] == 100.0  # of the last 101
    assert len(found["feature_ages_ms"]) == 101 and found["lost_records"] == 0


def test_reasons_are_one_event_while_only_their_numbers_change(watch):
    reasons = ["", "", "features 610 ms old", "features 710 ms old", ""]
    cycles = [cycle(n, Mode.HOLD if reason else Mode.RUN, reason) for n, reason in enumerate(reasons)]
    now_ns = heard(watch, *cycles)
    events = watch.snapshot(now_ns)["events"]
    assert [(event["mode"], event["reason"], event["cycles"]) for event in events] == [
        ("RUN", "", 1),
        ("HOLD", "features 710 ms old", 2),
        ("RUN", "", 2),
    ]
    assert [event["ago_s"] for event in events] == pytest.approx([0.0, 0.2, 0.4])


def test_an_encoder_that_starts_again_is_counted(watch):
    now_ns = heard(watch, cycle(0, epoch=None), *(cycle(n, epoch=5 + n // 3) for n in range(1, 7)))
    found = watch.snapshot(now_ns)
    assert (found["encoder_restarts"], found["encoder_epoch"]) == (2, 7)


def test_records_that_did_not_reach_the_listener_are_counted(watch):
    assert watch.snapshot(heard(watch, cycle(0), cycle(1), cycle(5)))["lost_records"] == 3


def test_processes_are_found_by_the_lock_they_hold_and_only_while_they_hold_it(bus):
    code = f"import sys\nfrom control.address import BusAddress, Lease\nbus = BusAddress({bus.address!r})\n"
    code += "lease = Lease(bus.endpoint('features'))\nprint('held', flush=True)\nsys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    assert find_processes(bus) == {"encoder": holder.pid}
    assert rss_mb(holder.pid) > 1 and scheduling(holder.pid) in ("normal", "SCHED_FIFO 20")
    holder.communicate()
    assert find_processes(bus) == {}
    assert rss_mb(holder.pid) is None and scheduling(holder.pid) == ""
    Path(bus.endpoint("features").removeprefix("ipc://") + ".lock").write_text(str(os.getpid()))
    assert find_processes(bus) == {}  # a lock left behind, and its id taken by another process
    with announced(bus, "page"), announced(bus, "recorder"), announced(bus, "page"):  # a second page goes unlisted
        assert find_processes(bus) == {"page": os.getpid(), "recorder": os.getpid()}
    assert find_processes(bus) == {}
    tcp = BusAddress("tcp://127.0.0.1:23450")
    lease = Lease(tcp.endpoint("command"))
    assert find_processes(tcp) == {"controller": os.getpid()}
    lease.release()
    assert find_processes(tcp) == {}
