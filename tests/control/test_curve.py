"""Buses with keys, on real sockets: what is let in, what is not, and that nothing travels in the clear."""

import contextlib
import logging
import shutil
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from control.address import OWNERS, BusAddress
from control.bus import Latest, Publisher, Subscriber
from control.command_bus import CommandClient, CommandServer
from control.errors import BusError, KeyFileError, NotRunning
from control.keys import load_keys, make_keys
from control.messages import Command, Instruction, Reply
from control.wire import encode

TEXT = "touch the red block"


def free_port():
    """The first of so many ports in a row as a bus takes."""
    for _ in range(100):
        with contextlib.ExitStack() as held:
            first = held.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                for number in range(port + 1, port + len(OWNERS)):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", number))
            except OSError:
                continue
            if port < 64000:
                return port
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("curve") / "keys"
    make_keys(made, ["laptop"])
    return made


@pytest.fixture
def robot(folder):
    return BusAddress(f"tcp://127.0.0.1:{free_port()}", keys=str(folder / "robot"))


def keyed(bus, folder, machine):
    """The same bus as another machine sees it."""
    return replace(bus, keys=str(folder / machine))


class Speaker:
    """Publishes the instruction and answers every command, from a thread, until the block ends."""

    def __init__(self, bus):
        self.publisher, self.server, self.heard = Publisher(bus, "instruction"), CommandServer(bus), []
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run)

    def _run(self):
        seq = 0
        while not self._stop.is_set():
            seq += 1
            self.publisher.send(Instruction(seq, 1, 1, 1, TEXT))
            received = self.server.poll(10)
            if received is not None:
                client, command = received
                self.heard.append(command.text)
                self.server.reply(client, Reply(command.request_id, "done", command.verb))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()
        self.publisher.close()
        self.server.close()


def hears(bus, timeout_ms=3000):
    with contextlib.closing(Latest(bus, "instruction")) as latest:
        return latest.poll(timeout_ms) is not None


def is_answered(bus, answer_s=3.0):
    with contextlib.closing(CommandClient(bus)) as client, contextlib.suppress(NotRunning):
        return client.request("status", "from " + (bus.keys or "nobody"), answer_s=answer_s).outcome == "done"
    return False


class Relay:
    """A tcp relay that keeps all that goes through it."""

    def __init__(self, to_port):
        self.seen, self._to_port, self._ends = b"", to_port, []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            here, _ = self._listener.accept()
            there = socket.create_connection(("127.0.0.1", self._to_port))
            self._ends = [here, there]
            for source, target in ((here, there), (there, here)):
                threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    def _copy(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.seen += data
                target.sendall(data)

    def close(self):
        for end in (self._listener, *self._ends):
            end.close()


def test_a_known_machine_hears_what_is_published_and_is_answered(robot, folder):
    with Speaker(robot):
        for machine in ("robot", "laptop"):
            bus = keyed(robot, folder, machine)
            assert hears(bus) and is_answered(bus)


@pytest.mark.parametrize("is_encrypted", [True, False])
def test_nothing_travels_in_the_clear_where_there_are_keys(robot, is_encrypted):
    bus = robot if is_encrypted else replace(robot, keys=None)
    with Speaker(bus), contextlib.closing(Relay(int(bus.endpoint("instruction").rpartition(":")[2]))) as relay:
        offset = list(OWNERS).index("instruction")
        assert hears(replace(bus, address=f"tcp://127.0.0.1:{relay.port - offset}"))
        assert len(relay.seen) > len(TEXT)
        assert (TEXT.encode() in relay.seen) is not is_encrypted


def strangers(robot, folder, tmp_path):
    """Buses that must get nothing: no key, a key that nobody knows, and the robot's key mistaken."""
    make_keys(tmp_path / "other", ["laptop"])
    unknown = tmp_path / "unknown"  # knows the robot's public key, and has a key of its own
    shutil.copytree(tmp_path / "other" / "laptop", unknown)
    shutil.copy(folder / "robot" / "robot.key", unknown / "robot.key")
    mistaken = tmp_path / "mistaken"  # is known, and takes somebody else for the robot
    shutil.copytree(folder / "laptop", mistaken)
    shutil.copy(tmp_path / "other" / "robot" / "robot.key", mistaken / "robot.key")
    return {
        "no key": replace(robot, keys=None),
        "an unknown key": replace(robot, keys=str(unknown)),
        "the wrong server key": replace(robot, keys=str(mistaken)),
    }


def test_strangers_get_nothing_and_others_are_served_meanwhile(robot, folder, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    with Speaker(robot) as speaker:
        for who, bus in strangers(robot, folder, tmp_path).items():
            assert not hears(bus, 400), who
            assert not is_answered(bus, 0.4), who
            assert hears(robot) and is_answered(robot), f"served while {who} knocks"
        assert set(speaker.heard) == {f"from {robot.keys}"}
    lines = [record.getMessage() for record in caplog.records if record.name == "bus"]
    assert len(lines) == 1, "a client that knocks for ever is said once in a while"
    assert lines[0].startswith("refused a client of 127.0.0.1 at '")
    assert f"': its key is not one that {folder}/robot lets in there (" in lines[0]
    secret = load_keys(tmp_path / "unknown").secret
    assert secret.decode() not in caplog.text


def test_who_is_not_let_in_is_told_where_to_look(robot, folder, tmp_path):
    bus = strangers(robot, folder, tmp_path)["an unknown key"]
    told = pytest.raises(NotRunning, match=f"or it does not let in the keys of {tmp_path}/unknown")
    with Speaker(robot), contextlib.closing(CommandClient(bus)) as client, told:
        client.request("status", answer_s=0.3)


def test_who_has_no_keys_is_told_that_nobody_answers_however_often_he_was_turned_away(robot):
    with Speaker(robot), contextlib.closing(CommandClient(BusAddress(robot.address))) as client:
        for _ in range(5):
            threading.Event().wait(0.2)  # turned away before it says anything
            with pytest.raises(NotRunning, match="no controller answers"):
                client.request("stop", answer_s=0.05)


def test_garbage_on_the_port_disturbs_nobody(robot):
    port = int(robot.endpoint("command").rpartition(":")[2])
    with Speaker(robot), contextlib.ExitStack() as knocking:
        for data in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\xff" * 5000,
            b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00CURVE",
        ):
            knocking.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(data)
        assert hears(robot) and is_answered(robot)


def test_nobody_comes_in_while_nobody_answers(robot):
    with contextlib.closing(CommandServer(robot)) as server, contextlib.closing(CommandClient(robot)) as client:
        client.send("status")
        assert not server.socket.poll(300)
        received = next(filter(None, (server.poll(50) for _ in range(60))))  # its own polls let it in
        assert received[1].verb == "status"


def test_nobody_comes_in_where_nobody_is_there_to_be_asked(robot, monkeypatch):
    """The gate of this process is not bound: libzmq would let in whoever knows the server's public key."""
    monkeypatch.setattr("control.curve._ASKED_AT", "inproc://elsewhere")
    with contextlib.closing(CommandServer(robot)) as server, contextlib.closing(CommandClient(robot)) as client:
        client.send("status")
        assert not any(server.poll(50) for _ in range(10))


def test_a_remote_encoder_looks_and_delivers_and_commands_nothing(robot, folder):
    both = replace(robot, encoder=f"tcp://127.0.0.1:{free_port()}")
    encoder = keyed(both, folder, "encoder")
    with Speaker(both), contextlib.closing(Publisher(encoder, "features", latch=True)) as features:
        assert hears(encoder)
        assert not is_answered(encoder, 0.4)
        reader = Subscriber(both, "features", newest_only=True)
        for _ in range(100):
            features.send(Instruction(1, 1, 1, 1, TEXT))  # no features, so it is refused after it came
            reader.poll(30)
            if reader.rejected:
                break
        assert reader.rejected
        reader.close()


def test_a_host_that_knows_only_pyzmq_speaks_with_the_same_files(robot, folder):
    """As control/README.md says it: a robot host of somebody's own."""
    keys = folder / "robot"
    public, secret = zmq.auth.load_certificate(keys / "robot.key_secret")
    with zmq.Context() as context, context.socket(zmq.PUB) as state, context.socket(zmq.SUB) as instructions:
        authenticator = ThreadAuthenticator(context)
        authenticator.start()
        authenticator.configure_curve(domain="*", location=str(keys))
        state.curve_server, state.curve_secretkey = True, secret
        state.bind(robot.endpoint("state"))
        instructions.curve_publickey, instructions.curve_secretkey, instructions.curve_serverkey = (
            public,
            secret,
            public,
        )
        instructions.setsockopt(zmq.SUBSCRIBE, b"")
        instructions.connect(robot.endpoint("instruction"))
        for socket_ in (state, instructions):
            socket_.setsockopt(zmq.LINGER, 0)
        with Speaker(robot), contextlib.closing(Subscriber(robot, "state", newest_only=True)) as states:
            assert instructions.poll(3000)
            for _ in range(100):
                state.send(b"no state")
                states.poll(30)
                if states.rejected:
                    break
            assert states.rejected, "it came, and was refused for what it says"
        authenticator.stop()


def test_a_topic_of_another_machine_is_not_bound(robot, folder):
    elsewhere = replace(robot, encoder=f"tcp://127.0.0.1:{free_port()}")
    with pytest.raises(KeyFileError, match="/robot holds the keys of 'robot', but 'features' is published by the mach"):
        Publisher(elsewhere, "features")
    with pytest.raises(KeyFileError, match="/laptop holds the keys of 'laptop', but 'command' is published by"):
        CommandServer(keyed(robot, folder, "laptop"))
    CommandServer(robot).close()  # what was refused holds nothing


def test_keys_that_cannot_be_used_are_said_before_anything_is_bound_or_connected(robot, tmp_path):
    broken = replace(robot, keys=str(tmp_path / "nowhere"))
    for make in (CommandServer, CommandClient, lambda bus: Publisher(bus, "state"), lambda bus: Latest(bus, "state")):
        with pytest.raises(KeyFileError, match="nowhere is no folder"):
            make(broken)
    CommandServer(robot).close()


def test_a_bus_in_a_private_folder_needs_no_keys(bus, tmp_path):
    with Speaker(replace(bus, keys=str(tmp_path / "nowhere"))):
        assert hears(bus) and is_answered(bus)


def test_a_process_may_give_up_its_last_socket_and_open_another_at_once(robot):
    for _ in range(20):
        with contextlib.closing(CommandServer(replace(robot, address=f"tcp://127.0.0.1:{free_port()}"))):
            pass
    with Speaker(robot):
        assert is_answered(robot)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "*"])
def test_an_address_beyond_loopback_needs_keys(host, folder):
    with pytest.raises(BusError, match=r"open to the network.*make keys with `launch.py keys --out DIR` and set bus.k"):
        BusAddress(f"tcp://{host}:5550")
    with pytest.raises(BusError, match="open to the network"):
        BusAddress(encoder=f"tcp://{host}:5550")
    assert BusAddress(f"tcp://{host}:5550", keys=str(folder)).endpoint("frames") == f"tcp://{host}:5551"


def test_the_largest_message_passes_encrypted(robot):
    with contextlib.closing(CommandServer(robot)) as server:
        context = zmq.Context.instance()
        with context.socket(zmq.DEALER) as client:
            keys = load_keys(Path(robot.keys))
            client.setsockopt(zmq.LINGER, 0)
            client.curve_publickey, client.curve_secretkey = keys.public, keys.secret
            client.curve_serverkey = keys.public
            client.connect(robot.endpoint("command"))
            client.send(encode(Command(1, "say", "x")).ljust(96 << 10, b"\xc0"))
            for _ in range(100):
                server.poll(30)
                if server.rejected:
                    break
            assert server.rejected, "it came, and was refused for what it says"
