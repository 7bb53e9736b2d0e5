"""A profile of a run that goes on: the real controller on real sockets, a thread for the robot host and the encoder."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time

import numpy as np
import pytest
from rig import FixedHead, LoopRig

from control.bus import Latest, Publisher
from control.clock import NS_PER_MS, MonotonicClock
from control.command_bus import CommandClient
from control.controller import Controller
from control.errors import NotRunning
from control.messages import Cycle, Features, Instruction, Mode, State
from control.profile_figures import profile
from control.profile_parts import age_parts, foreign_epochs
from control.profile_source import live
from control.safety import Freshness

PERIOD_NS = 50 * NS_PER_MS


@contextlib.contextmanager
def running(bus):
    """State every 10 ms; features of a capture 8 ms old, of which the last 4 ms are the encode."""
    settings = LoopRig(
        period_ns=PERIOD_NS, freshness=Freshness(5000, 8000, 60_000), state_max_age_ms=5000, max_missed_ticks=1000
    ).loop._settings
    controller = Controller(
        bus, FixedHead(), settings, clock=MonotonicClock(), realtime=False, find_misfits=lambda spec: []
    )
    done = threading.Event()
    rig = LoopRig()

    def robot_and_encoder():
        ports = {topic: Publisher(bus, topic, latch=topic != "state") for topic in ("robot", "state", "features")}
        said, instruction, seq = Latest(bus, "instruction"), None, 0
        while not done.wait(0.01):
            seq += 1
            ports["robot"].greet()
            if seq % 20 == 1:
                ports["robot"].send(rig.spec)
            ports["state"].send(State(seq, time.monotonic_ns(), np.zeros(2)))
            instruction = said.poll() or instruction
            if instruction is not None and seq % 3 == 0:
                ports["features"].send(features(seq // 3, instruction))
        for port in (*ports.values(), said):
            port.close()

    def features(seq: int, instruction: Instruction) -> Features:
        now_ns = time.monotonic_ns()
        ids = (instruction.session, instruction.id, 1, "policy")
        captured_ns, published_ns = now_ns - 8 * NS_PER_MS, now_ns - 6 * NS_PER_MS
        tokens, stages = np.ones((1, 4), np.float32), {"vision": 3.0, "language": 0.75}
        return Features(seq, now_ns, seq, captured_ns, *ids, tokens, {"front": 0.0}, 4.0, stages, published_ns)

    threads = [threading.Thread(target=robot_and_encoder), threading.Thread(target=lambda: controller.run(done.is_set))]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def say(bus):
    client = CommandClient(bus)
    client.request("say", "touch the red block", answer_s=30.0)
    client.close()


def test_a_run_is_profiled_from_the_bus_and_the_parts_add_up(bus):
    shown = []
    with running(bus):
        say(bus)
        samples = live(bus, 2.0, lambda: False, shown.append)
    foreign = foreign_epochs(samples)
    rows = [(cycle, age_parts(cycle, samples, foreign)) for cycle in samples.cycles]
    rows = [(cycle, parts) for cycle, parts in rows if parts is not None]
    assert foreign == set() and len(rows) >= len(samples.cycles) - 2 > 3
    for cycle, parts in rows:
        assert sum(parts.values()) == pytest.approx(cycle.feature_age_ms, abs=1e-6)
        assert (parts["camera"], parts["queue"], parts["vision"], parts["other"]) == (2.0, 2.0, 3.0, 0.25)
        assert parts["cache"] >= 0
    result = profile(samples, Freshness(5000, 8000, 60_000))
    assert result["period_ms"] == 50.0 and result["modes"]["RUN"] > 3
    assert result["lost_records"] == 0 and result["notes"] == []
    hops = result["figures"]["hops"]
    assert hops["cycle, to this listener"]["count"] == len(samples.cycles)
    assert hops["action, to this listener"]["count"] >= len(samples.cycles) - 1
    assert min(hops[name]["p50"] for name in hops) > 0
    assert shown[0] == "waiting for a cycle" and "cycles" in shown[-1]


def test_hops_are_not_measured_against_another_machines_clock(bus):
    ports = [Publisher(bus, "cycle", queue=100)]
    done, hour_ns = threading.Event(), 3_600_000_000_000

    def speak():
        seq = 0
        while not done.wait(0.02):
            seq += 1
            now_ns = time.monotonic_ns() + hour_ns
            ports[0].send(dataclasses.replace(cycle(seq), stamp_ns=now_ns, deadline_ns=now_ns))

    controller = threading.Thread(target=speak)
    controller.start()
    try:
        samples = live(bus, 0.5, lambda: False)
    finally:
        done.set()
        controller.join()
        ports[0].close()
    assert len(samples.cycles) > 3 and samples.hop_ms == {}
    assert samples.notes == ["no transport hops: the robot's machine has another clock than this one"]


def test_without_a_run_it_ends_soon_and_names_the_bus(bus):
    with pytest.raises(NotRunning, match=r"no controller publishes cycles at ipc://.*/cycle within 3 s; start one"):
        live(bus, 1.0, lambda: False)
    with pytest.raises(NotRunning, match="interrupted before the first cycle"):
        live(bus, 1.0, lambda: True)


def cycle(seq: int) -> Cycle:
    now_ns = time.monotonic_ns()
    nothing = (None, None, None, None, None, 0, None, Mode.INIT, "waiting", (), 0)
    return Cycle(seq, now_ns, now_ns, 0.0, 0.0, {}, *nothing)


def test_a_run_that_falls_silent_is_profiled_as_far_as_it_went(bus):
    out, done = Publisher(bus, "cycle", queue=1000), threading.Event()

    def publish():
        for seq in range(40):
            out.send(cycle(seq))
            done.wait(0.02)

    thread = threading.Thread(target=publish)
    thread.start()
    samples = live(bus, 3600.0, lambda: False)
    thread.join()
    out.close()
    assert 5 < len(samples.cycles) <= 40
    assert "the run ended or hangs" in samples.notes[0]


def test_messages_that_are_no_cycles_are_counted_and_said(bus):
    out, done = Publisher(bus, "cycle", queue=1000), threading.Event()

    def publish():
        seq = 0
        while not done.wait(0.01):
            seq += 1
            out.send(cycle(seq))
            out._socket.send(b"\x93junk")

    thread = threading.Thread(target=publish)
    thread.start()
    samples = live(bus, 0.5, lambda: False)
    done.set()
    thread.join()
    out.close()
    assert samples.cycles and "cycle messages refused, the last: cycle: expected" in samples.notes[0]
