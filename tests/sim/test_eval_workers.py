"""Worker processes: what they say comes together, and none is left when the parent is done or fails."""

import os
import sys
import time

import pytest

from control.errors import ConfigError
from sim.eval_workers import WorkerFailed, commands_for, heard, outcomes_of, shard_of, tell
from sim.evaluate import Outcome

ENDED = Outcome(True, 1.25, 0.5, None, ("red", "blue"), did_old=True, ended="x")
SAY = "import sys; sys.path.insert(0, '.'); from sim.eval_workers import tell; from sim.evaluate import Outcome;"


def python(code):
    return [sys.executable, "-c", code]


def test_an_outcome_comes_back_as_it_was_told(capsys):
    tell(3, ENDED)
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and heard(line) == (3, ENDED)
    assert heard("warning: something\n") is None


def test_the_outcomes_of_all_workers_come_and_what_they_say_besides_is_shown_once():
    shown = []
    code = SAY + "print('a warning'); [tell(i, Outcome(True, float(i), 0.0, None)) for i in range({0}, 6, 2)]"
    told = dict(outcomes_of([python(code.format(0)), python(code.format(1))], shown.append))
    assert {number: outcome.time_s for number, outcome in told.items()} == {i: float(i) for i in range(6)}
    assert shown == ["a warning"]


def pid_in(shown):
    return next(int(line.split()[1]) for line in shown if line.startswith("pid"))


def is_gone(pid):
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_a_worker_that_fails_ends_the_others_and_its_last_words_are_told():
    shown = []
    lasting = python("import os, time; print('pid', os.getpid(), flush=True); time.sleep(60)")
    failing = python("import time; time.sleep(0.5); print('error: no such policy'); raise SystemExit(2)")
    with pytest.raises(WorkerFailed, match="worker 1 ended with code 2: error: no such policy"):
        list(outcomes_of([lasting, failing], shown.append))
    assert is_gone(pid_in(shown))


def test_an_interrupt_of_the_parent_ends_every_worker():
    shown = []
    code = SAY + "import os, time; print('pid', os.getpid()); tell(0, Outcome(True, 0.0, 0.0, None)); time.sleep(60)"
    outcomes = outcomes_of([python(code)], shown.append)
    assert next(outcomes)[0] == 0
    with pytest.raises(KeyboardInterrupt):
        outcomes.throw(KeyboardInterrupt)
    assert is_gone(pid_in(shown))


def test_every_worker_gets_its_shard():
    assert [command[-2:] for command in commands_for(2, ["launch.py", "eval"])] == [
        ["--shard", "0/2"],
        ["--shard", "1/2"],
    ]
    assert shard_of("1/2") == (1, 2)
    for wrong in ("2/2", "1", "a/b", "-1/2", ""):
        with pytest.raises(ConfigError, match="--shard takes i/n with i < n"):
            shard_of(wrong)
