"""The page's process against hand-fed sockets: who is let in, what is sent on, and what it survives."""

import asyncio
import json
import os
import shutil
import signal
import socket
import tempfile

import aiohttp
import numpy as np
import pytest
from paged import Controller, Process, ask, cycle, fetch, talk, until

from control import page_commands
from control.address import BusAddress
from control.bus import Publisher
from control.messages import Frames
from control.page_access import Access
from control.page_commands import find_missing


@pytest.fixture
def serve(bus):
    started = []

    def start(*settings):
        started.append(Process(bus, *settings))
        return started[-1]

    yield start
    for page in started:
        page.process.kill()
        page.process.wait()


@pytest.fixture
def controller(bus):
    controller = Controller(bus)
    yield controller
    controller.close()


@pytest.fixture(scope="module")
def shared():
    """A page and a controller for the tests that leave them as they were: a process takes seconds to start."""
    folder = tempfile.mkdtemp(prefix="saccade-test-")
    bus = BusAddress(f"ipc://{folder}")
    page, controller = Process(bus), Controller(bus)
    yield page, controller
    page.process.kill()
    page.process.wait()
    controller.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def page(shared):
    return shared[0]


@pytest.fixture
def heard(shared):
    """The commands that have come to the controller since the test began."""
    shared[1].heard.clear()
    return shared[1].heard


# -- who is let in ----------------------------------------------------------------------------------------------------


def test_requests_under_a_strangers_name_or_from_a_strangers_page_are_refused(page, heard):
    assert fetch(page.url)[0] == 200
    status, _, text = fetch(page.url, Host="evil.example:80")
    assert status == 403 and "loopback only" in text
    for host in ("[", "a b", "[::1", "localhost.evil.example"):  # no name of anything: refused, and not a traceback
        assert fetch(page.url, Host=host)[0] in (400, 403), host
    for origin in ("http://evil.example", "null", page.url.replace("127.0.0.1", "localhost")):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            talk(page, lambda ws: ask(ws, "stop"), Origin=origin)
        assert refused.value.status == 403
    policy = fetch(page.url)[1]["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert heard == []


def test_beyond_loopback_a_token_is_asked_for_and_then_a_cookie_serves(serve, controller):
    page = serve("page.host=0.0.0.0")
    port = page.url.rpartition(":")[2]
    page.url = f"http://127.0.0.1:{port}"
    assert len(page.token) >= 20
    assert fetch(page.url)[0] == 401 and "token" in fetch(page.url)[2]
    assert fetch(f"{page.url}/page.js")[0] == 401
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        talk(page, lambda ws: ask(ws, "stop"))
    assert refused.value.status == 401 and controller.heard == []
    assert fetch(f"{page.url}/?token=wrong")[0] == 403
    assert fetch(f"{page.url}/login", "POST", {"token": page.token})[0] == 403  # a form without an Origin
    by_form = fetch(f"{page.url}/login", "POST", {"token": page.token}, Origin=page.url)
    by_link = fetch(f"{page.url}/?token={page.token}")
    for status, headers, _ in (by_form, by_link):
        assert status == 303 and headers["Location"] == "/"  # the token leaves the address bar
        assert "HttpOnly" in headers["Set-Cookie"] and "SameSite=Strict" in headers["Set-Cookie"]
    cookie = by_link[1]["Set-Cookie"].partition(";")[0]
    assert fetch(page.url, Cookie=cookie)[0] == 200
    assert talk(page, lambda ws: ask(ws, "stop"), Cookie=cookie)["outcome"] == "done"


def test_a_strangers_guesses_do_not_keep_out_who_has_the_token():
    access = Access("0.0.0.0")
    assert not any(
        access.lets_in(guess) for guess in ("guess", "", access.token[:-1], access.token + "x", "\u00e9") * 9
    )
    assert access.lets_in(access.token) and access.is_known(access.token)
    assert Access("127.0.0.1").token is None and Access("127.0.0.1", require_token=True).token


def test_a_page_on_any_loopback_address_answers_to_it():
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        shown = f"[{host}]:8470" if ":" in host else f"{host}:8470"
        assert Access(host).find_fault(shown, f"http://{shown}", needs_origin=True) == ""
        assert "loopback only" in Access(host).find_fault("10.0.0.5:8470", None, needs_origin=False)


def test_where_the_extra_is_not_installed_it_is_named(monkeypatch):
    assert find_missing() == ""
    monkeypatch.setattr(page_commands, "_NEEDED", ("no_such_module", "json"))
    assert find_missing() == "it needs no_such_module: pip install 'saccade[page]'"


def test_a_port_in_use_is_named_with_the_way_out(bus):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        page = Process(bus, f"page.port={port}")
        assert page.process.wait(30) == 1
    line = page.line + page.process.stdout.read()
    assert f"127.0.0.1 port {port} is in use by another program or run; choose another with --set page.port=" in line
    assert "Traceback" not in line


# -- commands ----------------------------------------------------------------------------------------------------------


def test_commands_reach_the_controller_and_its_answers_the_window(page, heard):
    async def work(ws):
        return [await ask(ws, verb, text) for verb, text in (("say", "touch it"), ("stop", ""), ("resume", ""))]

    answers = talk(page, work)
    assert [answer["outcome"] for answer in answers] == ["done"] * 3 and answers[0]["message"] == "say done"
    assert heard == [("say", "touch it"), ("stop", "stopped on the page"), ("resume", "")]


def test_what_was_pressed_long_before_it_arrives_is_not_carried_out_but_stop_is(page, heard):
    async def give(ws, verb, before_s):
        at_ms = await until(ws, "now_ms") - 1000 * before_s
        await ws.send_str(json.dumps({"ref": 1, "verb": verb, "text": "touch it", "at_ms": at_ms}))
        return await until(ws, "reply")

    for verb in ("say", "resume"):
        late = talk(page, lambda ws, verb=verb: give(ws, verb, 40))
        assert late["outcome"] == "failed" and "40 s before it arrived, and not carried out" in late["message"]
        assert talk(page, lambda ws, verb=verb: give(ws, verb, float("nan")))["outcome"] == "failed"
    assert heard == []
    assert talk(page, lambda ws: give(ws, "stop", 40))["outcome"] == "done"
    assert talk(page, lambda ws: give(ws, "resume", 0.5))["outcome"] == "done"


def test_bad_commands_are_refused_with_a_reason_and_go_nowhere(page, heard):
    cases = [
        ('{"ref": 1, "verb": "say", "text": ""}', "the instruction is empty"),
        (json.dumps({"ref": 1, "verb": "say", "text": "x" * 1001}), "has 1001 characters, expected at most 1000"),
        (json.dumps({"ref": 1, "verb": "say", "text": "a\x07b"}), "holds U+0007"),
        (json.dumps({"ref": 1, "verb": "say", "text": "a\u202eb"}), "U+202E (RIGHT-TO-LEFT OVERRIDE)"),
        (json.dumps({"ref": 1, "verb": "say", "text": ["a"]}), "the instruction is empty"),
        ('{"ref": 1, "verb": "status"}', "unknown command; the page knows say, resume, stop"),
        ('{"ref": 1, "verb": {"a": 1}}', "unknown command"),
        ("[1]", 'expected {"ref": 1'),
        ("not json", 'expected {"ref": 1'),
        ('{"ref": 1e999, "verb": "stop"}', 'expected {"ref": 1'),
        ("[" * 4000, 'expected {"ref": 1'),
    ]

    async def work(ws):
        for data, message in cases:
            await ws.send_str(data)
            answer = await until(ws, "reply")
            assert answer["outcome"] == "failed" and message in answer["message"], (data[:60], answer)
        return await ask(ws, "say", "<b>touch</b> it")

    assert talk(page, work)["outcome"] == "done"
    assert heard == [("say", "<b>touch</b> it")]


def test_a_window_that_floods_is_held_back_then_closed_and_stop_of_another_goes_through(page, heard):
    async def flood(ws):
        for ref in range(30):
            await ws.send_str(json.dumps({"ref": ref, "verb": "say", "text": f"do {ref}"}))
        answers = [(await until(ws, "reply"))["message"] for _ in range(30)]
        for ref in range(400):
            await ws.send_str(json.dumps({"ref": ref, "verb": "say", "text": f"do {ref}"}))
        async for _ in ws:
            pass
        return answers, ws.close_code

    answers, code = talk(page, flood)
    assert "too many of 'say' from this window: at most 1 a second" in answers and "say done" in answers
    assert code == aiohttp.WSCloseCode.POLICY_VIOLATION
    assert 4 <= len(heard) <= 20
    assert talk(page, lambda ws: ask(ws, "stop"))["outcome"] == "done" and heard[-1][0] == "stop"

    async def too_long(ws):
        await ws.send_str("x" * 20_000)
        async for _ in ws:
            pass
        return ws.close_code

    assert talk(page, too_long) == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
    assert talk(page, lambda ws: ask(ws, "resume"))["outcome"] == "done"


def test_without_a_controller_a_command_is_answered_as_undelivered(serve):
    assert talk(serve(), lambda ws: ask(ws, "stop"))["message"] == "stop: no controller answers"


def test_a_window_that_does_not_read_costs_the_others_nothing_and_the_page_ends_in_time(serve, controller):
    page = serve()
    port = int(page.url.rpartition(":")[2])
    deaf = socket.create_connection(("127.0.0.1", port))
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13"
    head = f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: {page.url}\r\nUpgrade: websocket"
    deaf.sendall(f"{head}\r\nConnection: Upgrade\r\n{key}\r\n\r\n".encode())
    assert talk(page, lambda ws: ask(ws, "stop"))["outcome"] == "done"
    code, said = page.end()
    assert code == 0 and "Traceback" not in said
    deaf.close()


def test_a_page_that_is_stopped_is_no_reason_for_a_publisher_to_wait(bus, serve):
    """As with SIGSTOP: the kernel's buffers fill up, and what comes after is dropped."""
    page = serve()
    cycles, frames = Publisher(bus, "cycle", queue=1000), Publisher(bus, "frames")
    big = Frames(1, 1, {"front": np.zeros((600, 800, 3), np.uint8)})

    async def work(ws):
        os.kill(page.process.pid, signal.SIGSTOP)
        for seq in range(300):
            cycles.send(cycle(seq))
            frames.send(big)

    try:
        talk_until_stopped(page, work)
    finally:
        os.kill(page.process.pid, signal.SIGCONT)
        cycles.close()
        frames.close()
    assert page.end()[0] == 0


def talk_until_stopped(page, work):
    """As `talk`, without waiting for the other side to say goodbye."""

    async def main():
        async with aiohttp.ClientSession() as session:
            ws = await session.ws_connect(f"{page.url}/ws", headers={"Origin": page.url})
            await work(ws)
            ws._response.close()

    asyncio.run(asyncio.wait_for(main(), 60))
