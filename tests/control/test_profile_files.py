"""What `profile` writes and says: a trace by the rules of its format, a page with something on it, clear refusals."""

from __future__ import annotations

import dataclasses
import json
import struct
import sys
from collections import Counter, defaultdict

import pytest
from profiled import ANOTHER_CLOCK_NS, record, run
from typer.testing import CliRunner

from control.errors import ConfigError, NotRunning
from control.messages import Mode
from control.profile_commands import app
from control.profile_figures import profile
from control.profile_plot import _thinned, check_plot, draw
from control.profile_source import Samples
from control.profile_trace import CONTROLLER, ENCODER, ROBOT, trace
from control.safety import Freshness

LADDER = Freshness(400, 600, 10_000)


def samples(**how):
    cycles, features = run(**how)
    made = Samples("a run", cycles)
    for row in features:
        made.add(row)
    return made


def find_violations(document):
    """Rules of the trace event format: what a viewer would drop or draw wrongly."""
    wrong = []
    tracks, named, flows = defaultdict(list), defaultdict(set), defaultdict(dict)
    for event in document["traceEvents"]:
        phase, track = event["ph"], (event["pid"], event["tid"])
        if phase == "M":
            named[event["name"]].add(track)
            continue
        if type(event["ts"]) not in (int, float) or event["ts"] < 0:
            wrong.append(f"ts of {event}")
        if phase == "X":
            if event["dur"] < 0:
                wrong.append(f"dur of {event}")
            tracks[track].append((event["ts"], event["ts"] + event["dur"], event["name"]))
        elif phase in "sf":
            if phase in flows[event["id"]]:
                wrong.append(f"flow {event['id']} has two '{phase}'")
            flows[event["id"]][phase] = event
        elif phase != "C":
            wrong.append(f"phase {phase}")
    for track, slices in tracks.items():
        if track not in named["thread_name"] or track not in named["process_name"]:
            wrong.append(f"track {track} has no name")
        open_until = []
        for begin, end, name in sorted(slices, key=lambda row: (row[0], -row[1])):
            while open_until and open_until[-1] <= begin + 1e-9:
                open_until.pop()
            if open_until and end > open_until[-1] + 1e-6:
                wrong.append(f"{name} at {begin} is not nested")
            open_until.append(end)
    for number, ends in flows.items():
        if set(ends) != {"s", "f"}:
            wrong.append(f"flow {number} has only {list(ends)}")
            continue
        start, finish = ends["s"], ends["f"]
        if finish.get("bp") != "e" or start["name"] != finish["name"] or start["cat"] != finish["cat"]:
            wrong.append(f"flow {number} does not match")
        if finish["ts"] < start["ts"]:
            wrong.append(f"flow {number} goes back in time")
        for end in (start, finish):
            around = tracks[end["pid"], end["tid"]]
            if not any(begin - 1e-6 <= end["ts"] <= until + 1e-6 for begin, until, _ in around):
                wrong.append(f"flow {number} ends in nothing: {end}")
    return wrong


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("shift_ns", [0, ANOTHER_CLOCK_NS])
def test_the_trace_keeps_the_rules_of_its_format(is_old, shift_ns):
    document = json.loads(json.dumps(trace(samples(is_old=is_old, shift_ns=shift_ns), {"commit": "c"})))
    assert find_violations(document) == []
    assert document["otherData"]["commit"] == "c" and document["displayTimeUnit"] == "ms"


def test_the_rules_find_what_is_wrong():
    document = trace(samples(), {})
    flow = next(event for event in document["traceEvents"] if event["ph"] == "f")
    flow["ts"] -= 1e9
    document["traceEvents"].remove(next(event for event in document["traceEvents"] if event["ph"] == "s"))
    document["traceEvents"].pop(0)
    wrong = " ".join(find_violations(document))
    assert "has only ['f']" in wrong and "has no name" in wrong


def test_each_process_has_a_track_and_arrows_lead_from_image_to_features_to_action():
    made = samples()
    events = trace(made, {})["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {ROBOT: "robot host", ENCODER: "encoder", CONTROLLER: "controller"}
    ends = defaultdict(list)
    for event in events:
        if event["ph"] in "sf":
            ends[event["name"], event["id"]].append(event["pid"])
    kinds = Counter((name, *pids) for (name, _), pids in ends.items())
    acted = sum(cycle.feature_seq is not None for cycle in made.cycles)
    encoded = len(made.encodes) - 1  # one was replaced by a newer one before the first tick
    assert kinds == {("image", ROBOT, ENCODER): encoded, ("features", ENCODER, CONTROLLER): acted}
    encode = next(event for event in events if event["name"] == "encode 5")
    capture = next(event for event in events if event["name"] == "capture 5")
    assert encode["ts"] - capture["ts"] == 10_000.0 and encode["dur"] == 37_000.0 and capture["dur"] == 4000.0


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("how", [{"is_old": True, "shift_ns": ANOTHER_CLOCK_NS}, {"ticks": 1}])
def test_the_page_is_drawn_whatever_is_known(tmp_path, how):
    pytest.importorskip("matplotlib")
    made, file = samples(**how), tmp_path / "page.png"
    draw(profile(made, LADDER), made, file)
    data = file.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data.startswith(PNG) and width > 1000 and height > 800 and len(data) > 20_000


def test_without_matplotlib_the_extra_is_named_before_anything_is_measured(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"--plot needs matplotlib.*saccade\[bench\]"):
        check_plot(tmp_path / "page.png")


def profiled(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_long_timeline_keeps_every_hold_and_the_oldest_age():
    cycles = [dataclasses.replace(samples().cycles[0], mode=Mode.RUN)] * 6001
    cycles[1001] = dataclasses.replace(cycles[0], feature_age_ms=5000.0)
    cycles[3003] = dataclasses.replace(cycles[0], mode=Mode.HOLD, feature_age_ms=None)
    thinned = _thinned(cycles, 3000)
    assert len(thinned) <= 3000 and max(cycle.feature_age_ms or 0.0 for cycle in thinned) == 5000.0
    assert [cycle.mode for cycle in thinned].count(Mode.HOLD) == 1
    assert _thinned(cycles[:50], 3000) == cycles[:50]


@pytest.fixture
def recording(tmp_path):
    pytest.importorskip("mcap")
    return record(tmp_path / "run.mcap", run())


def test_a_recording_is_profiled_from_the_command_line_and_compared_with_itself(recording, tmp_path):
    pytest.importorskip("matplotlib")
    first = profiled(recording, "--report", tmp_path / "a.json", "--trace", tmp_path / "t.json")
    assert first.exit_code == 0, first.output
    assert "missed ticks 1" in first.output and "20 cycles in HOLD: features # ms old" in first.output
    assert find_violations(json.loads((tmp_path / "t.json").read_text())) == []
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["cycles"] == 97 and report["commit"] and report["machine"] and report["versions"]
    second = profiled(recording, "--against", tmp_path / "a.json", "--plot", tmp_path / "p.png")
    assert second.exit_code == 0, second.output
    row = next(line for line in second.output.split("this profile against")[1].splitlines() if "work" in line).split()
    assert row[1:4] == ["1.000", "1.000", "1.00"] and (tmp_path / "p.png").read_bytes().startswith(PNG)


def test_what_cannot_be_profiled_is_said_before_anything_is_written(recording, tmp_path, bus):
    foreign, cut = tmp_path / "foreign.mcap", tmp_path / "cut.mcap"
    foreign.write_bytes(b"not an MCAP file at all")
    cut.write_bytes(recording.read_bytes()[:6])
    old = tmp_path / "old.json"
    old.write_text("{}")
    for words, kind, message in (
        ((tmp_path / "none.mcap",), ConfigError, "none.mcap does not exist"),
        ((foreign,), ConfigError, "expected an MCAP file, got one that begins with b'not an M'"),
        ((cut,), ConfigError, "it was cut before anything was recorded"),
        ((recording, "--against", old), ConfigError, "got the report of another command"),
        ((recording, "--report", "/proc/none/r.json"), ConfigError, "--report /proc/none/r.json cannot be written"),
        ((recording, "--trace", "/proc/none/r.json"), ConfigError, "--trace /proc/none/r.json cannot be written"),
        (("--set", f"bus.address={bus.address}"), NotRunning, f"no controller publishes cycles at {bus.address}/cycle"),
    ):
        error = profiled(*words).exception
        assert isinstance(error, kind) and message in str(error), words


def test_options_that_do_not_go_together_are_refused(recording):
    before = recording.read_bytes()
    for words, message in (
        ((recording, "--duration", 3), "--duration is of a live run"),
        ((recording, "--cost"), "--cost measures by itself"),
        ((recording, "--trace", recording), "must be different"),
    ):
        result = profiled(*words)
        assert result.exit_code == 2 and message in " ".join(result.output.split()), words
    assert recording.read_bytes() == before
