"""A run that only speaks: what robot, encoder and controller publish, from the test's own process."""

from __future__ import annotations

import threading

import numpy as np
from rig import two_joint_spec

from control.address import Lease
from control.bus import Publisher
from control.clock import NS_PER_MS, NS_PER_S
from control.messages import Cycle, Features, Instruction, Mode, State

PERIOD_NS = 100 * NS_PER_MS


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
    return Features(seq, stamp_ns, 3 * seq, stamp_ns, 1, 1, epoch, "policy", tokens, {}, 8.0, {"vision": 4.0})


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


def heard(watch, *cycles):
    """A watch that has heard these cycles, one a period, and the time of the last."""
    for item in cycles:
        watch.hear(item, item.stamp_ns)
    return cycles[-1].stamp_ns
