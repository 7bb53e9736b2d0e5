"""The stamps that a profile needs: each is put where the thing happens, on real sockets where there is one."""

from __future__ import annotations

import threading
import time

import msgpack
import numpy as np
import pytest
from recordings import cycle, features, image
from rig import FixedHead, LoopRig

from control.bus import Publisher, StampedLatest, Subscriber
from control.clock import NS_PER_MS, MonotonicClock
from control.controller import Controller
from control.host import RobotHost
from control.messages import Frames, Mode, State
from control.wire import decode, encode


def wait_for(condition, feed=lambda: None, timeout_s=20.0):
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends:
        feed()
        if found := condition():
            return found
        threading.Event().wait(0.005)
    raise AssertionError("did not happen in time")


@pytest.fixture
def joined(bus):
    """A publisher and an inbox that have met; nothing is under way."""
    out, inbox = Publisher(bus, "features"), StampedLatest(bus, "features")
    wait_for(inbox.poll, lambda: out.send(features(0, 5)))
    while inbox.socket.poll(200):
        inbox.poll()
    yield out, inbox
    out.close()
    inbox.close()


def test_a_message_is_stamped_when_it_is_collected_and_not_when_it_is_read(joined):
    out, inbox = joined
    sent_ns = time.monotonic_ns()
    out.send(features(1, 5))
    wait_for(lambda: inbox.socket.poll(0))
    inbox.collect()
    collected_ns = time.monotonic_ns()
    assert inbox.arrived_ns < sent_ns, "the stamp is of the message that was read last"
    threading.Event().wait(0.05)
    assert inbox.poll().seq == 1 and sent_ns <= inbox.arrived_ns <= collected_ns
    out.send(features(2, 5))
    wait_for(lambda: inbox.socket.poll(0))
    read_ns = time.monotonic_ns()
    assert inbox.poll().seq == 2 and inbox.arrived_ns >= read_ns and inbox.poll() is None


def test_a_newer_message_takes_the_place_of_the_one_collected_with_its_own_stamp(joined):
    out, inbox = joined
    for seq in (1, 2):
        between_ns = time.monotonic_ns()
        out.send(features(seq, 5))
        wait_for(lambda: inbox.socket.poll(0))
        inbox.collect()
    assert inbox.poll().seq == 2 and inbox.arrived_ns >= between_ns


def test_a_malformed_message_is_counted_when_it_is_read(joined):
    out, inbox = joined
    out._socket.send(b"\x93junk")
    wait_for(lambda: inbox.socket.poll(0))
    inbox.collect()
    assert inbox.rejected == 0 and inbox.poll() is None
    assert inbox.rejected == 1 and inbox.last_error.startswith("features: ")


def stamped_rig(arrived_ns):
    rig = LoopRig()
    ports = rig.loop._ports
    rig.loop._ports = type(ports)(*(getattr(ports, name) for name in ports.__slots__[:-1]), arrived_ns)
    return rig


def test_a_cycle_says_when_the_features_in_use_arrived():
    stamps = []
    rig = stamped_rig(lambda: stamps[-1])
    rig.feed_robot()
    rig.loop.say("touch the red block")
    stamps.append(rig.clock.now_ns() + 40 * NS_PER_MS)
    assert rig.healthy_tick().feature_arrived_ns == stamps[0]
    rig.feed_state()
    stamps.append(rig.clock.now_ns())
    assert rig.tick().feature_arrived_ns == stamps[0], "no new features: the stamp stays that of the ones in use"


def test_features_that_arrive_within_a_tick_count_as_arrived_at_its_beginning():
    rig = stamped_rig(lambda: rig.clock.now_ns() + NS_PER_MS)
    rig.feed_robot()
    rig.loop.say("touch the red block")
    cycle = rig.healthy_tick()
    assert cycle.mode is Mode.RUN and cycle.feature_arrived_ns == cycle.stamp_ns


def test_where_nobody_stamps_the_cycle_says_so():
    rig = LoopRig().running()
    assert rig.healthy_tick().feature_arrived_ns is None


class Camera:
    """A robot whose cameras take 5 ms."""

    def __init__(self, spec, clock):
        self.spec, self._clock = spec, clock

    def connect(self): ...

    def read_state(self):
        return np.zeros(2)

    def read_frames(self):
        self._clock.sleep_until(self._clock.now_ns() + 5 * NS_PER_MS)
        return {name: np.zeros((*size, 3), np.uint8) for name, size in self.spec.cameras.items()}

    def apply(self, targets):
        return targets

    def hold(self): ...

    def close(self): ...


def test_the_robot_host_stamps_a_frame_again_when_its_images_are_there(bus, spec):
    host = RobotHost(Camera(spec, MonotonicClock()), bus)
    inbox = Subscriber(bus, "frames", newest_only=True)
    frames = wait_for(inbox.poll, host.step)
    host.close()
    assert frames.published_ns - frames.stamp_ns >= 5 * NS_PER_MS


def test_the_controller_stamps_features_while_it_waits(bus, rig):
    """Features are published in mid-wait, 60 ms or more before the tick that uses them."""
    controller = Controller(
        bus,
        FixedHead(),
        rig.loop._settings,
        clock=MonotonicClock(),
        realtime=False,
        find_misfits=lambda spec: [],
    )
    ports = {topic: Publisher(bus, topic, latch=topic == "robot") for topic in ("robot", "state", "features")}
    cycles = Subscriber(bus, "cycle", newest_only=False)
    done = threading.Event()
    running = threading.Thread(target=lambda: controller.run(done.is_set))
    running.start()
    seen = []

    def feed():
        if cycle := cycles.poll():
            seen.append(cycle)
            ports["robot"].send(rig.spec)
            now_ns = time.monotonic_ns()
            ports["state"].send(State(len(seen), now_ns, np.zeros(2)))
            instruction = controller.loop.pending or controller.loop.acting or controller.loop.say("touch")
            rig.features.items.clear()
            rig.clock._now_ns = now_ns
            rig.feed_features(instruction.id, age_ms=0.0, session=instruction.session)
            ports["features"].send(rig.features.poll())
        return len(seen) > 12

    try:
        wait_for(lambda: len(seen) > 12, feed)
    finally:
        done.set()
        running.join()
        for port in (*ports.values(), cycles):
            port.close()
    used = [cycle for cycle in seen if cycle.feature_arrived_ns is not None]
    assert len(used) > 5
    assert all(cycle.feature_arrived_ns <= cycle.stamp_ns for cycle in used)
    waits_ms = [(cycle.stamp_ns - cycle.feature_arrived_ns) / NS_PER_MS for cycle in used]
    assert np.median(waits_ms) > 20.0, waits_ms


@pytest.mark.parametrize(
    ("noun", "stamp"),
    [
        (Frames(1, 2, {"front": image((4, 4), 1)}, 3), "published_ns"),
        (features(1, 5), "frame_published_ns"),
        (cycle(1, 5), "feature_arrived_ns"),
    ],
)
def test_messages_without_the_new_stamps_are_still_read(noun, stamp):
    fields = msgpack.unpackb(encode(noun))
    del fields[stamp]
    assert getattr(decode(fields["topic"], msgpack.packb(fields)), stamp) is None
