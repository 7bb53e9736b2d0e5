"""Commands are limited in number, except `stop`, which no flood stands in front of."""

import contextlib
import itertools
import re
import threading

import pytest
import zmq
from rig import FixedHead, LoopRig

from control.bus import Subscriber
from control.clock import NS_PER_MS, MonotonicClock
from control.command_bus import COMMANDS_EACH, COMMANDS_IN_ALL, CommandClient, CommandServer
from control.controller import Controller
from control.messages import Command, Mode
from control.rate_limit import Budget, SharedBudget
from control.wire import decode, encode

PERIOD_NS = 100 * NS_PER_MS


@pytest.fixture
def server(bus):
    with contextlib.closing(CommandServer(bus)) as server:
        yield server


@contextlib.contextmanager
def dealer(bus):
    """A client that sends what it likes, as much as it likes."""
    with zmq.Context.instance().socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.set_hwm(0)
        socket.connect(bus.endpoint("command"))
        yield socket


def say(number):
    return encode(Command(number, "say", f"touch block {number}"))


def taken(server, until=lambda command: False, polls=100_000):
    """The commands that come out of the server until one is as wanted, or nothing comes for a while."""
    got = []
    for _ in range(polls):
        received = server.poll(300)
        if received is not None:
            got.append(received[1])
            if until(received[1]):
                break
        elif not server.socket.poll(200):
            break
    return got


def test_a_client_that_sends_too_many_commands_is_told_so(bus, server):
    with dealer(bus) as client:
        for number in range(1, 101):
            client.send(say(number))
        got = taken(server)
        assert [command.request_id for command in got[: COMMANDS_EACH[1]]] == list(range(1, COMMANDS_EACH[1] + 1))
        assert len(got) < 80 and server.rejected == 100 - len(got)
        reply = decode("reply", client.recv())
    assert reply.outcome == "failed" and reply.request_id == min(set(range(1, 101)) - {item.request_id for item in got})
    assert reply.message == (
        "too many commands: at most 20 a second from one client and 100 in all, this one was dropped; only `stop` is"
        " never limited"
    )


def test_a_stop_is_taken_in_front_of_what_another_client_floods_the_socket_with(bus, server):
    with dealer(bus) as flood, contextlib.closing(CommandClient(bus)) as operator:
        operator.send("status")
        assert taken(server)[0].verb == "status"
        for number in range(5000):
            flood.send(say(number))
        assert server.socket.poll(2000)
        taken(server, polls=COMMANDS_EACH[1])
        operator.send("stop")
        threading.Event().wait(0.2)  # it is on its way to a socket that has thousands of others before it
        rejected = server.rejected
        got = taken(server, until=lambda command: command.verb == "stop")
    assert got[-1].verb == "stop"
    assert server.rejected - rejected <= 100, "what one flood may put in front of others"


def test_a_stop_after_the_same_clients_own_flood_is_taken(bus, server):
    with dealer(bus) as client:
        for number in range(5000):
            client.send(say(number))
        client.send(encode(Command(7, "stop", "")))
        got = taken(server, until=lambda command: command.verb == "stop")
    assert got[-1].request_id == 7
    assert server.rejected + len(got) == 5001


def test_any_number_of_stops_is_taken(bus, server):
    with dealer(bus) as client:
        for number in range(300):
            client.send(encode(Command(number, "stop", "")))
        assert [command.request_id for command in taken(server, polls=300)] == list(range(300))
    assert server.rejected == 0


def test_one_poll_ends_after_a_millisecond_of_refusing(bus, server, monkeypatch):
    with dealer(bus) as client:
        for _ in range(90):
            client.send(b"no command")
        threading.Event().wait(0.2)
        clock = itertools.count(0, 300_000)  # every look at it takes 0.3 ms
        with monkeypatch.context() as slow:
            slow.setattr("control.command_bus.time.monotonic_ns", lambda: next(clock))
            before = server.rejected
            server.poll(300)
            assert 1 <= server.rejected - before <= 3


def test_large_commands_are_limited_before_they_are_read(bus, server):
    with dealer(bus) as client:
        for number in range(50):
            client.send(encode(Command(number, "stop", "x" * 5000)))
        got = taken(server)
    assert COMMANDS_EACH[1] <= len(got) < 50 and server.rejected == 50 - len(got)


def test_a_message_of_very_many_frames_is_dropped_a_piece_at_a_time(bus, server):
    with dealer(bus) as client, contextlib.closing(CommandClient(bus)) as operator:
        client.send_multipart([b""] * 20_000)
        client.send(say(1))
        assert [command.request_id for command in taken(server)] == [1]
        assert server.rejected == 1
        assert "expected one frame, got 99" in decode("reply", client.recv()).message
        operator.send("stop")
        assert taken(server, polls=1)[0].verb == "stop"


def test_what_waits_at_a_server_that_does_not_read_is_bounded(bus, server):
    with zmq.Context.instance().socket(zmq.DEALER) as client:
        client.setsockopt(zmq.LINGER, 0)
        client.setsockopt(zmq.SNDHWM, 1)
        client.connect(bus.endpoint("command"))
        sent = 0
        with contextlib.suppress(zmq.Again):
            for sent in range(20_000):
                client.send(b"x" * 20_000, zmq.NOBLOCK if sent % 100 else 0)
                client.poll(5, zmq.POLLOUT)
    assert sent < 1000, "then the client waits, not the controller's memory"


def test_clients_that_come_and_go_leave_nothing(monkeypatch):
    now_s = 0.0
    monkeypatch.setattr("control.rate_limit.time.monotonic", lambda: now_s)
    budget = SharedBudget(COMMANDS_EACH, COMMANDS_IN_ALL)
    most = taken_in_all = 0
    for number in range(50_000):
        now_s += 0.001
        taken_in_all += budget.take(str(number).encode())
        most = max(most, len(budget))
    assert most <= 300
    assert taken_in_all == pytest.approx(COMMANDS_IN_ALL[1] + 50 * COMMANDS_IN_ALL[0], abs=2)


def test_who_uses_up_its_own_budget_takes_nothing_from_the_others(monkeypatch):
    now_s = 0.0
    monkeypatch.setattr("control.rate_limit.time.monotonic", lambda: now_s)
    budget = SharedBudget((1.0, 2), (10.0, 4))
    assert [budget.take("flood") for _ in range(50)] == [True, True] + [False] * 48
    assert [budget.take("other") for _ in range(3)] == [True, True, False]
    assert not budget.take("third"), "all together have used up theirs"
    now_s = 1.0
    assert budget.take("flood") and not budget.take("flood") and budget.take("third")


def test_a_budget_is_full_again_after_a_while(monkeypatch):
    now_s = 0.0
    monkeypatch.setattr("control.rate_limit.time.monotonic", lambda: now_s)
    budget = Budget(rate_hz=2.0, burst=2)
    assert budget.is_full and budget.take() and not budget.is_full
    now_s = 0.5
    assert budget.is_full


@contextlib.contextmanager
def controlling(bus, spoil=lambda controller: None):
    """The real controller in a thread, waiting for a robot."""
    settings = LoopRig(period_ns=PERIOD_NS).loop._settings
    controller = Controller(
        bus, FixedHead(), settings, clock=MonotonicClock(), realtime=False, find_misfits=lambda spec: []
    )
    spoil(controller)
    done = threading.Event()
    thread = threading.Thread(target=controller.run, args=(done.is_set,))
    thread.start()
    try:
        yield controller
    finally:
        done.set()
        thread.join()


def test_a_stop_amid_a_flood_is_carried_out_before_the_flood_is_over(bus):
    cycles = Subscriber(bus, "cycle", newest_only=False)
    with controlling(bus) as controller, dealer(bus) as flood, contextlib.closing(CommandClient(bus)) as operator:
        operator.request("status", answer_s=20.0)
        while cycles.poll(1000) is None:
            pass
        for number in range(5000):
            flood.send(say(number))
        ticks = controller.loop._seq
        assert operator.request("stop", answer_s=20.0).outcome == "done"
        while (cycle := cycles.poll(1000)) is None or cycle.mode is not Mode.STOP:
            pass
        assert cycle.seq <= ticks + 3
    cycles.close()


def test_a_stop_is_heard_where_ticks_leave_no_time_to_wait(bus):
    def spoil(controller):
        tick, clock = controller.loop.tick, MonotonicClock()

        def slow(this):
            cycle = tick(this)
            clock.sleep_until(this.deadline_ns + PERIOD_NS - 2 * NS_PER_MS)
            return cycle

        controller.loop.tick = slow

    cycles = Subscriber(bus, "cycle", newest_only=False)
    with controlling(bus, spoil) as controller, contextlib.closing(CommandClient(bus)) as operator:
        while cycles.poll(1000) is None:
            pass
        before = controller.loop._seq
        assert operator.request("stop", answer_s=20.0).outcome == "done"
        assert controller.loop._seq <= before + 2
    cycles.close()


def test_what_came_while_nobody_listened_is_refused_but_for_stop(bus, server):
    with contextlib.closing(CommandClient(bus)) as operator:
        operator.send("status")
        assert server.poll(2000)[1].verb == "status"
        request = operator.send("say", "touch the blue block")
        operator.send("resume")
        operator.send("stop")
        threading.Event().wait(1.1)
        assert [command.verb for command in taken(server)] == ["stop"]
        reply = operator.receive(1.0)
        assert (reply.request_id, reply.outcome) == (request, "failed")
        assert re.fullmatch(
            r"the controller did not listen for 1\.\d s: likely asked before that, not done; ask again", reply.message
        )
        threading.Event().wait(0.3)
        operator.send("say", "touch the blue block")
        assert server.poll(2000)[1].verb == "say"


def test_a_long_wait_for_commands_is_no_gap(bus, server):
    with contextlib.closing(CommandClient(bus)) as operator:
        assert server.poll(1200) is None
        operator.send("resume")
        assert server.poll(2000)[1].verb == "resume"
