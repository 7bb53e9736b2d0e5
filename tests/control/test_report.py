import resource
from pathlib import Path

import pytest

from control.clock import NS_PER_MS, NS_PER_S
from control.environment import environment
from control.errors import ReportError
from control.messages import Cycle, Features, Mode
from control.report import RunFigures, percentiles, summary, table, write_report


def cycle(seq, mode=Mode.RUN, **changes):
    deadline_ns = 10 * NS_PER_S + seq * 100 * NS_PER_MS
    fields = {
        "seq": seq,
        "stamp_ns": deadline_ns,
        "deadline_ns": deadline_ns,
        "lateness_ms": 0.1,
        "cycle_ms": 1.0,
        "stage_ms": {"head": 0.5},
        "state_age_ms": 10.0,
        "feature_age_ms": 100.0,
        "feature_seq": seq,
        "encoder_epoch": 1,
        "encode_ms": 40.0,
        "instruction_id": 1,
        "pending_id": None,
        "mode": mode,
        "reason": "" if mode is Mode.RUN else "features 700 ms old",
        "limits": (),
        "missed_ticks": 0,
    }
    return Cycle(**(fields | changes))


def features(seq, encode_ms=40.0):
    import numpy as np

    stamp_ns = 10 * NS_PER_S + seq * 40 * NS_PER_MS
    return Features(seq, stamp_ns, 1, 1, 1, 1, 1, "p", np.ones((1, 1), np.float32), {}, encode_ms, {"vision": 20.0})


@pytest.fixture
def figures():
    return RunFigures(100.0, 40.0, started_ns=5 * NS_PER_S)


def test_start_up_is_stated_and_is_in_no_other_figure(figures):
    figures.add_features(features(0, encode_ms=900.0))
    for seq in range(10):
        figures.add_cycle(cycle(seq, Mode.INIT, lateness_ms=50.0, missed_ticks=3))
    for seq in range(10, 21):
        figures.add_cycle(cycle(seq, switch_ms=6000.0 if seq == 10 else None))
        figures.add_features(features(seq))
    report = figures.report()
    assert (report["cycles"], report["warm_up_cycles"], report["missed_ticks"]) == (11, 10, 0)
    assert report["startup_s"] == 6.0
    assert report["lateness_ms"]["max"] == 0.1 and report["encode_ms"]["max"] == 40.0
    assert report["switch_ms"] == []
    assert report["modes"] == {"INIT": 10, "RUN": 11, "HOLD": 0, "STOP": 0}


def test_the_memory_of_an_hour_is_there_from_the_start_and_the_newest_values_stay(figures, monkeypatch):
    monkeypatch.setattr("control.report._WINDOW", 5)
    small = RunFigures(100.0, 40.0, started_ns=0)
    before = small._lateness_ms._values.nbytes
    for seq in range(12):
        small.add_cycle(cycle(seq, lateness_ms=float(seq)))
    assert small._lateness_ms._values.nbytes == before == 5 * 8
    assert sorted(small._lateness_ms.values()) == [7.0, 8.0, 9.0, 10.0, 11.0]
    assert small.report()["lateness_ms"]["max"] == 11.0 and small.report()["cycles"] == 12
    assert len(figures._lateness_ms._values) == 36_000


def test_actions_and_encodes_are_counted_each_by_itself(figures):
    for seq in range(101):
        figures.add_cycle(cycle(seq))
    for seq in range(51):
        figures.add_features(features(seq))
    report = figures.report()
    assert report["action_hz"] == pytest.approx(10.0)
    assert report["encode_hz"] == pytest.approx(25.0)


def test_hold_and_missed_ticks_lower_the_action_rate(figures):
    for seq in range(101):
        figures.add_cycle(cycle(seq, Mode.HOLD if 40 <= seq < 60 else Mode.RUN))
    report = figures.report()
    assert report["action_hz"] == pytest.approx(8.0)
    assert report["reasons"] == {"features # ms old": 20}


def test_lost_records_are_counted_and_not_taken_for_missed_ticks(figures):
    for seq in (0, 1, 2, 7, 8):
        figures.add_cycle(cycle(seq))
    report = figures.report()
    assert (report["lost_records"], report["missed_ticks"]) == (4, 0)


def test_ages_over_the_bound_are_counted(figures):
    figures.add_cycle(cycle(0))
    for seq in range(1, 4):
        figures.add_cycle(cycle(seq, feature_age_ms=219.0 + seq))
        figures.add_features(features(seq))
    report = figures.report()
    assert report["feature_age_bound_ms"] == 220.0
    assert report["feature_age_over_bound"] == 2


def test_memory_stays_bounded_in_a_run_without_end(figures):
    for seq in range(40_000):
        figures.add_cycle(cycle(seq))
    assert figures.report()["cycles"] == 40_000
    assert len(figures._lateness_ms.values()) == 36_000


def test_an_empty_run_has_a_report_and_a_table(figures):
    report = figures.report()
    assert report["action_hz"] is None and report["startup_s"] is None and report["lateness_ms"] == {}
    assert table(report).row_count == 0
    assert summary(report)[0] == "actions none, encodes none, missed ticks 0 of 0"


def test_the_share_of_a_core_is_told_of_each_process_that_was_measured(figures):
    lines = summary(figures.report() | {"core_share": {"controller": 0.0312, "recorder": 0.074, "page": None}})
    assert "share of one core: controller 3.1%, recorder 7.4%" in lines


def test_percentiles_of_known_numbers():
    assert percentiles(range(101)) == {"p50": 50.0, "p95": 95.0, "p99": 99.0, "max": 100.0}


def test_a_figure_knows_where_it_was_measured():
    where = environment()
    assert where["machine"]["cores"] >= 1 and where["machine"]["processor"] and where["machine"]["instructions"]
    assert {"python", "numpy", "pyzmq", "torch"} <= set(where["versions"])
    assert where["commit"]


def test_a_report_that_the_disk_refuses_is_said_and_no_half_of_it_is_left(tmp_path):
    with pytest.raises(ReportError, match=r"--report /dev/full cannot be written \(No space left on device\): likely"):
        write_report(Path("/dev/full"), {"a": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(ReportError, match=r"r.json cannot be written \(File too large\)"):
            write_report(tmp_path / "r.json", {"figures": "1" * 20_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
