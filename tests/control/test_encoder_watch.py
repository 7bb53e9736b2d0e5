"""An encoder that hangs, told from one that works, refuses, loads, or has nothing to do: real processes and sockets."""

import contextlib
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from control.bus import Publisher
from control.encoder_watch import EncoderWatch
from control.messages import Frames
from tests.control.test_report import cycle, features
from tests.control.test_supervisor import Stage

SENDS_ONCE = """
import os, sys, time
import numpy as np
from control.address import BusAddress
from control.bus import Publisher
from control.encoder_watch import EncoderWatch
from control.messages import Features
out = Publisher(BusAddress(os.environ["SACCADE_TEST_BUS"]), "features")
ends = time.monotonic() + SECONDS
seq = 0
while True:
    if time.monotonic() < ends:
        seq += 1
        now = time.monotonic_ns()
        out.send(Features(seq, now, 1, now, 1, 1, 1, "p", np.ones((1, 2), np.float32), {}, 5.0, fault=FAULT))
    time.sleep(0.02)
"""


@pytest.fixture
def stage(bus):
    return Stage(bus)


@pytest.fixture
def busy(stage, monkeypatch):
    """Robot and controller stand-ins on the bus: frames, and cycles that act on an instruction."""
    monkeypatch.setenv("SACCADE_TEST_BUS", stage.bus.address)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    frames, cycles = Publisher(stage.bus, "frames"), Publisher(stage.bus, "cycle", queue=1000)

    def feed(cameras=True, instruction_id=1):
        if cameras:
            frames.send(Frames(1, time.monotonic_ns(), {"front": np.zeros((28, 28, 3), np.uint8)}))
        cycles.send(replace(cycle(1), instruction_id=instruction_id))
        return False

    yield feed
    frames.close()
    cycles.close()


def until_restarted_or(stage, seconds, feed, **options):
    """Whether the encoder was started again within so many seconds after its first start."""
    code = SENDS_ONCE.replace("SECONDS", str(options.pop("speaks_s", 0.5))).replace(
        "FAULT", repr(options.pop("fault", ""))
    )
    supervised = stage.supervise(encoder=code, encoder_hung_s=0.5, **options)
    ends = time.monotonic() + seconds
    supervised.run(lambda: feed() or supervised.encoder_restarts > 0 or time.monotonic() > ends, None)
    assert stage.none_left()
    return supervised.encoder_restarts > 0


def test_an_encoder_that_hangs_is_killed_and_started_again(stage, busy):
    assert until_restarted_or(stage, 30.0, busy)
    assert any("encoder hangs (no features for" in line and "although frames arrive)" in line for line in stage.lines)
    assert any("encoder was killed by SIGKILL: starting it again in" in line for line in stage.lines)


@pytest.mark.parametrize(
    "why",
    [
        {"speaks_s": 60.0},
        {"speaks_s": 60.0, "fault": "frame 1 not encoded: no camera"},
        {"speaks_s": 0.0},  # it still loads
    ],
)
def test_an_encoder_that_works_or_refuses_or_loads_is_left_alone(stage, busy, why):
    assert not until_restarted_or(stage, 3.0, busy, **why)


@pytest.mark.parametrize("nothing", [{"cameras": False}, {"instruction_id": 0}])
def test_an_encoder_that_has_nothing_to_do_is_left_alone(stage, busy, nothing):
    assert not until_restarted_or(stage, 4.0, lambda: busy(**nothing))


@pytest.fixture
def cameras(bus):
    """Sends a frame."""
    frames = Publisher(bus, "frames")
    yield lambda: frames.send(Frames(1, time.monotonic_ns(), {"front": np.zeros((28, 28, 3), np.uint8)}))
    frames.close()


def fault_within(watch, seconds, feed=lambda: None):
    """The first fault that is found in that time, '' where there is none; `feed` is called all the while."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        feed()
        if fault := watch.find_fault():
            return fault
        time.sleep(0.01)
    return ""


def test_after_a_time_without_frames_the_encoder_has_half_of_its_time_for_the_first(bus, cameras):
    with contextlib.closing(EncoderWatch(bus, hung_after_s=2.0, start_s=60.0)) as watch:
        watch.add_features(features(1))
        assert fault_within(watch, 2.2) == "", "the cameras stand"
        assert fault_within(watch, 0.3, cameras) == "", "and have just come again"
        watch.add_features(features(2))
        assert "although frames arrive" in fault_within(watch, 10.0, cameras), "now it hangs"


def test_frames_that_came_before_the_instruction_are_none_that_the_encoder_should_have_encoded(bus, cameras):
    with contextlib.closing(EncoderWatch(bus, hung_after_s=1.2, start_s=60.0)) as watch:
        watch.add_features(features(1))
        assert fault_within(watch, 0.8, cameras) == ""
        watch.add_cycle(replace(cycle(1), instruction_id=0, pending_id=None))
        assert fault_within(watch, 1.5) == "", "the cameras stand"


def test_it_listens_to_frames_while_an_encoder_loads_and_no_longer(bus):
    """The first listening takes memory for good; taken at the start of a run, it does not look like growth later."""
    watch = EncoderWatch(bus, hung_after_s=60.0, start_s=60.0)
    try:
        assert watch.find_fault() == "" and watch.is_listening
        watch.add_features(features(1))
        assert watch.find_fault() == "" and not watch.is_listening
    finally:
        watch.close()
