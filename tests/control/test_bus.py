import dataclasses
import itertools
import os
import resource
import threading
from pathlib import Path
from types import SimpleNamespace

import msgpack
import numpy as np
import pytest
import zmq

from control.address import OWNERS, BusAddress
from control.bus import Kept, Latest, Publisher, StampedLatest, Subscriber
from control.command_bus import CommandClient, CommandServer
from control.errors import BusError, CommandFailed, NotRunning
from control.messages import Frames, Instruction, Reply, State
from control.wire import encode


def instruction(number):
    return Instruction(number, 1, 1, 1, f"text {number}")


def wait_for(subscriber, timeout_ms=2000):
    noun = subscriber.poll(timeout_ms)
    assert noun is not None, "nothing came"
    return noun


def connected(publisher, subscriber):
    """Publish until the subscriber has joined."""
    for _ in range(100):
        publisher.send(instruction(0))
        if subscriber.poll(20) is not None:
            return
    raise AssertionError("the subscriber never joined")


@pytest.mark.parametrize(("size", "comes"), [(4000, True), (5000, False)])
def test_a_publisher_takes_in_nothing_large(bus, size, comes):
    publisher = Publisher(bus, "instruction", latch=True)
    with zmq.Context.instance().socket(zmq.SUB) as reader:
        reader.setsockopt(zmq.LINGER, 0)
        reader.setsockopt(zmq.SUBSCRIBE, b"x" * size)
        reader.connect(bus.endpoint("instruction"))
        assert bool(publisher._socket.poll(300)) is comes
    publisher.close()


def test_a_slow_reader_gets_the_newest_message_and_only_that(bus):
    publisher, latest = Publisher(bus, "instruction"), Latest(bus, "instruction")
    connected(publisher, latest)
    for number in range(1, 200):
        publisher.send(instruction(number))
        threading.Event().wait(0.001)
    threading.Event().wait(0.1)
    assert wait_for(latest).seq == 199
    assert latest.poll() is None
    publisher.close()
    latest.close()


def test_a_reader_that_was_away_for_longer_than_its_queue_has_the_newest_at_the_second_look_at_the_latest(bus):
    publisher, latest = Publisher(bus, "frames"), Latest(bus, "frames")
    frames = Frames(1, 1, {"front": np.zeros((300, 300, 3), np.uint8)})
    for _ in range(100):
        publisher.send(frames)
        if latest.poll(20) is not None:
            break
    for number in range(2, 101):
        publisher.send(dataclasses.replace(frames, seq=number))
        threading.Event().wait(0.002)
    first = wait_for(latest).seq
    threading.Event().wait(0.1)
    publisher.send(dataclasses.replace(frames, seq=101))
    threading.Event().wait(0.1)
    assert first < 101 and wait_for(latest).seq == 101
    publisher.close()
    latest.close()


def test_a_kept_reader_has_the_newest_however_long_it_was_away(bus):
    publisher, kept = Publisher(bus, "frames"), Kept(bus, "frames")
    poller = zmq.Poller()
    poller.register(kept.socket, zmq.POLLIN)
    frames = Frames(1, 1, {"front": np.zeros((300, 300, 3), np.uint8)})
    for _ in range(100):
        publisher.send(frames)
        if kept.poll(20) is not None:
            break
    threading.Event().wait(0.1)
    kept.poll()
    for away in range(3):
        assert not poller.poll(0) and kept.poll() is None
        for number in range(100):
            publisher.send(dataclasses.replace(frames, seq=100 * away + number))
            threading.Event().wait(0.1 if number > 97 else 0.002)  # what comes too fast is dropped by the publisher
        assert poller.poll(0), "a poller hears of it"
        assert wait_for(kept).seq == 100 * away + 99
    kept.close()
    assert not kept._keeper.is_alive()
    publisher.close()


@pytest.mark.parametrize("make", [Latest, StampedLatest, Kept])
def test_no_reader_conflates_since_that_loses_messages_and_memory(bus, make):
    reader = make(bus, "frames")
    assert reader._socket.getsockopt(zmq.CONFLATE) == 0
    reader.close()


def test_a_flood_does_not_hold_a_reader_of_the_newest(bus):
    latest = Latest(bus, "features")
    latest._socket.close()
    calls = itertools.count()
    latest._socket = SimpleNamespace(recv=lambda flags: b"%d" % next(calls))  # never ends
    assert latest._received() == b"99"


def test_a_queueing_reader_gets_every_message(bus):
    publisher = Publisher(bus, "instruction", queue=1000)
    subscriber = Subscriber(bus, "instruction", newest_only=False)
    connected(publisher, subscriber)
    for number in range(1, 101):
        publisher.send(instruction(number))
    got = [wait_for(subscriber).seq for _ in range(100)]
    assert got == list(range(1, 101))
    publisher.close()
    subscriber.close()


def test_a_late_reader_gets_the_newest_of_a_latched_topic(bus):
    publisher = Publisher(bus, "instruction", latch=True)
    publisher.send(instruction(5))
    late = Latest(bus, "instruction")
    for _ in range(100):
        publisher.greet()
        if (got := late.poll(20)) is not None:
            break
    assert got.seq == 5
    publisher.close()
    late.close()


def test_a_reader_of_changes_gets_a_repeated_message_once(bus):
    publisher = Publisher(bus, "instruction")
    changes = Subscriber(bus, "instruction", newest_only=True, changes_only=True)
    connected(publisher, changes)
    got = []
    for number in (1, 1, 1, 2, 2, 1):
        publisher.send(instruction(number))
        threading.Event().wait(0.02)
        got.append(changes.poll())
    assert [one.seq if one else None for one in got] == [1, None, None, 2, None, 1]
    publisher.close()
    changes.close()


def test_malformed_messages_are_counted_explained_and_never_returned(bus):
    socket = zmq.Context.instance().socket(zmq.PUB)
    socket.setsockopt(zmq.LINGER, 0)
    folder = bus.address.removeprefix("ipc://")
    os.makedirs(folder, exist_ok=True)
    socket.bind(bus.endpoint("state"))
    latest = Subscriber(bus, "state", newest_only=False)
    for _ in range(100):
        socket.send(b"\x00garbage")
        latest.poll(20)
        if latest.rejected:
            break
    assert latest.rejected >= 1
    assert latest.last_error.startswith("state: expected one msgpack map")
    assert latest.refusal == latest.last_error
    socket.send(encode(State(1, 1, np.zeros(2))))
    assert wait_for(latest).seq == 1
    assert latest.refusal == "" and latest.last_error, "an old refusal explains nothing of now"
    socket.close()
    latest.close()


def test_a_second_owner_of_an_address_is_refused_with_the_holder(bus):
    first = Publisher(bus, "state")
    with pytest.raises(BusError, match=f"is in use by process {os.getpid()}: another run is going on"):
        Publisher(bus, "state")
    first.close()
    Publisher(bus, "state").close()


def test_a_taken_tcp_port_is_refused():
    bus = BusAddress("tcp://127.0.0.1:20910")
    first = Publisher(bus, "state")
    with pytest.raises(BusError, match=f"is in use by process {os.getpid()}"):
        Publisher(bus, "state")
    first.close()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("tcp://127.0.0.1:80", "port 1024..65000"),
        ("udp://x", "expected ipc://NAME"),
        ("ipc://", "expected ipc://NAME"),
        ("ipc://" + "x" * 120, "is longer than 100 bytes"),
    ],
)
def test_an_unusable_address_is_refused_before_anything_is_bound(address, message):
    with pytest.raises(BusError, match=message):
        BusAddress(address)


def test_every_topic_has_an_endpoint_of_its_own():
    bus = BusAddress("tcp://127.0.0.1:5550", encoder="tcp://127.0.0.1:6660")
    assert len({bus.endpoint(topic) for topic in OWNERS}) == len(OWNERS)
    assert bus.endpoint("features").startswith("tcp://127.0.0.1:666")


def test_the_socket_folder_is_closed_to_other_users(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("r")))
    bus = BusAddress("ipc://private")
    publisher = Publisher(bus, "state")
    folder = os.path.dirname(bus.endpoint("state").removeprefix("ipc://"))
    assert os.stat(folder).st_mode & 0o077 == 0
    publisher.close()


def test_a_socket_folder_that_others_may_change_is_refused(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(BusError, match="open can be changed by other users .*mode 777.*`chmod 700`"):
        Publisher(BusAddress(f"ipc://{folder}"), "state")


def serve(server, answers, stop):
    while not stop.is_set():
        received = server.poll(20)
        if received is not None:
            client, command = received
            for outcome in answers.get(command.verb, ()):
                server.reply(client, Reply(command.request_id, outcome, f"{command.verb} {outcome}"))


@pytest.fixture
def served(bus):
    server, stop = CommandServer(bus), threading.Event()
    answers = {"status": ["done"], "say": ["accepted", "done"], "slow": ["accepted"], "bad": ["failed"]}
    thread = threading.Thread(target=serve, args=(server, answers, stop))
    thread.start()
    yield server
    stop.set()
    thread.join()
    server.close()


def test_commands_are_answered_by_their_request_id(bus, served):
    client = CommandClient(bus)
    assert client.request("status").message == "status done"
    assert client.request("say", "x").message == "say done"
    with pytest.raises(CommandFailed, match="bad failed"):
        client.request("bad")
    client.close()


def test_a_late_answer_to_an_earlier_request_is_not_taken_for_the_next(bus):
    server, client = CommandServer(bus), CommandClient(bus)

    def answer_both_at_the_second():
        received = [server.poll(2000) for _ in range(2)]
        for sender, command in received:
            server.reply(sender, Reply(command.request_id, "done", command.verb))

    thread = threading.Thread(target=answer_both_at_the_second)
    thread.start()
    client.send("first")
    assert client.request("second", answer_s=3.0).message == "second"
    thread.join()
    client.close()
    server.close()


def test_an_accepted_command_that_never_ends_fails_with_its_own_message(bus, served):
    client = CommandClient(bus)
    with pytest.raises(CommandFailed, match="'slow' was accepted but not finished within 0.1 s"):
        client.request("slow", finish_s=0.1)
    assert client.request("status").message == "status done"
    client.close()


def test_a_command_to_nobody_fails_in_time_and_says_what_to_do(bus):
    client = CommandClient(bus)
    with pytest.raises(NotRunning, match="no controller answers at ipc://.*start one with `launch.py run`"):
        client.request("status", answer_s=0.1)
    client.close()


def test_a_command_that_nobody_took_is_not_carried_out_by_the_next_controller(bus):
    client = CommandClient(bus)
    with pytest.raises(NotRunning):
        client.request("say", "touch the red block", answer_s=0.1)
    server = CommandServer(bus)
    assert server.poll(500) is None
    client.send("status")
    assert server.poll(2000)[1].verb == "status", "the client goes on"
    client.close()
    server.close()


def test_a_malformed_command_is_answered_and_the_server_lives_on(bus, served):
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(bus.endpoint("command"))
    for data in (b"\xff\x00", msgpack.packb({"v": 1, "topic": "command"}), msgpack.packb([1, 2])):
        socket.send(data)
        assert socket.poll(2000)
        assert msgpack.unpackb(socket.recv())["outcome"] == "failed"
    socket.send_multipart([b"", b"two frames"])
    assert socket.poll(2000)
    assert "expected one frame, got 2" in msgpack.unpackb(socket.recv())["message"]
    socket.close()
    client = CommandClient(bus)
    assert client.request("status").outcome == "done"
    client.close()


def test_a_publisher_drops_for_a_reader_that_does_not_read_and_grows_by_nothing(bus):
    publisher = Publisher(bus, "frames")
    stuck = Subscriber(bus, "frames", newest_only=False, queue=1)
    frames = Frames(1, 1, {"front": np.zeros((1000, 700, 3), np.uint8)})
    while stuck.poll(20) is None:
        publisher.send(frames)
    pages = resource.getpagesize()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * pages
    for _ in range(200):  # 420 MB
        publisher.send(frames)
    assert int(Path("/proc/self/statm").read_text().split()[1]) * pages - before < 100e6
    stuck.close()
    publisher.close()


def test_a_closed_publisher_leaves_no_socket_behind_and_takes_none_of_a_later_one(bus):
    path = Path(bus.endpoint("state").removeprefix("ipc://"))
    first = Publisher(bus, "state")
    assert path.is_socket()
    first.close()
    assert not path.exists()
    second = Publisher(bus, "state")
    first.close()  # twice is fine
    assert path.is_socket()
    second.close()
