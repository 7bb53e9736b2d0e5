"""The recorder against real sockets; the robot and the controller are a thread that publishes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from recordings import TWO_CAMERAS, action, cycle, features, frames, instruction
from rig import two_joint_spec

from control.bus import Publisher
from control.commands import DEFAULT_CONFIG
from control.config import load_config
from control.errors import ConfigError, NotRunning, RecordingError
from control.messages import Frames, Mode, State
from control.recorder import record_live
from control.recording_images import ImageCodec
from control.recording_reader import read_recording

ROOT = Path(__file__).resolve().parents[2]
TOPICS = ("frames", "state", "instruction", "features", "action", "cycle")


@pytest.fixture
def settings(bus):
    return load_config(DEFAULT_CONFIG, [f"bus.address={bus.address}"])


@contextlib.contextmanager
def running(bus, spec, publish=None, period_s=0.01):
    """A robot and a controller that publish until the end; `publish(seq, ports)` replaces what they say."""
    done = threading.Event()
    ports = {topic: Publisher(bus, topic, queue=1000) for topic in TOPICS}
    ports["robot"] = Publisher(bus, "robot", latch=True)

    def everything(seq, ports):
        now_ns = time.monotonic_ns()
        ports["state"].send(State(seq, now_ns, np.array([seq / 3, -0.0])))
        ports["frames"].send(frames(spec, seq, now_ns))
        ports["instruction"].send(instruction(1 + seq // 40, now_ns, f"touch block {seq // 40}"))
        for _ in range(2):  # features are said again when somebody joins
            ports["features"].send(features(seq, 5))
        ports["action"].send(action(seq, now_ns, [[0.1, 0.2]]))
        ports["cycle"].send(
            cycle(seq, now_ns, Mode.RUN if seq % 40 < 20 else Mode.HOLD, "old" if seq % 40 >= 20 else "")
        )

    def loop():
        seq = 0
        while not done.wait(period_s):
            ports["robot"].greet()
            if seq % 20 == 0:
                ports["robot"].send(spec)
            seq += 1
            (publish or everything)(seq, ports)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield ports
    finally:
        done.set()
        thread.join()
        for port in ports.values():
            port.close()


@pytest.fixture
def spec():
    return two_joint_spec(cameras=TWO_CAMERAS)


def test_a_run_is_recorded_with_every_topic(bus, spec, settings, tmp_path):
    shown: list[str] = []

    def has_enough():
        found = re.search(r"([\d,]+) state", shown[-1]) if shown else None
        return found is not None and int(found[1].replace(",", "")) > 90

    with running(bus, spec):
        line = record_live(
            settings, tmp_path / "a.mcap", None, has_enough, images=ImageCodec("webp"), show=shown.append
        )
    recording = read_recording(tmp_path / "a.mcap")
    assert recording.lost == "" and recording.spec.equals(spec)
    for nouns in (recording.states, recording.actions, recording.cycles, recording.features):
        numbers = [noun.seq for noun in nouns]
        assert len(numbers) > 50 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert recording.states[7].values[0] == recording.states[7].seq / 3
    capture = recording.frames[10]
    np.testing.assert_array_equal(capture.decode("front").images["front"], frames(spec, capture.seq, 0).images["front"])
    assert np.ptp(recording.log_ns["features"]) > 5e8 and recording.features[0].stamp_ns == 5
    said = [(row.id, row.text) for row in recording.instructions]
    assert said == sorted(set(said)) and len(said) >= 2
    messages = [row.message for row in recording.logs]
    assert "HOLD: old" in messages and "RUN" in messages and f"instruction {said[1][0]}: {said[1][1]}" in messages
    assert f"{len(recording.states):,} state" in line and "dropped" not in line
    assert shown[0] == "waiting for a robot" and "MB" in shown[-1] and len(shown) >= 4


def test_features_that_say_why_there_are_none_count_as_nothing_lost(bus, spec, settings, tmp_path):
    def publish(seq, ports):
        now_ns = time.monotonic_ns()
        ports["state"].send(State(seq, now_ns, np.zeros(2)))
        for _ in range(2):
            ports["features"].send(features(500 + seq, now_ns))
            ports["features"].send(dataclasses.replace(features(0, now_ns + 1), fault="out of memory"))

    with running(bus, spec, publish):
        line = record_live(settings, tmp_path / "a.mcap", 1.0, lambda: False)
    assert "dropped" not in line
    found = read_recording(tmp_path / "a.mcap").features
    seqs, faults = [one.seq for one in found if not one.fault], [one for one in found if one.fault]
    assert len(seqs) > 20 and seqs == sorted(set(seqs)) and abs(len(faults) - len(seqs)) <= 1


@pytest.mark.parametrize("hours", [-2, 3])
def test_on_another_machine_features_are_placed_by_the_robots_clock(bus, spec, settings, tmp_path, hours):
    ahead_ns = hours * 3_600_000_000_000

    def publish(seq, ports):
        robot_ns = time.monotonic_ns() + ahead_ns
        ports["state"].send(State(seq, robot_ns, np.zeros(2)))
        if seq > 20:
            ports["features"].send(features(seq, 5))

    with running(bus, spec, publish):
        record_live(settings, tmp_path / "a.mcap", 1.0, lambda: False)
    recording = read_recording(tmp_path / "a.mcap")
    by_seq = {state.seq: state.stamp_ns for state in recording.states}
    late_ns = [
        int(placed) - by_seq[one.seq]
        for one, placed in zip(recording.features, recording.log_ns["features"], strict=True)
    ]
    assert len(late_ns) > 10 and 0 <= np.median(late_ns) < 50_000_000


def test_what_was_heard_is_on_disk_within_a_second_even_when_silence_follows(bus, spec, settings, tmp_path):
    def publish(seq, ports):
        if seq <= 30:
            ports["state"].send(State(seq, seq, np.zeros(2)))

    seen: list[int] = []

    def stopped():
        if (tmp_path / "a.mcap").exists():
            seen.append(len(read_recording(tmp_path / "a.mcap").states))
        return False

    with running(bus, spec, publish):
        record_live(settings, tmp_path / "a.mcap", 1.6, stopped)
    assert seen[0] == 0 and seen[-1] > 10


def test_what_is_skipped_or_refused_is_told(bus, spec, settings, tmp_path):
    def publish(seq, ports):
        ports["state"].send(State(seq * 2, seq, np.zeros(2)))  # every other one is missing
        image = np.zeros((24, 32, 3) if seq % 2 else (8, 8, 3), np.uint8)
        ports["frames"].send(Frames(seq, seq, {"front": image}))

    with running(bus, spec, publish):
        line = record_live(settings, tmp_path / "a.mcap", 0.6, lambda: False)
    recording = read_recording(tmp_path / "a.mcap")
    assert f"{len(recording.states) - 1:,} other messages dropped" in line
    assert "refused, last: recording" in line and "camera 'front': expected (24, 32, 3) uint8, got (8, 8, 3)" in line
    assert recording.frames and all(capture.seq % 2 for capture in recording.frames)


def test_without_a_robot_it_says_so(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("control.recorder._PATIENCE_S", 0.2)
    with pytest.raises(NotRunning, match="no robot on this bus for 0.2 s: start one with `launch.py run`"):
        record_live(settings, tmp_path / "a.mcap", 1.0, lambda: False)
    assert record_live(settings, tmp_path / "a.mcap", 1.0, lambda: True).startswith("stopped before a robot announced")
    assert not (tmp_path / "a.mcap").exists()


def test_an_existing_file_is_refused_before_anything_is_heard(settings, tmp_path):
    (tmp_path / "a.mcap").write_text("precious")
    with pytest.raises(ConfigError, match="exists already"):
        record_live(settings, tmp_path / "a.mcap", 1.0, lambda: False)


def test_another_robot_on_the_bus_ends_the_recording_with_what_was_before(bus, spec, settings, tmp_path):
    def publish(seq, ports):
        ports["state"].send(State(seq, seq, np.zeros(2)))
        if seq == 50:
            ports["robot"].send(two_joint_spec(name="impostor"))

    with (
        running(bus, spec, publish),
        pytest.raises(RecordingError, match="'impostor' has taken the place of 'two-joint'"),
    ):
        record_live(settings, tmp_path / "a.mcap", 5.0, lambda: False)
    recording = read_recording(tmp_path / "a.mcap")
    assert recording.states and recording.lost == ""


COMMAND = """
import resource, sys
sys.path.insert(0, {root!r})
import launch
limit = {limit}
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
launch.main()
"""


def command(bus, out, *words, limit=0):
    script = COMMAND.format(root=str(ROOT), limit=limit)
    arguments = ["record", "--live", "--out", str(out), "--set", f"bus.address={bus.address}", *words]
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_it_with_a_readable_file(bus, spec, tmp_path, number):
    with running(bus, spec):
        process = command(bus, tmp_path / "a.mcap")
        deadline_s = time.monotonic() + 20
        while not (tmp_path / "a.mcap").exists() or (tmp_path / "a.mcap").stat().st_size < 20_000:
            assert time.monotonic() < deadline_s and process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        killed_ns = time.monotonic_ns()
        os.kill(process.pid, number)
        said, _ = process.communicate(timeout=20)
    recording = read_recording(tmp_path / "a.mcap")
    assert len(recording.cycles) > 20
    if number == signal.SIGKILL:
        assert "was not closed" in recording.lost and killed_ns - recording.cycles[-1].stamp_ns < 1.3e9
    else:
        assert process.returncode == 0 and recording.lost == "" and "frames" in said.splitlines()[-1]


def test_a_full_disk_ends_the_recording_and_not_the_run(bus, spec, tmp_path):
    with running(bus, spec):
        process = command(bus, tmp_path / "a.mcap", limit=100_000)
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 1 and "cannot be written on: File too large" in said and "Traceback" not in said
    assert read_recording(tmp_path / "a.mcap").cycles
