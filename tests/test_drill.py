"""A part of the fault campaign, from the command line, against the real processes of the default config."""

import json
import re
import subprocess
import sys
from pathlib import Path

from control.drill.faults import KINDS, one_of_each

ROOT = Path(__file__).parents[1]
# A part of what it breaks; `launch.py drill --quick` does the rest.
PART = "encoder killed,controller stopped,sensors NaN,action scrambled,features of another policy"


def drill(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "launch.py"), "drill", *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=115, check=False)


def test_faults_of_every_part_are_noticed_survived_and_reported(tmp_path):
    file = tmp_path / "drill.json"
    done = drill("--only", PART, "--faults", "5", "--seed", "5", "--report", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^5 faults in [0-9.]+ min, 0 promises broken$", done.stdout, re.MULTILINE)
    found = json.loads(file.read_text())
    assert found["promises_broken"] == found["not_recovered"] == 0
    assert 0.0 < found["largest_step"] <= 1.0 + 1e-6
    rows = {(row["target"], row["kind"]): row for row in found["faults"]}
    assert rows["encoder", "killed"]["detected_by"] in ("supervisor", "controller")
    assert rows["controller", "stopped"]["held_ms"] < 320
    assert rows["sensors", "NaN"]["detected_by"] == "controller"
    assert rows["features", "of another policy"]["detected_by"] == "controller"
    assert all(row["recovered"] and row["promise_kept"] for row in found["faults"])


def test_words_that_name_no_fault_are_refused_with_those_that_do():
    done = drill("--only", "earthquake")
    assert done.returncode == 2
    assert "--only earthquake: no kind of fault has such a word; the words are NaN, action, " in done.stderr


def test_the_quick_drill_has_every_kind_of_fault():
    for seed in range(8):
        quick = one_of_each(seed)
        assert {kind.name for kind in quick} == {kind.name for kind in KINDS}
        assert len({(kind.target, kind.name) for kind in quick}) == len(quick)
