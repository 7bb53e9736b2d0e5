"""Two evaluations side by side. The expected interval is the worked example of Newcombe (1998), table II (a)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from control.errors import ConfigError
from sim import eval_plots
from sim.eval_against import compare, load_report
from sim.eval_tables import tables
from sim.evaluation import wilson_interval


def row(successes: int, episodes: int) -> dict[str, Any]:
    return {
        "rate": successes / episodes,
        "episodes": episodes,
        "successes": successes,
        "ci95": list(wilson_interval(successes, episodes)),
        "time_s": 1.0,
        "path_m": 0.3,
        "jerk": None,
        "ended": {},
    }


def report(**rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "success": rows,
        "policy": "0123",
        "precision": "int8",
        "seed": 1000,
        "wordings": "unseen",
        "robot": "table",
    }


OURS = report(touch={"100": row(56, 70), "600": row(70, 70)}, pick={"100": row(10, 20)})
THEIRS = report(touch={"100": row(48, 80)}, pick={"100": row(20, 20), "600": row(1, 20)}) | {"precision": "bf16"}


def test_a_difference_is_in_points_with_the_published_interval():
    found = compare(OURS, THEIRS, "other.json")
    assert found["points"]["touch"]["100"]["points"] == pytest.approx(20.0)
    assert found["points"]["touch"]["100"]["ci95"] == pytest.approx([5.24, 33.39], abs=0.01)
    assert found["points"]["pick"]["100"]["points"] == pytest.approx(-50.0)


def test_only_what_both_have_is_compared_and_taken_together():
    points = compare(OURS, THEIRS, "other.json")["points"]
    assert {task: list(by_age) for task, by_age in points.items()} == {
        "touch": ["100"],
        "pick": ["100"],
        "all": ["100"],
    }
    assert (points["all"]["100"]["done"], points["all"]["100"]["of"]) == ([66, 68], [90, 100])
    assert points["all"]["100"]["points"] == pytest.approx(100 * 66 / 90 - 68)


def test_what_else_is_not_the_same_is_said():
    found = compare(OURS, THEIRS | {"seed": 7}, "other.json")
    assert found["differs"] == ["seed: 1000, there 7", "episodes: 20 or 70, there 20 or 80"]
    *_, table = tables(OURS | {"against": found})
    assert (
        table.title
        == "against policy 0123 in bf16 (other.json; seed: 1000, there 7; episodes: 20 or 70, there 20 or 80)"
    )
    assert list(table.columns[2].cells) == ["56 of 70", "10 of 20", "66 of 90"]
    assert list(table.columns[4].cells) == ["+20.0", "-50.0", "+5.3"]
    assert list(table.columns[5].cells)[0] == "+5.2 to +33.4"


def test_a_report_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "other.json"
    file.write_text(json.dumps(THEIRS))
    assert load_report(file) == THEIRS


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"success": {}, "policy": "0123"}', "it holds no successes"),
        ('{"success": {"touch": {"100": {"rate": 1.0}}}, "policy": "0123"}', "KeyError: 'successes'"),
        (json.dumps(report(touch={"100": row(1, 1) | {"successes": 2}})), "it holds no successes"),
        (json.dumps({**THEIRS, "policy": None}), "it holds no successes"),
    ],
)
def test_a_file_that_is_no_report_is_refused(tmp_path, text, why):
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"other.json is no report of `launch.py eval --report`") as refusal:
        load_report(file)
    assert why in str(refusal.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="none.json cannot be read: No such file or directory"):
        load_report(tmp_path / "none.json")


def test_the_plot_has_a_dotted_line_for_every_task_of_both(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn: list[Any] = []
    save = figure.Figure.savefig
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))[1])
    eval_plots.draw(OURS, tmp_path / "plot.png", THEIRS)
    success = drawn[0].axes[0]
    dotted = [line for line in success.lines if line.get_linestyle() == ":"]
    assert [list(line.get_ydata()) for line in dotted] == [[60.0], [100.0, 5.0]]
    assert "dotted: policy 0123 in bf16" in drawn[0].get_suptitle()
