"""A page's process beside hand-fed sockets, and how a test talks to it."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import aiohttp

from control.command_bus import CommandServer
from control.messages import Cycle, Mode, Reply

ROOT = Path(__file__).resolve().parents[1]


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


def cycle(seq, mode=Mode.RUN, instruction_id=1, pending_id=None, **changes):
    fields = {"feature_age_ms": 40.0, "state_age_ms": 5.0, "encode_ms": 9.0, "feature_seq": 1, "encoder_epoch": 1}
    fields |= {"reason": "", "limits": (), "missed_ticks": 0, "stage_ms": {}, "lateness_ms": 0.1, "cycle_ms": 1.0}
    stamp_ns = time.monotonic_ns()
    fields |= {"seq": seq, "stamp_ns": stamp_ns, "deadline_ns": stamp_ns, "mode": mode, **changes}
    return Cycle(instruction_id=instruction_id, pending_id=pending_id, **fields)
