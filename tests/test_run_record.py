"""`run --record`: real processes with a real recorder beside them, which may die without the run noticing.

The robot is itself a recording (`robot: replay`), the encoder a thread of the test, and the limits on ages are wide:
nothing here is about speed.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from recordings import START_NS, frames
from rig import two_joint_spec
from runs import Run, free_port

from control.address import BusAddress
from control.bus import Latest, Publisher, Subscriber
from control.clock import NS_PER_MS
from control.commands import ROOT
from control.errors import CommandFailed
from control.messages import ActionChunk, Cycle, Features, State
from control.recording import RecordingWriter
from control.recording_images import ImageCodec
from control.recording_reader import read_recording
from vla.policy_spec import identify, load_spec

DEFAULT_POLICY = ROOT / "vla" / "policies" / "tabletop"

pytestmark = pytest.mark.timeout(300)
PATIENCE_S = 120.0
UNHURRIED = {
    "robot.name": "replay",
    "robot.camera_hz": 5,
    "robot.state_hz": 20,
    "robot.watchdog_ms": 5000,
    "control.state_max_age_ms": 20_000,
    "control.switch_max_ms": 60_000,
    "control.max_missed_ticks": 1000,
    "freshness.slow_after_ms": 50_000,
    "freshness.hold_after_ms": 60_000,
    "freshness.stop_after_ms": 90_000,
}


@contextlib.contextmanager
def encoding(bus: BusAddress) -> Iterator[None]:
    """What an encoder says to a head that only holds: features of every capture, with nothing in them."""
    done = threading.Event()

    def loop() -> None:
        frames_in, instruction_in = Latest(bus, "frames"), Latest(bus, "instruction")
        out = Publisher(bus, "features", latch=True)
        policy_id, said, tokens = identify(DEFAULT_POLICY, True), None, np.ones((1, 4), np.float32)
        while not done.is_set():
            out.greet()
            said = instruction_in.poll() or said
            if (capture := frames_in.poll(20)) and said:
                seq, now_ns, stamp_ns = capture.seq, time.monotonic_ns(), capture.stamp_ns
                out.send(Features(seq, now_ns, seq, stamp_ns, said.session, said.id, 1, policy_id, tokens, {}, 1.0))
        for port in (frames_in, instruction_in, out):
            port.close()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Run]]:
    """Starts runs, and ends whatever a failed test has left of them."""
    runs: list[Run] = []
    stand_in = record_still_arm(tmp_path / "stand-in.mcap")
    remote = f"tcp://127.0.0.1:{free_port()}"
    settings = UNHURRIED | {"robot.options": f"{{recording: {stand_in}}}", "bus.encoder": remote}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]

    with contextlib.ExitStack() as encoders:

        def start(*arguments: str) -> Run:
            run = Run("--say", "touch the red block", "--random-weights", *words, *arguments)
            runs.append(run)
            encoders.enter_context(encoding(BusAddress(run.address, remote)))
            return run

        yield start
    for run in runs:
        run.kill()


def record_still_arm(file: Path) -> Path:
    """Two seconds of a robot that the default policy fits."""
    policy = load_spec(DEFAULT_POLICY)
    actions = len(policy.action_names)
    spec = two_joint_spec(
        name="still",
        cameras=policy.cameras,
        state_names=policy.state_names,
        action_names=policy.action_names,
        action_low=np.full(actions, -2.0),
        action_high=np.full(actions, 2.0),
        max_velocity=np.ones(actions),
        action_period_s=policy.period_s,
    )
    with RecordingWriter(file, spec, images=ImageCodec("webp")) as writer:
        for step in range(40):
            now_ns = START_NS + step * 50 * NS_PER_MS
            writer.write(State(step, now_ns, np.full(len(policy.state_names), 0.1 + step / 1000)))
            if step % 4 == 0:
                writer.write(frames(spec, step, now_ns))
    return file


def listen(run: Run, seconds_of_cycles: float) -> tuple[dict[int, Cycle], dict[int, ActionChunk]]:
    """What anybody else hears on the same bus, by `seq`."""
    bus = BusAddress(run.address)
    cycles_in, actions_in = (Subscriber(bus, topic, newest_only=False) for topic in ("cycle", "action"))
    cycles: dict[int, Cycle] = {}
    actions: dict[int, ActionChunk] = {}
    while len(cycles) < 10 * seconds_of_cycles:
        assert run.process.poll() is None, run.text
        if cycle := cycles_in.poll(50):
            cycles[cycle.seq] = cycle
        while action := actions_in.poll():
            actions[action.seq] = action
    for inbox in (cycles_in, actions_in):
        inbox.close()
    return cycles, actions


def test_a_recorded_run_holds_every_cycle_and_action_that_another_listener_heard(start, tmp_path):
    file = tmp_path / "run.mcap"
    run = start("--record", str(file))
    run.wait_for(lambda status: status["mode"] == "RUN", PATIENCE_S)
    cycles, actions = listen(run, 3.0)
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 0, run.text
    recording = read_recording(file)
    assert recording.lost == "" and recording.spec.name == "replay of still" and recording.frames and recording.features
    assert [row.text for row in recording.instructions] == ["touch the red block"]
    recorded = {cycle.seq: cycle for cycle in recording.cycles}
    assert list(recorded) == list(range(min(recorded), max(recorded) + 1)) and cycles.keys() <= recorded.keys()
    for seq, cycle in cycles.items():
        assert (recorded[seq].stamp_ns, recorded[seq].mode) == (cycle.stamp_ns, cycle.mode)
    sent = {action.seq: action for action in recording.actions if action.mode != "STOP"}
    for seq, action in actions.items():
        assert sent[seq].stamp_ns == action.stamp_ns
        np.testing.assert_array_equal(sent[seq].targets, action.targets)
    assert recording.cycles[-1].mode == "STOP"  # the end of the run is in it
    found = run.result["recording"]
    assert str(file) in found["said"], run.text
    assert found["is_whole"] == (found["ended"] == "ended with code 0")  # a crowded machine may have to kill it
    assert f"recording {file}: " in run.text or not found["is_whole"]
    assert set(run.result["rss_mb"]) >= {"recorder", "controller"}
    assert all(run.result["core_share"][name] > 0 for name in ("recorder", "controller", "robot"))


def test_a_recorded_run_holds_what_operators_asked_in_the_cycle_that_followed(start, tmp_path):
    file = tmp_path / "run.mcap"
    run = start("--record", str(file))
    run.wait_for(lambda status: status["mode"] == "RUN", PATIENCE_S)
    listen(run, 0.5)  # the recorder is there
    run.client.request("stop", "a hand in the way")
    run.wait_for(lambda status: status["mode"] == "STOP")
    run.client.request("resume")
    run.client.request("say", "touch the blue block", finish_s=PATIENCE_S)
    with pytest.raises(CommandFailed, match="the instruction is empty"):
        run.client.request("say", " ")
    with pytest.raises(CommandFailed, match="unknown command"):
        run.client.request("dance")
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 0, run.text
    recording = read_recording(file)
    asked = [(one, cycle) for cycle in recording.cycles for one in cycle.commands]
    said = [one for one, _ in asked]
    begin = said.index("stop: a hand in the way")
    assert said[begin + 1 : begin + 3] == ["resume", "say 2: touch the blue block"]
    assert said[begin + 3].startswith("say refused: ") and said[begin + 4].startswith(
        "refused: unknown command 'dance'"
    )
    assert asked[begin][1].mode == "STOP" and asked[begin + 1][1].mode != "STOP"
    assert [line.message for line in recording.logs if line.name == "operator"] == said


def test_a_recorder_that_is_killed_leaves_a_readable_file_and_the_run_untouched(start, tmp_path):
    file = tmp_path / "run.mcap"
    run = start("--record", str(file))
    run.wait_for(lambda status: status["mode"] == "RUN", PATIENCE_S)
    listen(run, 2.0)
    os.kill(run.children()["record"], signal.SIGKILL)
    cycles, _ = listen(run, 2.0)
    assert {cycle.mode for cycle in cycles.values()} == {"RUN"}
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 0, run.text
    recording = read_recording(file)
    assert "was not closed" in recording.lost and recording.frames
    first, last = min(cycles), recording.cycles[-1].seq
    assert first - 25 <= last < first + 2  # ten a second: at most the last second, and what the kill took
    assert "recorder was killed by SIGKILL: the run goes on without it" in run.text
    assert run.result["recording"]["is_whole"] is False
    assert "recording ended early (was killed by SIGKILL): its file can be read up to its last whole second" in run.text


def test_a_full_disk_ends_the_recording_with_a_message_and_the_robot_goes_on(start, tmp_path):
    file = tmp_path / "run.mcap"
    run = start("--record", str(file))
    run.wait_for(lambda status: "record" in run.children(), PATIENCE_S)
    recorder = run.children()["record"]
    resource.prlimit(recorder, resource.RLIMIT_FSIZE, (150_000, 150_000))
    run.wait_for(lambda status: status["mode"] == "RUN" and "the run goes on without it" in run.text, PATIENCE_S)
    assert "cannot be written on: File too large" in run.text and "is the disk full?" in run.text
    cycles, _ = listen(run, 1.0)
    assert {cycle.mode for cycle in cycles.values()} == {"RUN"}
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 0, run.text
    assert read_recording(file).frames
    assert "recording ended early (ended with code 1): error: recording" in " ".join(run.text.split())
    assert "Traceback" not in run.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: (folder / "run.mcap").write_text("precious"), "exists already"),
        (lambda folder: folder.rmdir(), "there is no such folder"),
    ],
)
def test_a_recording_that_cannot_begin_is_refused_before_anything_starts(start, tmp_path, make, message):
    folder = tmp_path / "recordings"
    folder.mkdir()
    make(folder)
    run = start("--record", str(folder / "run.mcap"))
    assert run.finish() == 2 and message in run.text and "robot |" not in run.text
    assert not Path(folder / "run.mcap").exists() or (folder / "run.mcap").read_text() == "precious"
