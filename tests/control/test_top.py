"""`top`: how it looks on any terminal and on none, and that nothing from the wire acts on one."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.console import Console
from speaking import Speaking, cycle, heard

from control.clock import NS_PER_S
from control.errors import NotRunning
from control.messages import Instruction, Mode
from control.plain_text import printable
from control.safety import Freshness
from control.top import Top
from control.top_view import histogram, panel, plain, sparkline
from control.watch import Watch

ROOT = Path(__file__).resolve().parents[2]
FRESHNESS = Freshness(400, 600, 10_000)
ADDRESS = "ipc://here"


@pytest.fixture
def watch(bus):
    watch = Watch(bus)
    yield watch
    watch.close()


def drawn(snapshot, width=100):
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(panel({"processes": {}} | snapshot, FRESHNESS, ADDRESS, width))
    return console.file.getvalue()


def test_a_run_that_ends_is_said_and_the_next_one_counts_from_nothing(watch):
    now_ns = heard(watch, *(cycle(n, missed_ticks=1) for n in range(20)), cycle(20, Mode.STOP, "the run is ending"))
    assert watch.snapshot(now_ns)["live"]
    found = watch.snapshot(now_ns + 3 * NS_PER_S)
    assert not found["live"] and found["silent_s"] == 3.0
    text = drawn(found)
    assert "no run: the last one has ended, nothing heard for 3 s; the last was STOP: the run is ending" in text
    found["processes"] = {"controller": {"pid": 7, "rss_mb": 9.0, "first_rss_mb": 8.0, "scheduling": "normal"}}
    assert "controller (process 7) is there but silent, nothing heard for 3 s" in drawn(found)
    later = {"stamp_ns": now_ns + NS_PER_S, "deadline_ns": now_ns + NS_PER_S}
    found = watch.snapshot(heard(watch, cycle(0, **later), cycle(1, **later)))
    assert (found["live"], found["missed_ticks"], found["runs_seen"], len(found["events"])) == (True, 0, 2, 1)


def test_before_a_run_it_waits_and_says_so(watch):
    found = watch.snapshot(0)
    assert not found["live"]
    assert "no run at ipc://here yet: waiting; start one with `launch.py run`" in drawn(found)
    assert plain(found, ADDRESS) == "no run at ipc://here yet: waiting; start one with `launch.py run`"
    watch._robot = "two-joint"
    said = plain(watch.snapshot(0), ADDRESS)
    assert said == "robot two-joint is there, its controller is not heard yet: waiting"


def test_nothing_from_the_wire_is_acted_on_by_the_terminal(watch):
    evil = "red \x1b]0;owned\x07\x9b31m\r\n[bold]block[/bold]"
    watch._robot, watch._instruction = evil, Instruction(1, 1, 1, 1, evil)
    now_ns = heard(watch, cycle(0, Mode.HOLD, evil, limits=(evil,)))
    found = watch.snapshot(now_ns)
    for text in (drawn(found, 200), plain(found | {"processes": {}}, ADDRESS)):
        assert all(letter.isprintable() or letter == "\n" for letter in text)
        assert "[bold]block[/bold]" in text  # shown, not interpreted
    assert printable("é “ok” 漢\x1b\u202e") == "é “ok” 漢··"


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_every_line_fits_a_terminal_of_any_width(watch, width):
    watch._instruction = Instruction(1, 1, 1, 1, "touch the red block " * 20)
    long = "features 700 ms old " * 10
    now_ns = heard(watch, *(cycle(n, Mode.HOLD, long, 10.0 * n, limits=("velocity elbow",)) for n in range(90)))
    lines = drawn(watch.snapshot(now_ns), width).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[2].endswith("…")  # the long instruction is cut, not wrapped
    assert any(line.startswith(" HOLD ") for line in lines[:3])


def test_the_ladder_shows_where_the_age_stands_and_where_it_lay(watch):
    now_ns = heard(watch, *(cycle(n, age_ms=age) for n, age in enumerate((10.0, 10.0, 590.0, 300.0))))
    lines = drawn(watch.snapshot(now_ns), 71).splitlines()  # 60 characters for 600 ms
    (ladder,) = (line for line in lines if line.startswith("  0..600"))
    (spread,) = (line for line in lines if line.startswith("  spread"))
    (path,) = (line for line in lines if line.startswith("  so far"))
    assert ladder[11:] == "█" * 31 + "─" * 9 + "┊" + "─" * 19
    assert [place for place, letter in enumerate(spread[11:]) if letter != " "] == [1, 30, 59]
    assert path[11:] == "▁▁█▅"


def test_bars_scale_cut_and_show_gaps():
    assert sparkline([0, 50, 100, None], 100, 10) == "▁▅█·"
    assert sparkline([0, 100, 0, 0], 100, 2) == "█▁"  # the largest of each share
    assert sparkline([500], 100, 4) == "█" and sparkline([], 100, 4) == ""
    assert histogram([0, 0, 0, 0, 99, 500], 100, 4) == "█  ▅"
    assert histogram([], 100, 3) == "   "


def top(*words, **options):
    return subprocess.Popen([sys.executable, str(ROOT / "launch.py"), "top", *words], text=True, **options)


def test_once_prints_one_view_or_json_and_ends(bus):
    with Speaking(bus):
        words = ("--once", "--set", f"bus.address={bus.address}")
        view = top(*words, stdout=subprocess.PIPE)
        values = top(*words, "--json", stdout=subprocess.PIPE)
        text, found = view.communicate(timeout=60)[0], json.loads(values.communicate(timeout=60)[0])
    assert (view.returncode, values.returncode) == (0, 0)
    assert " RUN " in text and "#1 “touch the red block”" in text and "\x1b" not in text
    assert "memory MB  controller" in text and "robot" in text and "not found here" not in text
    assert found["live"] and found["mode"] == "RUN" and found["rates_hz"]["cycles"] == pytest.approx(10.0)
    assert found["processes"]["controller"]["pid"] == os.getpid()


def test_top_loads_no_torch(bus):
    code = f"import sys, launch\nsys.argv = ['launch.py', 'top', '--once', '--set', 'bus.address={bus.address}']\n"
    code += "try:\n    launch.main()\nexcept SystemExit as end:\n    assert end.code == 1, end.code\n"
    code += "print([name for name in ('torch', 'transformers', 'mujoco') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "[]", result.stderr


def test_memory_says_what_has_grown_and_who_is_not_found(watch):
    found = watch.snapshot(heard(watch, cycle(0), cycle(1)))
    controller = {"pid": 7, "rss_mb": 252.9, "first_rss_mb": 252.8, "scheduling": "SCHED_FIFO 20"}
    page = {"pid": 8, "rss_mb": 73.04, "first_rss_mb": 73.0, "scheduling": "normal"}
    found["processes"] = {"controller": controller, "robot": None, "encoder": None, "page": page}
    text = drawn(found)
    assert "memory MB  controller 253 (+0.1)  robot not found here  encoder not found here  page 73\n" in text
    assert "lateness, SCHED_FIFO 20" in text


def test_once_without_a_run_fails_and_says_how_to_start_one(bus):
    with pytest.raises(NotRunning, match="no controller is heard at ipc://.* within 3 s; start one with"):
        Top(bus, FRESHNESS, Console(file=io.StringIO())).once(lambda: False)


def test_without_a_terminal_it_prints_a_line_a_second_through_the_end_of_a_run_and_the_next(bus):
    shown = top("--set", f"bus.address={bus.address}", stdout=subprocess.PIPE)
    try:
        lines = iter(shown.stdout.readline, "")
        assert "yet: waiting; start one with `launch.py run`" in next(lines)
        for _ in range(2):
            with Speaking(bus):
                line = next(line for line in lines if line.startswith("RUN · actions 10.0 Hz"))
                assert "feature age 50 ms" in line and "#1 “touch the red block”" in line
            assert any(line.startswith("no run: the last one has ended") for line in lines)
        shown.send_signal(signal.SIGINT)
        assert shown.wait(30) == 0
    finally:
        shown.kill()
        shown.wait()
        shown.stdout.close()


def test_on_a_narrow_terminal_it_draws_until_q_and_leaves_the_terminal_as_it_was(bus):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (12, 44))
    before = termios.tcgetattr(theirs)
    with Speaking(bus):
        words = ("--set", f"bus.address={bus.address}")
        environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
        shown = top(*words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm"})
        seen = b""
        try:
            while b" RUN " not in seen:
                seen += os.read(ours, 4096)
            assert termios.tcgetattr(theirs) != before
            os.write(ours, b"q")
            while shown.poll() is None:  # a terminal that nobody reads would block it
                seen += os.read(ours, 4096) if wait_for_bytes(ours) else b""
            while wait_for_bytes(ours):
                seen += os.read(ours, 4096)
        finally:
            shown.kill()
            shown.wait()
    assert shown.returncode == 0, seen
    assert b"Traceback" not in seen and seen.count(b"\x1b[?1049h") == seen.count(b"\x1b[?1049l") == 1
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def wait_for_bytes(descriptor):
    return bool(select.select([descriptor], [], [], 0.1)[0])
