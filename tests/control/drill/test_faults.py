"""That faults are really injected, on what can be had without a run."""

import random
import threading
import time
from types import SimpleNamespace

import pytest

from control.command_bus import CommandClient, CommandServer
from control.drill.faults import KINDS, _again_and_again


def kind_of(target, name):
    return next(kind for kind in KINDS if (kind.target, kind.name) == (target, name))


@pytest.mark.parametrize(("target", "name"), [("instruction", "flood"), ("command", "flood"), ("command", "garbled")])
def test_a_flood_goes_on_when_its_own_queue_is_full(bus, target, name):
    rig = SimpleNamespace(client=lambda: CommandClient(bus), buses={"controller": bus})
    with kind_of(target, name).inject(rig, random.Random(0)):
        threading.Event().wait(0.4)  # nobody serves: the queue of 1,000 is full long before
        server = CommandServer(bus)
        served, ends_s = 0, time.monotonic() + 5.0
        while served < 2500 and time.monotonic() < ends_s:
            before = server.rejected
            served += (server.poll(10) is not None) + server.rejected - before
        server.close()
    assert served >= 2500


def test_what_goes_wrong_in_a_flood_is_not_swallowed():
    def fails():
        raise RuntimeError("no socket")

    with pytest.raises(RuntimeError, match="no socket"), _again_and_again(fails):
        threading.Event().wait(0.05)


def test_every_kind_is_one_of_its_target():
    names = [(kind.target, kind.name) for kind in KINDS]
    assert len(set(names)) == len(names)
    assert all(kind.silences for kind in KINDS if kind.target == "controller")
