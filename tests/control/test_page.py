"""The page's process against hand-fed sockets: who is let in, what is sent on, what is shown, and what it survives."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from control import page_commands
from control.address import BusAddress
from control.bus import CommandServer, Publisher
from control.errors import RobotError
from control.messages import ActionChunk, Cycle, Features, Frames, Instruction, Mode, Reply, RobotSpec, State
from control.page_access import Access, find_unseen, is_unseen, shown
from control.page_arm import Link, drawable
from control.page_bus import PageBus
from control.page_commands import find_missing
from control.rate_limit import Budget

ROOT = Path(__file__).resolve().parents[2]


class Controller:
    """Answers commands as the controller does, and keeps them."""

    def __init__(self, bus):
        self.server, self.heard, self._ends = CommandServer(bus), [], threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        while not self._ends.is_set():
            if (received := self.server.poll(20)) is not None:
                client, command = received
                self.heard.append((command.verb, command.text))
                self.server.reply(client, Reply(command.request_id, "done", f"{command.verb} done", {}))

    def close(self):
        self._ends.set()
        self._thread.join()
        self.server.close()


class Process:
    """`launch.py page` beside hand-fed sockets."""

    def __init__(self, bus, *settings):
        words = [f"bus.address={bus.address}", "robot.name=remote", "page.port=0", *settings]
        arguments = [word for item in words for word in ("--set", item)]
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch.py"), "page", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.line = self.process.stdout.readline().strip()
        self.url = self.line.partition(" at ")[2].partition("?")[0].rstrip("/")
        self.token = self.line.partition("?token=")[2]

    def end(self):
        self.process.terminate()
        try:
            return self.process.wait(20), self.process.stdout.read()
        finally:
            self.process.kill()


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


def talk(page, work, **headers):
    """Run `work(socket, session)` on a WebSocket of the page."""

    async def main():
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            ws = await session.ws_connect(f"{page.url}/ws", headers={"Origin": page.url, **headers}, max_msg_size=0)
            async with ws:
                return await work(ws)

    return asyncio.run(asyncio.wait_for(main(), 60))


async def until(ws, key):
    """The value of the next message that has `key`."""
    while True:
        message = await ws.receive()
        assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
        if message.type is aiohttp.WSMsgType.TEXT and key in (fields := json.loads(message.data)):
            return fields[key]


async def ask(ws, verb, text="", ref=1):
    await ws.send_str(json.dumps({"ref": ref, "verb": verb, "text": text}))
    return await until(ws, "reply")


def fetch(url, method="GET", data=None, **headers):
    async def main():
        async with aiohttp.ClientSession() as session:
            request = session.request(method, url, headers=headers, data=data, allow_redirects=False)
            async with request as reply:
                return reply.status, dict(reply.headers), await reply.text()

    return asyncio.run(asyncio.wait_for(main(), 60))


# -- who is let in ----------------------------------------------------------------------------------------------------


def test_requests_under_a_strangers_name_or_from_a_strangers_page_are_refused(page, heard):
    assert fetch(page.url)[0] == 200
    status, _, text = fetch(page.url, Host="evil.example:80")
    assert status == 403 and "loopback only" in text
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


def test_guesses_at_the_token_are_slowed_down():
    access = Access("0.0.0.0")
    assert not any(access.lets_in("guess") for _ in range(5))
    assert not access.lets_in(access.token)  # right, and too soon
    assert Access("127.0.0.1").token is None and Access("127.0.0.1", require_token=True).token


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


# -- what is shown -----------------------------------------------------------------------------------------------------


def cycle(seq, mode=Mode.RUN, instruction_id=1, pending_id=None, **changes):
    fields = {"feature_age_ms": 40.0, "state_age_ms": 5.0, "encode_ms": 9.0, "feature_seq": 1, "encoder_epoch": 1}
    fields |= {"reason": "", "limits": (), "missed_ticks": 0, "stage_ms": {}, "lateness_ms": 0.1, "cycle_ms": 1.0}
    stamp_ns = time.monotonic_ns()
    fields |= {"seq": seq, "stamp_ns": stamp_ns, "deadline_ns": stamp_ns, "mode": mode, **changes}
    return Cycle(instruction_id=instruction_id, pending_id=pending_id, **fields)


@pytest.fixture
def feed(bus):
    """A page's bus side, and a function that publishes nouns until it has taken them."""
    topics = ("robot", "frames", "state", "features", "instruction", "action", "cycle")
    ports = {topic: Publisher(bus, topic, queue=100) for topic in topics}
    page = PageBus(bus)
    page.look(True)
    kinds = {RobotSpec: "robot", Frames: "frames", State: "state", Features: "features", Instruction: "instruction"}
    kinds |= {ActionChunk: "action", Cycle: "cycle"}

    def publish(noun, is_taken):
        ends_s = time.monotonic() + 20
        while not is_taken():
            assert time.monotonic() < ends_s, f"{type(noun).__name__} was never taken"
            ports[kinds[type(noun)]].send(noun)
            threading.Event().wait(0.02)
            page.step()

    yield page, publish
    page.close()
    for port in ports.values():
        port.close()


def grey(value):
    return {"front": np.full((16, 24, 3), value, np.uint8), "spare": np.full((16, 24, 3), 9, np.uint8)}


def pictures(message):
    import io

    from PIL import Image

    length = int.from_bytes(message[:4], "big")
    listed, at = json.loads(message[4 : 4 + length])["views"], 4 + length
    values = {}
    for view in listed:
        data = message[at : at + view["bytes"]]
        at += view["bytes"]
        values[view["camera"]] = round(np.asarray(Image.open(io.BytesIO(data))).mean()) if data else None
    assert at == len(message)
    return {view["camera"]: view for view in listed}, values


def test_a_view_is_the_capture_that_was_encoded_and_not_the_newest(feed):
    page, publish = feed
    now_ns = time.monotonic_ns()
    for seq, value in ((1, 50), (2, 100), (3, 200)):
        frames = Frames(seq, now_ns - (3 - seq) * 100_000_000, grey(value))
        publish(frames, lambda seq=seq: page._captures and page._captures[-1].seq == seq)
    views, values = pictures(page.views())
    assert values["front"] == 200 and not views["front"]["is_encoded"]  # nothing is encoded yet

    def encoded(seq, age_ms):
        tokens = np.zeros((1, 4), np.float32)
        return Features(seq, now_ns, 2, now_ns - 100_000_000, 1, 1, 7, "p", tokens, {"front": age_ms}, 9.0)

    publish(encoded(1, 0.0), lambda: page._encoded is not None)
    views, values = pictures(page.views())
    assert values == {"front": 100, "spare": 9}
    assert views["front"]["is_encoded"] and views["front"]["age_ms"] >= 100 and not views["spare"]["is_encoded"]
    publish(encoded(2, 100.0), lambda: page._encoded.seq == 2)  # the view was used again, of the capture before
    assert pictures(page.views())[1]["front"] == 50
    publish(encoded(3, 900.0), lambda: page._encoded.seq == 3)  # never seen here
    views, values = pictures(page.views())
    assert values["front"] is None and views["front"]["bytes"] == 0
    page.look(False)
    assert page.views() is None


def test_instructions_are_followed_from_waiting_to_done_whoever_said_them(feed):
    page, publish = feed

    def say(number, text):
        publish(Instruction(0, 1, 5, number, text), lambda: page.said and page.said[-1].id == number)

    def tick(seq, **changes):
        count = page.count
        publish(cycle(seq, **changes), lambda: page.count > count)
        return [item.state for item in page.said]

    say(1, "touch <img src=x> \u202eit\x07")
    assert page.said[0].text == "touch <img src=x> \\u202eit\\u0007"
    assert tick(1, instruction_id=0, pending_id=1) == ["waiting"]
    assert tick(2, instruction_id=1, switch_ms=61.0) == ["acting"] and page.said[0].switch_ms == 61.0
    say(2, "b")
    say(3, "c")
    assert tick(3, instruction_id=1, pending_id=3) == ["acting", "replaced", "waiting"]
    assert tick(4, instruction_id=3, task_done=True, task_instruction_id=3) == ["past", "replaced", "acting"]
    assert page.said[2].task_done is True


def test_a_row_holds_nan_and_infinity_as_nothing_and_memory_is_bounded(feed):
    page, publish = feed
    publish(State(1, 1, np.array([np.nan, 1.0])), lambda: page._state is not None)
    publish(cycle(1, reason="the state of a is nan\x1b[31m"), lambda: page.count > 0)
    row = page.rows[-1]
    assert row["measured"] == [None, 1.0] and row["target"] == [] and row["reason"].endswith("\\u001b[31m")
    json.dumps(row, allow_nan=False)
    for number in range(2000):
        page._follow(cycle(number))
        page.rows.append(row)
        page._hear(Instruction(0, 1, 5, number + 1, "x"))
        page._keep(Frames(number, number * 10_000_000, {"front": np.zeros((1000, 1000, 3), np.uint8)}))
    assert len(page.rows) == 600 and len(page.said) == 50
    assert sum(capture.images["front"].nbytes for capture in page._captures) <= 64 << 20


def test_text_is_shown_with_everything_invisible_written_out():
    assert shown("<b>né 👩\u200d🔧 東京</b>") == "<b>né 👩\u200d🔧 東京</b>"
    assert shown("a\u200bb\nc\ue000") == "a\\u200bb\\u000ac\\ue000"
    assert find_unseen("tap the red block") is None and is_unseen("\u2066")
    assert len(shown("x" * 5000)) == 1000


def test_a_budget_gives_its_burst_and_then_its_rate():
    budget = Budget(rate_hz=0.001, burst=3)
    assert [budget.take() for _ in range(5)] == [True, True, True, False, False]


class Arm:
    def __init__(self, spec, links):
        self.spec, self.links = spec, links


def test_the_arm_is_drawn_from_links_that_are_checked(spec):
    joint = spec.state_names[0]
    (link,) = drawable(Arm(spec, [Link("upper", "", (0.0, 0.0, 0.3), joint)]))
    assert link["name"] == "upper" and link["state"] == joint and link["kind"] == "turn"
    assert drawable(object()) == []
    for bad, fault in (
        ([Link("a", "b", (0, 0, 1))], "the parent 'b' of 'a' does not stand before it"),
        ([Link("a", "", (0, 0, 1)), Link("a", "", (0, 0, 1))], "expected names that differ, got 'a' again"),
        ([Link("a", "", (0, 0, 1), "tail")], "'a' moves with 'tail', which is no state of the robot"),
        ([Link("a", "", (0, 0, float("nan")))], "'a' has an origin, axis or gain"),
    ):
        with pytest.raises(RobotError, match=fault):
            drawable(Arm(spec, bad))


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
