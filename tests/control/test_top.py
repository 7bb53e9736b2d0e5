"""`top`: what a listener makes of the bus, how it looks, and that it is only a listener."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rig import two_joint_spec

from control.address import BusAddress, Lease
from control.bus import Publisher
from control.clock import NS_PER_MS, NS_PER_S
from control.errors import NotRunning
from control.holders import find_processes, rss_mb, scheduling
from control.messages import Cycle, Features, Instruction, Mode, State
from control.safety import Freshness
from control.top import Top
from control.top_view import histogram, panel, plain, sparkline
from control.watch import Rate, Watch, printable

ROOT = Path(__file__).resolve().parents[2]
FRESHNESS = Freshness(400, 600, 10_000)
PERIOD_NS = 100 * NS_PER_MS
ADDRESS = "ipc://here"


def cycle(seq, mode=Mode.RUN, reason="", age_ms=50.0, epoch=1, **changes):
    fields = {
        "seq": seq,
        "stamp_ns": NS_PER_S + seq * PERIOD_NS,
        "deadline_ns": NS_PER_S + seq * PERIOD_NS,
        "lateness_ms": 0.1,
        "cycle_ms": 1.0 + seq,
        "stage_ms": {},
        "state_age_ms": 5.0,
        "feature_age_ms": age_ms,
        "feature_seq": seq,
        "encoder_epoch": epoch,
        "encode_ms": 8.0,
        "instruction_id": 1,
        "pending_id": None,
        "mode": mode,
        "reason": reason,
        "limits": (),
        "missed_ticks": 0,
    }
    return Cycle(**(fields | changes))


def features(seq, epoch=1):
    tokens = np.zeros((1, 4), np.float32)
    stamp_ns = NS_PER_S + seq * 40 * NS_PER_MS
    return Features(seq, stamp_ns, 2 * seq, stamp_ns, 1, 1, epoch, "policy", tokens, {}, 8.0, {"vision": 4.0})


class FakeRun:
    """What robot, encoder and controller publish, from this process, on real sockets."""

    def __init__(self, bus):
        self._ports = {topic: Publisher(bus, topic) for topic in ("robot", "state", "features", "instruction")}
        self._ports["cycle"] = Publisher(bus, "cycle", queue=1000)
        self._lease = Lease(bus.endpoint("command"))

    def send(self, topic, noun):
        self._ports[topic].send(noun)

    def speak(self, seq, text="touch the red block"):
        """Everything of one tick."""
        self.send("robot", two_joint_spec())
        self.send("state", State(seq, NS_PER_S + seq * 20 * NS_PER_MS, np.zeros(2)))
        self.send("features", features(seq))
        self.send("instruction", Instruction(seq, 1, 1, 1, text))
        self.send("cycle", cycle(seq))

    def close(self):
        for port in self._ports.values():
            port.close()
        self._lease.release()


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


def heard(watch, *cycles):
    """A watch that has heard these cycles, one a period, and the time of the last."""
    for item in cycles:
        watch._add(item, item.stamp_ns)
    return cycles[-1].stamp_ns


def drawn(snapshot, width=100):
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(panel({"processes": {}} | snapshot, FRESHNESS, ADDRESS, width))
    return console.file.getvalue()


def test_a_rate_is_exact_whatever_was_skipped_in_between():
    rate = Rate(10 * NS_PER_S)
    assert rate.hz(0) is None
    for seq in (10, 11, 17, 17, 30):  # 17 came twice: said again to somebody who joined
        rate.add("a", seq, seq * 40 * NS_PER_MS, now_ns=seq)
    assert rate.hz(30) == pytest.approx(25.0)


def test_a_rate_begins_anew_with_another_sender_and_falls_to_zero_in_silence():
    rate = Rate(10 * NS_PER_S)
    for seq in (1, 2):
        rate.add("first", seq, seq * NS_PER_S, now_ns=0)
    rate.add("second", 1, NS_PER_S // 2, now_ns=0)
    assert rate.hz(0) is None
    rate.add("second", 6, NS_PER_S, now_ns=0)
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
    assert rates["frames"] == pytest.approx(50.0)  # the features say so: no image was subscribed to
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


def test_a_run_that_ends_is_said_and_the_next_one_counts_from_nothing(watch):
    now_ns = heard(watch, *(cycle(n, missed_ticks=1) for n in range(20)), cycle(20, Mode.STOP, "the run is ending"))
    assert watch.snapshot(now_ns)["live"]
    found = watch.snapshot(now_ns + 3 * NS_PER_S)
    assert not found["live"] and found["silent_s"] == 3.0
    text = drawn(found)
    assert "no run: the last one has ended, nothing heard for 3 s; the last was STOP: the run is ending" in text
    found["processes"] = {"controller": {"pid": 7, "rss_mb": 9.0, "first_rss_mb": 8.0, "scheduling": "normal"}}
    assert "controller (process 7) is there but silent, nothing heard for 3 s" in drawn(found)
    now_ns = heard(watch, cycle(0), cycle(1))
    found = watch.snapshot(now_ns)
    assert (found["live"], found["missed_ticks"], found["runs_seen"], len(found["events"])) == (True, 0, 2, 1)


def test_before_a_run_it_waits_and_says_so(watch):
    found = watch.snapshot(0)
    assert not found["live"]
    assert "no run at ipc://here yet: waiting; start one with `launch.py run`" in drawn(found)
    assert plain(found, ADDRESS) == "no run at ipc://here yet: waiting; start one with `launch.py run`"


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
    tcp = BusAddress("tcp://127.0.0.1:23450")
    lease = Lease(tcp.endpoint("command"))
    assert find_processes(tcp) == {"controller": os.getpid()}
    lease.release()
    assert find_processes(tcp) == {}


def top(*words, **options):
    return subprocess.Popen([sys.executable, str(ROOT / "launch.py"), "top", *words], text=True, **options)


class Speaking:
    """A fake run that speaks from a thread until the block ends."""

    def __init__(self, bus):
        self._bus, self._stop = bus, threading.Event()

    def __enter__(self):
        self._run = FakeRun(self._bus)
        self._thread = threading.Thread(target=self._speak)
        self._thread.start()
        return self

    def _speak(self):
        seq = 0
        while not self._stop.wait(0.02):
            seq += 1
            self._run.speak(seq)

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()
        self._run.close()


def test_once_prints_one_view_or_json_and_ends(bus):
    with Speaking(bus):
        words = ("--once", "--set", f"bus.address={bus.address}")
        view = top(*words, stdout=subprocess.PIPE)
        values = top(*words, "--json", stdout=subprocess.PIPE)
        text, found = view.communicate(timeout=60)[0], json.loads(values.communicate(timeout=60)[0])
    assert (view.returncode, values.returncode) == (0, 0)
    assert " RUN " in text and "#1 “touch the red block”" in text and "\x1b" not in text
    assert "controller" in text and "robot not found here" not in text
    assert found["live"] and found["mode"] == "RUN" and found["rates_hz"]["cycles"] == pytest.approx(10.0)
    assert found["processes"]["controller"]["pid"] == os.getpid()


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
    import select

    return bool(select.select([descriptor], [], [], 0.1)[0])
