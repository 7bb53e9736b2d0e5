"""Stopping again and again: a small stand-in of a controller on real sockets."""

import contextlib
import threading
import time

import numpy as np
import pytest

from control import bench_stop
from control.bench_stop import measure_stop
from control.bus import Publisher
from control.command_bus import CommandServer
from control.errors import NotRunning
from control.messages import ActionChunk, Mode, Reply


@contextlib.contextmanager
def controller(bus, delay_s=0.0, deaf=False):
    """Ticks every 20 ms. As the real one it tells of a `stop` at once, here `delay_s` later, latches it with the next
    tick, and refuses to resume before that.
    """
    ends = threading.Event()

    def run():
        server, actions = CommandServer(bus), Publisher(bus, "action", queue=100)
        mode = told = Mode.RUN

        def act(mode):
            now_ns = time.monotonic_ns()
            actions.send(ActionChunk(1, now_ns, 1, None, mode, np.zeros((1, 2)), 0.1, now_ns))

        tick_s = time.monotonic()
        while not ends.is_set():
            left_s = tick_s - time.monotonic()
            if left_s <= 0:
                mode, tick_s = told, time.monotonic() + 0.02
                act(mode)
            elif (received := server.poll(max(1, int(left_s * 1000)))) is not None and not deaf:
                client, command = received
                outcome = "done" if command.verb == "stop" or mode is told else "failed"
                if command.verb == "stop":
                    ends.wait(delay_s)
                    act(Mode.STOP)
                if outcome == "done":
                    told = Mode.STOP if command.verb == "stop" else Mode.RUN
                server.reply(client, Reply(command.request_id, outcome, ""))
        server.close()
        actions.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


def test_a_slow_stop_is_measured_as_slow(bus):
    with controller(bus):
        quick = measure_stop(bus, 5, 0, lambda: False, lambda done: None)
    with controller(bus, delay_s=0.1):
        slow = measure_stop(bus, 5, 0, lambda: False, lambda done: None)
    assert quick["count"] == slow["count"] == 5
    assert slow["sent_ms"]["p50"] > 100 and slow["sent_ms"]["p50"] > quick["sent_ms"]["p50"] + 50
    assert slow["heard_ms"]["p50"] >= slow["sent_ms"]["p50"]


def test_a_controller_that_does_not_stop_is_an_error(bus, monkeypatch):
    monkeypatch.setattr(bench_stop, "_WAIT_S", 0.5)
    with controller(bus, deaf=True), pytest.raises(NotRunning, match="no controller in STOP within 0.5 s"):
        measure_stop(bus, 1, 0, lambda: False, lambda done: None)


def test_without_a_run_it_says_what_to_do(bus, monkeypatch):
    monkeypatch.setattr(bench_stop, "_WAIT_S", 0.2)
    with pytest.raises(NotRunning, match="no controller in RUN within 0.2 s: start a run first"):
        measure_stop(bus, 1, 0, lambda: False, lambda done: None)
