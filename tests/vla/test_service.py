"""The encoder process around a small stand-in encoder, on real sockets."""

import logging
import threading
import time

import numpy as np
import pytest

from control.bus import Latest, Publisher, Subscriber
from control.clock import NS_PER_S
from control.messages import Features, Frames, Instruction
from vla.errors import CameraError, EncoderFault, NonFiniteFeatures
from vla.service import EncoderService, measure


class CountingEncoder:
    """Features that say which frame and instruction they were made of."""

    policy_id = "policy"
    epoch = 1
    cameras = {"front": (28, 28)}

    def __init__(self):
        self.seen, self.fault = [], None

    def encode(self, frames, instruction):
        if self.fault:
            raise self.fault
        self.seen.append((frames.seq, instruction.id))
        return Features(
            len(self.seen), 1, frames.seq, frames.stamp_ns, instruction.session, instruction.id, 1, "policy",
            np.ones((1, 2), np.float32), {"front": 0.0}, 4.0 + len(self.seen),
        )  # fmt: skip

    def warm_up(self):
        pass


class Bench:
    def __init__(self, bus, max_rate_hz=None):
        self.encoder = CountingEncoder()
        self.frames, self.instructions = Publisher(bus, "frames"), Publisher(bus, "instruction")
        self.service = EncoderService(self.encoder, bus, max_rate_hz)
        self.features = Latest(bus, "features")
        self.seq = 0

    def frame(self, seq=None):
        self.seq = self.seq + 1 if seq is None else seq
        image = np.zeros((28, 28, 3), np.uint8)
        self.frames.send(Frames(self.seq, self.seq, {"front": image}))

    def say(self, number):
        self.instructions.send(Instruction(0, 0, 7, number, f"text {number}"))

    def until(self, condition, feed=lambda: None, timeout_s=3.0):
        ends = time.monotonic() + timeout_s
        while time.monotonic() < ends:
            feed()
            self.service.step()
            if found := condition():
                return found
            self.features.socket.poll(5)
        raise AssertionError(f"did not happen in time; encoded {self.encoder.seen}")


@pytest.fixture
def bench(bus):
    return Bench(bus)


def test_nothing_is_encoded_before_an_instruction_and_then_each_frame_once(bench):
    for _ in range(20):
        bench.frame()
        bench.service.step()
    assert bench.encoder.seen == []
    got = bench.until(bench.features.poll, lambda: (bench.frame(), bench.say(1)))
    assert got.instruction_id == 1 and got.frame_stamp_ns == got.frame_seq
    count = len(bench.encoder.seen)
    for _ in range(20):
        bench.say(1)
        bench.service.step()
        bench.features.socket.poll(2)
    frames = [frame for frame, _ in bench.encoder.seen]
    assert len(set(frames)) == len(frames) <= count + 2


def test_a_new_instruction_encodes_the_newest_frame_at_once_without_waiting_for_another(bench):
    bench.until(lambda: bench.encoder.seen, lambda: (bench.frame(), bench.say(1)))
    frame = bench.until(lambda: bench.encoder.seen[-1][0])
    bench.until(lambda: (frame, 2) in bench.encoder.seen or bench.encoder.seen[-1][1] == 2, lambda: bench.say(2))
    assert bench.encoder.seen[-1][1] == 2


def test_a_late_controller_gets_the_newest_features(bench, bus):
    bench.until(lambda: bench.encoder.seen, lambda: (bench.frame(), bench.say(1)))
    for _ in range(10):  # what is on its way is encoded before the other one joins
        threading.Event().wait(0.02)
        bench.service.step()
    late = Latest(bus, "features")
    assert bench.until(late.poll).seq == len(bench.encoder.seen)


def test_a_frame_that_cannot_be_encoded_is_said_once_and_refused_by_a_message_without_features(bench, bus, caplog):
    bench.encoder.fault = CameraError("frame 1 lacks camera 'front'")
    every = Subscriber(bus, "features", newest_only=False)
    with caplog.at_level(logging.ERROR, logger="encoder"):
        bench.until(lambda: caplog.records, lambda: (bench.frame(), bench.say(1)))
        for _ in range(20):
            bench.frame()
            bench.service.step()
            bench.features.socket.poll(2)
    assert len(caplog.records) == 1
    assert "not encoded: frame 1 lacks camera 'front'" in caplog.text
    refusal = bench.until(bench.features.poll, bench.frame)
    assert refusal.fault.endswith("not encoded: frame 1 lacks camera 'front'")
    assert (refusal.seq, refusal.tokens.size, refusal.instruction_id, refusal.session) == (0, 0, 1, 7)
    bench.encoder.fault = None
    assert bench.until(lambda: (got := every.poll()) and not got.fault and got, bench.frame).seq == 1


def test_a_refusal_never_follows_features_at_once(bench):
    bench.until(lambda: bench.encoder.seen, lambda: (bench.frame(), bench.say(1)))
    good_ns, bench.encoder.fault = time.monotonic_ns(), CameraError("frame 9 lacks camera 'front'")
    refusal = bench.until(lambda: (got := bench.features.poll()) and got.fault and got, bench.frame)
    assert refusal.stamp_ns - good_ns > 0.4 * NS_PER_S


def test_features_that_are_not_finite_again_and_again_end_the_encoder(bench):
    bench.until(lambda: bench.encoder.seen, lambda: (bench.frame(), bench.say(1)))
    bench.encoder.fault = NonFiniteFeatures("4 of 8 features are NaN")
    with pytest.raises(EncoderFault, match="10 frames in a row gave no finite features, the last: 4 of 8"):
        bench.until(lambda: False, bench.frame)


def test_a_frame_that_is_not_finite_now_and_then_does_not(bench):
    bench.until(lambda: bench.encoder.seen, lambda: (bench.frame(), bench.say(1)))
    for _ in range(4):
        before, bench.encoder.fault = bench.service._not_finite, NonFiniteFeatures("4 of 8 features are NaN")
        bench.until(lambda: bench.service._not_finite >= 5, bench.frame)  # noqa: B023
        bench.encoder.fault = None
        bench.until(lambda: bench.service._not_finite == 0, bench.frame)
        assert before == 0


@pytest.mark.parametrize("topic", ["frames", "instruction"])
def test_a_malformed_message_is_refused_and_said(bench, caplog, topic):
    bench.until(lambda: bench.encoder.seen, lambda: (bench.frame(), bench.say(1)))
    publisher = bench.frames if topic == "frames" else bench.instructions
    with caplog.at_level(logging.ERROR, logger="encoder"):
        bench.until(lambda: caplog.records, lambda: publisher._socket.send(b"\x93junk"))
    assert f"refused a message: {topic}: " in caplog.text
    before = len(bench.encoder.seen)
    bench.until(lambda: len(bench.encoder.seen) > before, bench.frame)


def test_a_refused_instruction_is_not_explained_by_a_frame_that_was_refused_before(bench, caplog):
    bench.until(lambda: bench.encoder.seen, lambda: (bench.frame(), bench.say(1)))
    with caplog.at_level(logging.ERROR, logger="encoder"):
        bench.until(lambda: caplog.records, lambda: bench.frames._socket.send(b"\x93junk"))
        bench.until(lambda: "instruction: " in caplog.text, lambda: bench.instructions._socket.send(b"\x93junk"))


def test_the_measured_encode_time_is_the_median():
    assert measure(CountingEncoder()) == 7.0


def test_features_are_latched_for_every_kind_of_reader(bench, bus):
    bench.until(lambda: bench.encoder.seen, lambda: (bench.frame(), bench.say(1)))
    queued = Subscriber(bus, "features", newest_only=False)
    assert bench.until(queued.poll).session == 7


def test_frames_in_between_are_skipped_but_a_new_instruction_never_waits(bus):
    bench = Bench(bus, max_rate_hz=0.01)
    bench.until(lambda: bench.encoder.seen, lambda: (bench.frame(), bench.say(1)))
    for _ in range(20):
        bench.frame()
        bench.say(1)
        bench.service.step()
        bench.features.socket.poll(2)
    assert len(bench.encoder.seen) == 1
    bench.until(lambda: bench.encoder.seen[-1][1] == 2, lambda: bench.say(2))
    bench.service._began_ns -= 100 * NS_PER_S
    bench.until(lambda: len(bench.encoder.seen) == 3, bench.frame)
