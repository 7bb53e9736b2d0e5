"""The instructions of a run, said to a real command socket that answers as a controller does."""

import contextlib
import functools
import threading
import time

import pytest

from control.command_bus import CommandServer
from control.messages import Reply
from control.script import Script


@pytest.fixture
def server(bus):
    with contextlib.closing(CommandServer(bus)) as server:
        yield server


def steps(script, seconds):
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        script.step(ready=True)
        threading.Event().wait(0.01)


def heard(server, script):
    """The next command, and a function that answers it."""
    ends = time.monotonic() + 3.0
    while time.monotonic() < ends:
        script.step(ready=True)
        if (received := server.poll(10)) is not None:
            return received[1].text, functools.partial(answer, server, *received)
    raise AssertionError("nothing was said")


def answer(server, client, command, outcome):
    server.reply(client, Reply(command.request_id, outcome, outcome))


@pytest.mark.parametrize("outcome", ["done", "failed"])
def test_no_episode_is_spent_while_the_encoder_loads(bus, server, outcome):
    with contextlib.closing(Script(bus, ["touch it", "lift it"], 0.3)) as script:
        text, answer = heard(server, script)
        answer("accepted")
        steps(script, 0.6)
        assert text == "touch it" and len(script.episodes) == 1 and not script.is_finished
        answer(outcome)
        assert heard(server, script)[0] == "lift it"
        steps(script, 0.4)
        assert script.is_finished, "only the first waits: a later one has its time whatever becomes of it"


def test_only_a_script_of_episodes_ends_by_itself(bus):
    for texts, every_s, ends in ((["touch it"], 1.0, True), (["touch it"], float("inf"), False), ([], 1.0, False)):
        with contextlib.closing(Script(bus, texts, every_s)) as script:
            assert script.ends is ends
