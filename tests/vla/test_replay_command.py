"""`launch.py replay` with a tiny real policy, on a recording of the real control loop in lockstep with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from recordings import frames
from rig import PERIOD_NS, LoopRig, two_joint_spec

from control.clock import NS_PER_MS, Tick
from control.commands import DEFAULT_CONFIG, ROOT
from control.config import load_config
from control.errors import MismatchError
from control.messages import Frames, Instruction, State
from control.recording import RecordingWriter
from control.recording_images import ImageCodec
from control.recording_reader import read_recording
from control.replay import encode_recorded
from tests.vla.conftest import edit_yaml
from vla.parts import load_parts
from vla.policy_spec import load_spec

TICKS = 8
PLAIN = ("encoder.precision=fp32", "encoder.quantise_vision=false")


def robot_for(folder: Path, **changes):
    policy = load_spec(folder)
    actions = len(policy.action_names)
    fields = {
        "cameras": dict(policy.cameras),
        "state_names": policy.state_names,
        "action_names": policy.action_names,
        "action_low": np.full(actions, -3.0),
        "action_high": np.full(actions, 3.0),
        "max_velocity": np.full(actions, 2.0),
    }
    return two_joint_spec(**(fields | changes))


@pytest.fixture
def recorded(policy_folder, tmp_path) -> Path:
    """What encoder, head and loop made of eight captures, and all that went into it, to the last bit."""
    settings = load_config(DEFAULT_CONFIG, [f"encoder.policy={policy_folder}", *PLAIN])
    robot = robot_for(policy_folder)
    encoder, head = load_parts(settings, robot)
    rig = LoopRig(head=head, spec=robot)
    rig.feed_robot()
    with RecordingWriter(tmp_path / "run.mcap", robot, images=ImageCodec("webp")) as writer:
        said = rig.loop.say("pick up the red block")
        writer.write(said)
        for index in range(TICKS):
            capture = frames(robot, index + 1, rig.clock.now_ns())
            writer.write(capture)
            rig.clock.advance(PERIOD_NS - 30 * NS_PER_MS)
            state = State(index + 1, rig.clock.now_ns(), np.linspace(-0.5, 0.5, len(robot.state_names)) + 0.01 * index)
            features = encoder.encode(capture, said)
            rig.state.send(state)
            rig.features.send(features)
            writer.write(state)
            writer.write(features, received_ns=rig.clock.now_ns())
            rig.clock.advance(30 * NS_PER_MS)
            cycle = rig.loop.tick(Tick(rig.clock.now_ns(), 0, 0))
            writer.write(rig.action.poll())
            writer.write(cycle)
    return tmp_path / "run.mcap"


def replay(*words, timeout=200):
    result = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), "replay", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert "Traceback" not in result.stdout + result.stderr, result.stderr
    return result


def sets(*values):
    return [word for value in values for word in ("--set", value)]


@pytest.mark.timeout(400)
def test_the_same_policy_replays_its_recording_and_another_precision_is_told_apart(recorded, policy_folder, tmp_path):
    found = {}
    for precision in ("fp32", "bf16"):
        report = tmp_path / f"{precision}.json"
        words = sets(f"encoder.precision={precision}", PLAIN[1])
        result = replay(recorded, "--policy", policy_folder, *words, "--report", report)
        assert result.returncode == 0, result.stdout + result.stderr
        found[precision] = json.loads(report.read_text())
        assert f"{TICKS} of {TICKS} replayed ticks gave an action" in result.stdout
        assert "cosine at least" in result.stdout and load_spec(policy_folder).action_names[0] in result.stdout
    same, other = found["fp32"], found["bf16"]
    assert same["policy"] == same["recorded_policy"][0] and same["pace"] == "lockstep" and same["machine"]
    assert same["features"]["compared"] == TICKS == len(same["per_tick"])
    assert same["features"]["cosine"]["min"] > 0.999999 and same["features"]["largest"]["max"] < 1e-5
    assert max(row["max"] for row in same["actions"].values()) < 1e-5
    assert other["features"]["largest"]["max"] > 10 * max(same["features"]["largest"]["max"], 1e-6)
    assert other["features"]["cosine"]["min"] < same["features"]["cosine"]["min"] and other["precision"] == "bf16"


def test_an_optional_camera_that_failed_in_the_run_fails_in_its_replay_too(policy_folder, tmp_path):
    edit_yaml(policy_folder, optional_cameras=["wrist"])
    settings = load_config(DEFAULT_CONFIG, [f"encoder.policy={policy_folder}", *PLAIN])
    robot = robot_for(policy_folder)
    encoder, _ = load_parts(settings, robot)
    said = Instruction(0, 1, 5, 1, "pick up the red block")
    whole = frames(robot, 1, 10)
    failed = [
        Frames(1, 10, {"front": whole.images["front"]}, faults={"wrist": "gives no image"}),
        Frames(2, 20, whole.images, faults={"wrist": "is frozen"}),
        Frames(3, 30, {"front": whole.images["front"]}),
    ]
    with RecordingWriter(tmp_path / "run.mcap", robot, images=ImageCodec("webp")) as writer:
        for capture in failed:
            writer.write(capture)
    recording = read_recording(tmp_path / "run.mcap")
    for capture in failed:
        features, fault = encode_recorded(encoder, recording, capture.stamp_ns, said)
        assert fault == ""
        np.testing.assert_allclose(features.tokens, encoder.encode(capture, said).tokens, atol=1e-5)


@pytest.mark.timeout(300)
def test_in_wall_clock_time_ticks_get_what_is_ready(recorded, policy_folder, tmp_path):
    report = tmp_path / "replay.json"
    wide = ("freshness.slow_after_ms=50000", "freshness.hold_after_ms=60000", "freshness.stop_after_ms=90000")
    words = sets(*PLAIN, *wide)
    result = replay(recorded, "--policy", policy_folder, "--realtime", *words, "--report", report)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(report.read_text())
    assert found["pace"] == "wall-clock" and found["ticks"]["replayed"] == TICKS
    assert found["feature_age_ms"]["replayed"]["p50"] > 0  # how old is up to the machine, the recorded age too


def test_a_policy_that_does_not_fit_the_recorded_robot_is_refused_by_name(policy_folder):
    settings = load_config(DEFAULT_CONFIG, [f"encoder.policy={policy_folder}", *PLAIN])
    with pytest.raises(MismatchError, match="the policy needs camera 'wrist', robot 'two-joint' has front"):
        load_parts(settings, robot_for(policy_folder, cameras={"front": (56, 56)}))
    names = ("hip", *load_spec(policy_folder).state_names[1:])
    with pytest.raises(MismatchError, match="the robot's are hip"):
        load_parts(settings, robot_for(policy_folder, state_names=names))


def test_the_command_refuses_what_it_cannot_replay(tmp_path, monkeypatch):
    robot = two_joint_spec()

    def recording(name, *nouns):
        with RecordingWriter(tmp_path / name, robot, images=ImageCodec("webp")) as writer:
            for noun in nouns:
                writer.write(noun)
        return tmp_path / name

    (tmp_path / "foreign.mcap").write_bytes(b"\x1f\x8b a bag of something else")
    state = State(1, 5, np.zeros(2))
    no_frames = recording("no-frames.mcap", state)
    no_actions = recording("no-actions.mcap", state, frames(robot, 1, 5))
    monkeypatch.setattr("control.recording.WIRE_VERSION", 99)
    newer = recording("newer.mcap", state)
    for words, message in (
        ((tmp_path / "none.mcap",), "none.mcap does not exist"),
        ((tmp_path / "foreign.mcap",), "expected an MCAP file"),
        ((no_frames,), "holds no frames and no instruction and no action, which a replay needs; it has 1 state"),
        ((no_actions,), "holds no instruction and no action"),
        ((newer,), "expected wire_version"),
        ((no_frames, "--report", "/proc/none/r.json"), "--report /proc/none/r.json cannot be written"),
    ):
        result = replay(*words)
        assert result.returncode == 2, result.stdout + result.stderr
        assert message in " ".join(result.stderr.split())
