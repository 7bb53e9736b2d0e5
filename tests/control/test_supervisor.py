"""The supervisor with small real subprocesses in place of robot, encoder and controller."""

import sys
import threading
import time
from pathlib import Path

import pytest

from control import supervisor
from control.bus import Publisher
from control.child import Child
from control.command_bus import CommandServer
from control.errors import BusError
from control.messages import Mode, Reply
from control.report import RunFigures, summary
from control.script import Script
from control.supervisor import EXIT_DIED, EXIT_DONE, EXIT_NOT_POSSIBLE, EXIT_USAGE, RECORDER, Supervisor
from tests.control.test_report import cycle

FOREVER = "import time\nwhile True: time.sleep(0.05)"
DEAF = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\n" + FOREVER


class Stage:
    def __init__(self, bus):
        self.bus, self.lines = bus, []

    def supervise(self, texts=(), start_timeout_s=60.0, encoder_hung_s=60.0, **programs):
        self.children = {
            name: Child(name, [sys.executable, "-c", code], is_vital=name != RECORDER)
            for name, code in programs.items()
        }
        return Supervisor(
            self.bus,
            list(self.children.values()),
            Script(self.bus, list(texts), 1.0),
            RunFigures(100.0, 40.0, time.monotonic_ns()),
            max_encoder_restarts=2,
            restart_backoff_s=0.05,
            start_timeout_s=start_timeout_s,
            encoder_hung_s=encoder_hung_s,
            show=self.lines.append,
            show_status=lambda text: None,
            is_terminal=False,
        )

    def none_left(self):
        return not any(child.is_running() for child in self.children.values())


@pytest.fixture
def stage(bus):
    return Stage(bus)


def test_a_dying_encoder_is_restarted_after_growing_pauses_and_then_given_up(stage):
    supervised = stage.supervise(robot=FOREVER, encoder="raise SystemExit(1)")
    assert supervised.run(lambda: False, None) == EXIT_DIED
    assert [line.partition("again in ")[2].partition(",")[0] for line in stage.lines if "again in" in line] == [
        "0.05 s",
        "0.1 s",
    ]
    assert "encoder ended with code 1 for good after 2 restarts in a row" in stage.lines[-1]
    assert supervised.encoder_restarts == 2 and stage.none_left()


def test_an_encoder_that_loads_for_long_and_dies_of_its_first_frame_is_given_up_too(stage, monkeypatch):
    monkeypatch.setattr(supervisor, "_STABLE_S", 0.1)
    supervised = stage.supervise(robot=FOREVER, encoder="import time\ntime.sleep(0.4)\nraise SystemExit(1)")
    assert supervised.run(lambda: supervised.encoder_restarts > 3, None) == EXIT_DIED
    assert "for good after 2 restarts in a row" in stage.lines[-1]


WORKS_AND_DIES = """
import os, time
import numpy as np
from control.address import BusAddress
from control.bus import Publisher
from control.messages import Features
out = Publisher(BusAddress(os.environ["SACCADE_TEST_BUS"]), "features")
for seq in range(60):
    now = time.monotonic_ns()
    out.send(Features(seq, now, 1, now, 1, 1, os.getpid(), "p", np.ones((1, 2), np.float32), {}, 5.0))
    time.sleep(0.02)
raise SystemExit(1)
"""


def test_an_encoder_that_worked_for_a_while_begins_again_with_the_shortest_pause(stage, monkeypatch):
    monkeypatch.setattr(supervisor, "_STABLE_S", 0.2)
    monkeypatch.setenv("SACCADE_TEST_BUS", stage.bus.address)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    supervised = stage.supervise(robot=FOREVER, encoder=WORKS_AND_DIES)
    assert supervised.run(lambda: supervised.encoder_restarts > 3, None) == EXIT_DONE
    assert {line.partition("again in ")[2] for line in stage.lines if "again in" in line} == {"0.05 s, the robot holds"}


def test_an_encoder_that_cannot_start_at_all_is_not_restarted(stage):
    supervised = stage.supervise(robot=FOREVER, encoder="raise SystemExit(2)")
    assert supervised.run(lambda: False, None) == EXIT_USAGE
    assert supervised.encoder_restarts == 0 and stage.none_left()


@pytest.mark.parametrize("victim", ["robot", "controller"])
def test_the_end_of_robot_host_or_controller_ends_the_run(stage, victim):
    programs = {"robot": FOREVER, "encoder": FOREVER, "controller": FOREVER} | {victim: "raise SystemExit(1)"}
    assert stage.supervise(**programs).run(lambda: False, None) == EXIT_DIED
    assert any(f"{victim} ended with code 1: ending the run with the robot held" in line for line in stage.lines)
    assert stage.none_left()


def test_a_child_that_does_not_listen_is_killed_and_the_whole_end_has_a_bound(stage):
    supervised = stage.supervise(robot=DEAF, encoder=DEAF, controller=DEAF)
    assert supervised.run(lambda: len(stage.lines) >= 3, None) == EXIT_DONE
    assert stage.none_left()
    patience = supervisor._ANSWER_S, supervisor._CONTROLLER_S, supervisor._ROBOT_S, supervisor._ENCODER_S
    assert sum(patience) + supervisor._ANSWER_S + 3 * 0.2 <= 5.0


def test_the_output_of_a_child_is_shown_under_its_name_to_the_last_line(stage):
    code = "import sys\nprint('first')\nprint('last words', file=sys.stderr)\nraise SystemExit(1)"
    stage.supervise(robot=code).run(lambda: False, None)
    assert "     robot | first" in stage.lines and "     robot | last words" in stage.lines


def test_a_run_that_never_reaches_run_is_given_up_with_its_reason(stage):
    supervised = stage.supervise(["touch it"], start_timeout_s=0.2, robot=FOREVER)
    assert supervised.run(lambda: False, 5.0) == EXIT_NOT_POSSIBLE
    assert "no RUN cycle within 0.2 s: the controller never spoke" in stage.lines[-1]


def test_episodes_that_never_reach_run_are_given_up_also_without_a_duration(stage, bus):
    cycles = Publisher(bus, "cycle", queue=1000)
    supervised = stage.supervise(["touch it", "lift it"], start_timeout_s=1.0, robot=FOREVER)
    ends_s = time.monotonic() + 15.0

    def stopped():
        cycles.send(cycle(1, Mode.INIT, reason="waiting for the first features of instruction 1"))
        return time.monotonic() > ends_s

    assert supervised.run(stopped, None) == EXIT_NOT_POSSIBLE
    assert "no RUN cycle within 1 s: waiting for the first features of instruction 1" in stage.lines[-1]
    cycles.close()


def test_episodes_that_were_all_refused_end_as_not_possible(stage, bus):
    cycles, server = Publisher(bus, "cycle", queue=1000), CommandServer(bus)
    supervised = stage.supervise(["touch it"], robot=FOREVER)
    ends_s = time.monotonic() + 15.0

    def stopped():
        cycles.send(cycle(1, Mode.INIT, reason="no instruction yet"))
        if (received := server.poll()) is not None:
            server.reply(received[0], Reply(received[1].request_id, "failed", "it is no instruction"))
        return time.monotonic() > ends_s

    assert supervised.run(stopped, None) == EXIT_NOT_POSSIBLE
    assert "no RUN cycle in any episode: no instruction yet" in stage.lines[-1]
    cycles.close()
    server.close()


def test_a_run_waits_for_what_an_earlier_one_has_left_to_end(stage, bus):
    holder = Publisher(bus, "action")
    threading.Timer(0.3, holder.close).start()
    supervised = stage.supervise(controller=FOREVER)
    assert supervised.run(lambda: stage.children["controller"].is_running(), None) == EXIT_DONE
    [told] = [line for line in stage.lines if "waiting at most" in line]
    assert "for an earlier process to end: bus address" in told and "is in use by process" in told


def test_a_run_beside_a_process_that_holds_its_topics_is_refused_before_anything_starts(stage, bus, monkeypatch):
    monkeypatch.setattr(supervisor, "_ORPHANS_S", 0.2)
    holder = Publisher(bus, "action")
    supervised = stage.supervise(controller=FOREVER)
    with pytest.raises(BusError, match="another run is going on"):
        supervised.run(lambda: False, None)
    assert stage.none_left()
    holder.close()


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("print('error: the disk is full')\nraise SystemExit(1)", "ended with code 1"),
        ("raise SystemExit(2)", "ended with code 2"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL"),
    ],
)
def test_the_end_of_a_recorder_is_told_once_and_the_run_goes_on(stage, code, how):
    supervised = stage.supervise(robot=FOREVER, recorder=code)
    told_s: list[float] = []

    def stopped():
        if not told_s and any(how in line for line in stage.lines):
            told_s.append(time.monotonic())
        return bool(told_s) and time.monotonic() - told_s[0] > 0.5

    assert supervised.run(stopped, None) == EXIT_DONE
    assert sum("the run goes on without it" in line for line in stage.lines) == 1
    assert f"       run | recorder {how}: the run goes on without it" in stage.lines
    result = supervised.result()
    said = "error: the disk is full" if "print" in code else ""
    assert result["recording"] == {"is_whole": False, "ended": how, "said": said}
    assert any(how in line for line in summary(result)) and stage.none_left()


LISTENER = """
import signal, sys, time
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
print("listening", flush=True)
while not stopped: time.sleep(0.01)
print("a.mcap: 12.0 s")
"""


def test_a_recorder_ends_after_the_robot_so_that_it_hears_everything(stage):
    supervised = stage.supervise(robot=LISTENER.replace("a.mcap", "robot"), recorder=LISTENER)
    assert supervised.run(lambda: sum("listening" in line for line in stage.lines) == 2, None) == EXIT_DONE
    assert stage.lines[-2:] == ["     robot | robot: 12.0 s", "  recorder | a.mcap: 12.0 s"]
    result = supervised.result()
    assert result["recording"] == {"is_whole": True, "ended": "ended with code 0", "said": "a.mcap: 12.0 s"}
    assert "recording a.mcap: 12.0 s" in summary(result)


def test_a_recorder_that_hangs_is_killed_after_all_others(stage):
    supervised = stage.supervise(robot=DEAF, encoder=DEAF, controller=DEAF, recorder=DEAF)
    assert supervised.run(lambda: len(stage.lines) >= 4, None) == EXIT_DONE
    assert stage.none_left()
    result = supervised.result()
    assert result["recording"]["ended"] == "was killed by SIGKILL"
    assert "recording ended early (was killed by SIGKILL)" in "\n".join(summary(result))


def test_a_run_without_a_recorder_reports_none(stage):
    supervised = stage.supervise(robot=FOREVER)
    supervised.run(lambda: bool(supervised.status_line()), None)
    assert supervised.result()["recording"] is None
