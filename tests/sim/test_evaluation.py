"""What is measured of a policy and what it comes to. The oracle knows what a perfect policy would: it must master all
six tasks, follow every new instruction, and fail where it is kept from looking or listening."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from control.clock import NS_PER_MS, FakeClock
from control.config import load_config
from control.errors import ConfigError, ReportError
from control.safety import Freshness
from sim import eval_plots, eval_session
from sim.eval_tables import tables
from sim.evaluate import Lockstep, Outcome
from sim.evaluation import figures, live_age_ms, measure_encode_ms, plan, run_jobs, summarise, wilson_interval
from sim.tasks import KINDS
from tests.sim.oracle import OracleHead, SeeingTabletop, TruthEncoder


@pytest.fixture(scope="module")
def lockstep():
    default = load_config(Path(__file__).parents[2] / "configs" / "sim.yaml").loop_settings()
    loop = replace(default, period_ns=100 * NS_PER_MS, freshness=Freshness(1100.0, 1300.0, 10000.0))
    return Lockstep(loop, 300 * NS_PER_MS)


def planned(robot, count=1, ages=(100.0,), tasks="all", controls=0, expert=False):
    episodes = robot.episodes(5, count, tasks, "unseen")
    return plan(robot, episodes, ages, controls=controls, tasks=tasks, wordings="unseen", expert=expert)


def evaluated(lockstep, witness=None, keep=lambda job: True, **options):
    """(jobs, outcomes, figures) of the oracle."""
    clock = FakeClock()
    robot, head = SeeingTabletop(clock), OracleHead(clock)
    jobs = [job for job in planned(robot, **options) if keep(job)]
    outcomes = [
        outcome for _, outcome in run_jobs(enumerate(jobs), robot, clock, TruthEncoder(), head, lockstep, witness)
    ]
    return jobs, outcomes, figures(robot, jobs, outcomes)


def test_an_oracle_masters_every_task_at_100_ms_and_at_600_ms_as_the_expert_does(lockstep):
    _, _, found = evaluated(lockstep, count=2, ages=(100.0, 600.0), expert=True)
    assert set(found["success"]) == set(KINDS)
    assert {task: rows["100"]["rate"] for task, rows in found["success"].items()} == dict.fromkeys(KINDS, 1.0)
    assert sum(rows["600"]["successes"] for rows in found["success"].values()) >= 11  # of 12
    assert {task: row["rate"] for task, row in found["expert"].items()} == dict.fromkeys(KINDS, 1.0)
    for rows in found["success"].values():
        assert rows["100"]["time_s"] > 0.5 and rows["100"]["path_m"] > 0.1 and rows["100"]["jerk"] > 1.0


def test_an_oracle_follows_every_new_instruction_and_never_does_the_old_task(lockstep):
    _, _, found = evaluated(lockstep, count=2, controls=2, keep=lambda job: job.kind in ("", "swapped"))
    row = found["controls"]["swapped"]
    assert row["follows_new"] == 1.0 and row["does_old"] == 0.0
    assert row["episodes"] + row["over_before_the_swap"] == 12
    assert set(found["controls"]["by_task"]) == set(KINDS)


def test_an_oracle_that_may_not_look_or_listen_fails(lockstep):
    _, _, found = evaluated(lockstep, tasks="touch,push-left", controls=1, keep=lambda job: job.kind != "swapped")
    controls = found["controls"]
    assert (controls["empty"], controls["frozen_image"]) == (0.0, 0.0)
    assert controls["by_task"]["touch"]["frozen_first_image"] == 1.0
    assert controls["by_task"]["touch"]["chance"]["empty"] == 0.25
    assert controls["by_task"]["touch"]["chance"]["frozen_image"] == pytest.approx(0.03, abs=0.02)
    assert "swapped" not in controls


def test_an_episode_goes_the_same_way_whatever_ran_before_it(lockstep):
    clock = FakeClock()
    robot = SeeingTabletop(clock)
    jobs = list(enumerate(planned(robot, tasks="pick,bin", count=2)))

    def outcomes(chosen, clock, robot):
        return dict(run_jobs(chosen, robot, clock, TruthEncoder(), OracleHead(clock), lockstep))

    together = outcomes(jobs, clock, robot)
    for part in (jobs[1::2], jobs[::2]):
        clock = FakeClock()
        assert outcomes(part, clock, SeeingTabletop(clock)) == {number: together[number] for number, _ in part}


def test_every_episode_is_a_session_of_its_own_so_that_no_view_of_another_scene_is_used_again(lockstep):
    clock = FakeClock()
    robot, encoder = SeeingTabletop(clock), TruthEncoder()
    jobs = enumerate(planned(robot, tasks="touch", count=3))
    assert len(list(run_jobs(jobs, robot, clock, encoder, OracleHead(clock), lockstep))) == 3
    assert {session for session, _ in encoder.instructions} == {1, 2, 3}


def test_the_controls_stand_at_the_youngest_age_and_the_expert_once():
    jobs = planned(
        SeeingTabletop(FakeClock()), count=4, ages=(300.0, 100.0), tasks="touch,pick", controls=2, expert=True
    )
    by_kind = {}
    for job in jobs:
        by_kind.setdefault(job.kind, []).append(job)
    assert {kind: len(rows) for kind, rows in by_kind.items()} == {
        "": 16,
        "swapped": 4,
        "empty": 4,
        "frozen_image": 4,
        "frozen_first_image": 4,
        "expert": 8,
    }
    assert {job.age_ms for job in by_kind[""]} == {100.0, 300.0} and {job.age_ms for job in by_kind["empty"]} == {100.0}
    assert all(0.6 <= job.twist.swap_s <= 1.2 for job in by_kind["swapped"])
    assert all(job.twist.frozen_seed != job.episode.seed for job in by_kind["frozen_image"])


def test_nothing_to_run_is_refused():
    robot = SeeingTabletop(FakeClock())
    with pytest.raises(ConfigError, match="there is no episode to run"):
        plan(robot, [], [100.0], controls=0, tasks="all", wordings="seen", expert=False)
    with pytest.raises(ConfigError, match="expected at least 1 episode a task, got 0"):
        robot.episodes(1, 0, "all", "seen")


@pytest.mark.parametrize(
    ("encode_ms", "view_period_ms", "age_ms"),
    [(8.0, 40.0, 50.0), (250.0, 40.0, 500.0), (10.0, 40.0, 50.0), (0.1, 10, 20)],
)
def test_the_age_of_a_live_run_is_an_encode_and_the_time_to_the_next_features(encode_ms, view_period_ms, age_ms):
    assert live_age_ms(encode_ms, view_period_ms) == age_ms


def test_the_measured_encode_time_is_a_median():
    clock = FakeClock()
    robot = SeeingTabletop(clock)
    episode = robot.episodes(1, 1, "touch", "seen")[0]
    assert measure_encode_ms(TruthEncoder(), robot, episode, clock) == 500.0


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (38, 40, 0.8350, 0.9862), (40, 40, 0.9124, 1.0)],
)
def test_the_interval_is_wilsons(successes, episodes, low, high):
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=1e-4)


def test_without_episodes_the_rate_may_be_anything():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert summarise([])["rate"] is None and summarise([])["time_s"] is None


def test_a_summary_counts_successes_and_how_failures_ended():
    rows = [
        Outcome(True, 1.0, 0.2, 5.0),
        Outcome(True, 3.0, 0.4, None),
        Outcome(False, 2.0, 9.0, 9.0, ended="another block first"),
        Outcome(False, 12.0, 9.0, 9.0, ended="time up: grip"),
        Outcome(False, 12.0, 9.0, 9.0, ended="time up: grip"),
    ]
    assert summarise(rows) == {
        "rate": 0.4,
        "episodes": 5,
        "successes": 2,
        "ci95": wilson_interval(2, 5),
        "time_s": 2.0,
        "path_m": pytest.approx(0.3),
        "jerk": 5.0,
        "ended": {"time up: grip": 2, "another block first": 1},
    }


def test_a_swap_that_came_too_late_is_in_no_rate(lockstep):
    jobs = [
        job
        for job in planned(SeeingTabletop(FakeClock()), count=3, tasks="touch", controls=3)
        if job.kind in ("", "swapped")
    ]
    ended = [Outcome(True, 1.0, 0.1, 1.0)] * 3
    swaps = [
        Outcome(True, 1.0, 0.1, 1.0),
        Outcome(False, 1.0, 0.1, 1.0, did_old=True),
        Outcome(False, 1.0, 0.1, 1.0, too_soon=True),
    ]
    row = figures(SeeingTabletop(FakeClock()), jobs, ended + swaps)["controls"]["swapped"]
    assert (row["follows_new"], row["does_old"], row["episodes"], row["over_before_the_swap"]) == (0.5, 0.5, 2, 1)


@pytest.fixture(scope="module")
def report(lockstep):
    found = evaluated(lockstep, count=1, ages=(100.0, 600.0), tasks="touch,push-left", controls=1, expert=True)[2]
    return json.loads(json.dumps(found)) | {"policy": "stand-in", "wordings": "unseen"}


def test_the_report_is_plain_json_with_the_keys_that_readers_look_for(report):
    row = report["success"]["touch"]["600"]
    assert {"rate", "episodes", "ci95", "time_s", "path_m", "jerk"} <= set(row)
    assert {"follows_new", "does_old"} <= set(report["controls"]["swapped"])
    assert {"empty", "frozen_image", "frozen_first_image"} <= set(report["controls"])


def test_the_tables_show_every_task_age_and_control(report):
    success, controls = tables(report)
    assert list(success.columns[1].cells) == ["100", "600", "expert"] * 2
    assert list(controls.columns[0].cells) == ["touch", "push-left", "all"]
    assert list(controls.columns[3].cells)[0] == "0.0% (25.0%)"


def test_the_plot_is_a_png(report, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "deep" / "plot.png"
    eval_plots.check_plot(file)
    eval_plots.draw(report, file)
    assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 20_000


def test_a_plot_that_the_disk_refuses_is_said(report):
    pytest.importorskip("matplotlib")
    with pytest.raises(ReportError, match=r"--plot /dev/full cannot be written \(No space left on device\)"):
        eval_plots.draw(report, Path("/dev/full"))


def test_figures_that_the_disk_refuses_are_shown_all_the_same(lockstep, monkeypatch, capsys):
    clock = FakeClock()
    monkeypatch.setattr(eval_session, "_robot", lambda name, options, clock: SeeingTabletop(clock))
    monkeypatch.setattr(eval_session, "FakeClock", lambda: clock)
    asked = eval_session.Asked("touch", "unseen", None, 1, 5, "100", 0, False, None, None, Path("/dev/full"))
    session = eval_session.Session(asked, "tabletop", {}, lockstep)
    with pytest.raises(ReportError, match="--report /dev/full cannot be written"):
        session.lead(lambda: (TruthEncoder(), OracleHead(clock)), 1, [], {"policy": "oracle"}, lambda line: None)
    assert "touch" in capsys.readouterr().out


def test_without_matplotlib_a_plot_is_refused_before_the_work(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"--plot needs matplotlib, .* pip install 'saccade\[bench\]'"):
        eval_plots.check_plot(tmp_path / "plot.png")
