from __future__ import annotations

import threading

import numpy as np
import pytest

from control.address import BusAddress
from control.bus import Publisher
from control.captures import Captures, collect, load_captures
from control.errors import ConfigError, NotRunning
from control.messages import Frames, Instruction, State


@pytest.fixture
def captures():
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (3, 8, 6, 3), dtype=np.uint8) for name in ("front", "wrist")}
    return Captures(images, rng.normal(size=(3, 2)), ("go", "go", "stay"))


def test_captures_come_back_as_they_were(captures, tmp_path):
    captures.save(tmp_path / "seen.npz")
    back = load_captures(tmp_path / "seen.npz")
    assert back.instructions == ("go", "go", "stay") and len(back) == 3
    np.testing.assert_array_equal(back.states, captures.states)
    for name, images in captures.images.items():
        np.testing.assert_array_equal(back.images[name], images)
        np.testing.assert_array_equal(back.frames(2).images[name], images[2])


def test_a_missing_file_names_the_command_that_writes_it(tmp_path):
    with pytest.raises(ConfigError, match="do not exist; `launch.py bench frames` writes them"):
        load_captures(tmp_path / "none.npz")


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_captures(tmp_path / "x.npz")


def test_objects_are_never_unpacked(tmp_path):
    np.savez(tmp_path / "x.npz", states=np.array([{"a": 1}], dtype=object), instructions=np.array(["go"]))
    with pytest.raises(ConfigError, match="cannot be read: Object arrays cannot be loaded"):
        load_captures(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("images/front", np.zeros((2, 8, 6, 3), dtype=np.uint8), "expected 1 to 4096 captures"),
        ("images/front", np.zeros((3, 8, 6, 3), dtype=np.float32), "expected 1 to 4096 captures"),
        ("instructions", np.array([1, 2, 3]), "got 0 instructions"),
        ("states", np.zeros((2, 2)), "expected 1 to 4096 captures"),
        ("states", np.full((3, 2), np.nan), "states expected finite numbers"),
    ],
)
def test_what_does_not_belong_together_is_refused(captures, tmp_path, key, value, said):
    arrays = {f"images/{name}": images for name, images in captures.images.items()}
    arrays |= {"states": captures.states, "instructions": np.array(captures.instructions)}
    np.savez(tmp_path / "x.npz", **(arrays | {key: value}))
    with pytest.raises(ConfigError, match=said):
        load_captures(tmp_path / "x.npz")


def test_a_running_robot_is_captured_frame_by_frame(bus: BusAddress):
    frames, state, instruction = (Publisher(bus, topic) for topic in ("frames", "state", "instruction"))
    done = threading.Event()

    def publish():
        seq = 0
        while not done.wait(0.01):
            seq += 1
            frames.send(Frames(seq, seq, {"front": np.full((4, 4, 3), seq % 256, dtype=np.uint8)}))
            state.send(State(seq, seq, np.array([float(seq)])))
            instruction.send(Instruction(seq, seq, 1, 1, "go"))

    robot = threading.Thread(target=publish)
    robot.start()
    shown: list[int] = []
    try:
        seen = collect(bus, 4, 0.03, lambda: False, shown.append)
    finally:
        done.set()
        robot.join()
        for port in (frames, state, instruction):
            port.close()
    assert shown == [1, 2, 3, 4] and seen.instructions == ("go",) * 4
    levels = seen.images["front"][:, 0, 0, 0].astype(int)
    assert seen.images["front"].shape == (4, 4, 4, 3) and (np.diff(levels) >= 2).all()
    assert (np.abs(seen.states[:, 0] - levels) <= 4).all()


def test_captures_without_a_camera_that_others_have_are_left_out(bus: BusAddress, monkeypatch):
    ports = [Publisher(bus, topic, latch=True) for topic in ("frames", "state", "instruction")]
    frames, state, instruction = ports
    done = threading.Event()
    black = {"wrist": np.zeros((4, 4, 3), np.uint8)}

    def publish():
        seq = 0
        while not done.wait(0.01):
            seq += 1
            both = {"front": np.full((4, 4, 3), seq % 200 + 1, np.uint8), **black}
            if seq < 6 or seq % 5 == 0:  # the driver of the other one starts late, and loses one now and then
                both.pop("wrist")
            faults = {"wrist": "is black"} if seq % 5 == 1 else {}
            frames.send(Frames(seq, seq, both, faults=faults))
            state.send(State(seq, seq, np.array([float(seq)])))
            instruction.send(Instruction(seq, seq, 1, 1, "go"))

    robot = threading.Thread(target=publish)
    robot.start()
    try:
        seen = collect(bus, 6, 0.0, lambda: False, lambda count: done.wait(0.05))
    finally:
        done.set()
        robot.join()
        for port in ports:
            port.close()
    assert len(seen) == 6 and set(seen.images) == {"front", "wrist"}
    assert all(images.shape == (6, 4, 4, 3) for images in seen.images.values())
    assert not {round(value) % 5 for value in seen.states[:, 0]} & {0}


def test_nothing_to_capture_is_said(bus: BusAddress, monkeypatch):
    monkeypatch.setattr("control.captures.NS_PER_S", 1_000_000)
    with pytest.raises(NotRunning, match="no frames, state, instruction for 10 s: start a run and give it an instr"):
        collect(bus, 1, 1.0, lambda: False, print)
