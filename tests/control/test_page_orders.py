"""What the page asks for, against a real command socket: nothing that was reported as failed is done later."""

import contextlib
import threading
import time
from collections import deque

import pytest

from control import page_orders
from control.command_bus import CommandServer
from control.messages import Reply
from control.page_orders import Orders


class Window:
    """A browser window, as far as orders know it."""


@pytest.fixture
def orders(bus, monkeypatch):
    monkeypatch.setattr(page_orders, "_ANSWER_S", 0.2)
    with contextlib.closing(Orders(bus)) as orders:
        yield orders


def told(orders, count, timeout_s=3.0):
    """The next answers, (ref, message) in the order of their refs."""
    answers, ends = deque(), time.monotonic() + timeout_s
    while len(answers) < count and time.monotonic() < ends:
        answers.extend(orders.answers())
        threading.Event().wait(0.01)
    return sorted((answer.ref, answer.message) for answer in answers)


def test_an_order_that_nobody_took_is_not_carried_out_by_the_next_controller(bus, orders):
    window = Window()
    assert orders.give(window, 1, "say", "touch the red block") is None
    assert told(orders, 1) == [(1, "say: no controller answers")]
    with contextlib.closing(CommandServer(bus)) as server:
        assert server.poll(500) is None
        assert orders.give(window, 2, "stop", None) is None
        assert server.poll(2000)[1].verb == "stop", "the page goes on"


def test_with_an_order_that_nobody_took_all_open_ones_are_told_that_they_failed(bus, orders):
    window = Window()
    with contextlib.closing(CommandServer(bus)) as server:
        orders.give(window, 1, "say", "touch the red block")
        client, command = server.poll(2000)
        server.reply(client, Reply(command.request_id, "accepted", "instruction 1"))
        assert told(orders, 1) == [(1, "instruction 1")]
    orders.give(window, 2, "resume", None)
    threading.Event().wait(0.15)
    orders.give(window, 3, "stop", None)
    assert told(orders, 3) == [
        (1, "say: accepted, but no controller answers any more"),
        (2, "resume: no controller answers"),
        (3, "stop: no controller answers"),
    ]
    assert not orders.is_waiting
