"""A drill in parts: each fault once, whoever injects it, and one report of all."""

import json

import pytest

from control.drill.campaign import Outcome
from control.drill.report import result, summary, write
from control.drill.workers import Part, run_parts
from control.errors import ConfigError, NotRunning

STAND_IN = """
import json, sys
words = sys.argv[1:]
if "fails" in words:
    sys.exit("no bus for me")
number = int(words[words.index("--part") + 1][0])
print(f"worker {number} speaks", flush=True)
row = ROW | {"seed": 5 - number}
open(words[words.index("--report") + 1], "w").write(json.dumps({"faults": [row]}))
"""


def outcome(seed=0, **changes):
    return Outcome(**({"kind": "killed", "target": "encoder", "seed": seed, "lasted_ms": 0.0} | changes))


@pytest.fixture
def launcher(tmp_path):
    file = tmp_path / "launch.py"
    file.write_text(STAND_IN.replace("ROW", repr(outcome().row())))
    return file


def test_the_parts_are_all_faults_each_once():
    parts = [Part.parse(f"{number}/3").of(range(4, 15)) for number in range(3)]
    assert [list(part) for part in parts] == [[4, 7, 10, 13], [5, 8, 11, 14], [6, 9, 12]]
    for wrong in ("3/3", "1", "a/b", "-1/2", ""):
        with pytest.raises(ConfigError, match="expected K/N with K from 0 to N-1"):
            Part.parse(wrong)


def test_outcomes_of_all_workers_come_back_in_the_order_of_their_seeds(launcher):
    shown = []
    found = run_parts(launcher, ["--faults", "2"], 2, lambda: False, shown.append)
    assert [each.seed for each in found] == [4, 5]
    assert sorted(shown) == ["worker 0 speaks", "worker 1 speaks"]


def test_a_worker_that_reports_nothing_is_an_error_with_what_it_said(launcher):
    shown = []
    with pytest.raises(NotRunning, match="worker 0 ended with code 1 and reported nothing; worker 1 ended"):
        run_parts(launcher, ["fails"], 2, lambda: False, shown.append)
    assert shown == ["no bus for me"] * 2


def test_workers_are_ended_when_the_drill_is(tmp_path):
    file = tmp_path / "launch.py"
    file.write_text("import time\ntime.sleep(100)\n")
    assert run_parts(file, [], 2, lambda: True, lambda line: None) == []


def test_an_outcome_survives_its_row():
    whole = outcome(7, held_ms=12.5, broken=["a"], was_stopped=True, detected_by="robot", largest_step=0.25)
    assert Outcome.of_row(json.loads(json.dumps(whole.row()))) == whole
    assert whole.row()["promise_kept"] is False


def test_a_killed_encoder_is_judged_by_what_it_takes_beyond_its_own_loading(tmp_path):
    slow_to_load = [outcome(seed, recover_ms=9000.0, load_ms=8000.0, recovered=True) for seed in range(20)]
    found = result(slow_to_load)
    assert found["promises_broken"] == 0
    assert found["encoder_killed_ms"]["recover_after_load"]["p95"] == 1000.0
    late = result([*slow_to_load, *(outcome(seed, recover_ms=9600.0, load_ms=8000.0) for seed in range(20, 25))])
    assert late["broken"] == ["killed encoder: p95 1600 ms beyond its own load time, limit 1500"]
    assert result([])["promises_broken"] == 0
    lines = summary(found | {"minutes": 1.0})
    assert lines[0] == "20 faults in 1.0 min, 0 promises broken"
    assert lines[-1].endswith("p95 9000 ms, of which loading 8000; beyond its own loading p95 1000 ms")
    write(tmp_path / "report.json", found)
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(found))
