"""A little of what `python -m tests.fuzz.messages` does by the million."""

import random
import time
from collections import Counter
from itertools import islice

import pytest
import zmq

from control import wire
from control.command_bus import CommandClient, CommandServer
from control.errors import WireError
from control.messages import Reply
from tests.fuzz.messages import mutated, outcome


def test_mutated_messages_are_decoded_or_refused_and_nothing_else():
    found = Counter(outcome(topic, data) for topic, data in islice(mutated(random.Random(1)), 20_000))
    assert found["refused"] > 10_000 and found["decoded"] > 300


def test_messages_are_the_same_for_the_same_seed():
    first, again = (list(islice(mutated(random.Random(7)), 200)) for _ in range(2))
    assert first == again


def test_another_exception_is_a_finding_with_its_message(monkeypatch):
    def broken(topic, data):
        raise KeyError("dtype")

    monkeypatch.setattr("tests.fuzz.messages.decode", broken)
    with pytest.raises(AssertionError, match="KeyError: 'dtype' on state"):
        outcome("state", b"\x80")


def test_an_error_that_does_not_name_its_topic_is_a_finding(monkeypatch):
    def vague(topic, data):
        raise WireError("something is wrong")

    monkeypatch.setattr("tests.fuzz.messages.decode", vague)
    with pytest.raises(AssertionError, match="state: something is wrong"):
        outcome("state", b"\x80")
    assert wire.decode is not vague


def test_a_command_server_answers_after_whatever_was_sent_to_it(bus):
    """On real sockets, in one frame or several; everything that is no command is counted, and answered if it can be."""
    server, client = CommandServer(bus), CommandClient(bus)
    rng, sent = random.Random(3), 0
    raw = zmq.Context.instance().socket(zmq.DEALER)
    raw.setsockopt(zmq.LINGER, 0)
    raw.connect(bus.endpoint("command"))
    for topic, data in islice(mutated(rng), 3_000):
        parts = [data] if rng.random() < 0.8 else [data[:5], data[5:], b""]
        if topic == "command" and len(parts) == 1 and outcome(topic, data) == "decoded":
            continue
        raw.send_multipart(parts)
        sent += 1
        while (received := server.poll(2)) is not None:
            raise AssertionError(f"taken as a command: {received}")
    ends = time.monotonic() + 5.0
    while server.rejected < sent and time.monotonic() < ends:
        assert server.poll(20) is None
    assert server.rejected >= sent
    request_id = client.send("status")
    while (received := server.poll(20)) is None:
        assert time.monotonic() < ends
    who, command = received
    assert (command.verb, command.request_id) == ("status", request_id)
    server.reply(who, Reply(request_id, "done", ""))
    assert client.receive(2.0).outcome == "done"
    raw.close()
    client.close()
    server.close()
