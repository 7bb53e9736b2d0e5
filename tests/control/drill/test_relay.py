"""The man in the middle, on real sockets."""

import random
import time

import msgpack
import numpy as np
import pytest

from control.address import BusAddress
from control.bus import Publisher, Subscriber
from control.drill import relay
from control.drill.relay import Relay
from control.messages import State


@pytest.fixture
def middle(tmp_path_factory):
    """A relay between three buses, the robot's `state` on one side and the controller's end of it on the other."""
    folder = tmp_path_factory.mktemp("r")
    buses = {name: BusAddress(f"ipc://{folder}/{name}") for name in ("robot", "encoder", "controller")}
    for name in buses:
        (folder / name).mkdir(mode=0o700)
    passing = Relay(buses)
    out, inbox = (
        Publisher(buses["robot"], "state", queue=100),
        Subscriber(buses["controller"], "state", newest_only=False),
    )

    def state(seq):
        return State(seq, 1000 + seq, np.zeros(2))

    def heard(count=1, timeout_s=3.0):
        """The numbers of the next states, as many as come."""
        got, ends = [], time.monotonic() + timeout_s
        while len(got) < count and time.monotonic() < ends:
            if (one := inbox.poll(20)) is not None:
                got.append(one.seq)
        return got

    ends = time.monotonic() + 3.0
    while not heard(timeout_s=0.05):  # until all three are connected
        out.send(state(0))
        assert time.monotonic() < ends
    while heard(timeout_s=0.1):
        pass
    yield passing, lambda *seqs: [out.send(state(seq)) for seq in seqs], heard
    passing.close()
    out.close()
    inbox.close()


def test_all_is_passed_on_in_order_until_it_is_disturbed_and_after_it(middle):
    passing, send, heard = middle
    send(1, 2, 3)
    assert heard(3) == [1, 2, 3]
    passing.disturb("state", relay.dropped(random.Random(0), 1.0))
    send(4, 5)
    assert heard(1, 0.3) == []
    passing.disturb("state", None)
    send(6)
    assert heard() == [6]


def test_messages_come_late_twice_or_in_another_order(middle):
    passing, send, heard = middle
    passing.disturb("state", relay.reordered(3))
    send(1, 2, 3)
    assert heard(3) == [3, 2, 1]
    passing.disturb("state", relay.duplicated(random.Random(0), 10.0))
    send(4)
    assert set(heard(5, 0.5)) == {4}
    passing.disturb("state", relay.delayed(random.Random(0), 200.0))
    began = time.monotonic()
    send(5)
    assert heard() == [5] and time.monotonic() - began > 0.05


def test_old_messages_come_again_between_the_new_ones(middle):
    passing, send, heard = middle
    send(1)
    heard()
    passing.disturb("state", relay.replayed([passing.newest("state")], random.Random(0)))
    send(2)
    assert heard(2) == [2, 1]


def test_what_is_truncated_or_scrambled_is_refused_by_the_wire(middle):
    passing, send, heard = middle
    passing.disturb("state", relay.truncated(random.Random(0)))
    send(*range(50))
    assert heard(1, 0.5) == []


def test_a_rewritten_message_is_well_formed():
    data = msgpack.packb({"v": 1, "policy_id": "a", "seq": 3})
    [(after_ms, changed)] = relay.rewritten(policy_id="b")(data)
    assert after_ms == 0 and msgpack.unpackb(changed) == {"v": 1, "policy_id": "b", "seq": 3}


def test_scrambling_is_the_same_for_the_same_seed_and_always_changes_something():
    data = bytes(range(200))
    made = [[relay.scrambled(random.Random(seed))(data) for seed in range(50)] for _ in range(2)]
    assert made[0] == made[1] and sum(one != [(0.0, data)] for one in made[0]) > 48
