"""A real browser without a window, driven over its DevTools protocol: Chromium, and nothing else to install."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-headless-shell", "google-chrome", "chromium-browser")
KEYS = {"Escape": 27, "Enter": 13}


def find_browser() -> str | None:
    """The path of an installed browser, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One browser with one tab of 1400 x 900."""

    def __init__(self, executable: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="saccade-browser-"))
        self._loop = asyncio.new_event_loop()
        self.process = subprocess.Popen(
            [
                *(executable, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--mute-audio"),
                *("--remote-debugging-port=0", f"--user-data-dir={self._folder}", "--window-size=1400,900"),
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._run(self._connect(), 90)
        except BaseException:
            self.close()
            raise
        screen = {"width": 1400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **screen)

    def _run(self, work: Coroutine[Any, Any, Any], timeout_s: float = 30.0) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, timeout_s))

    async def _connect(self) -> None:
        port_file = self._folder / "DevToolsActivePort"
        while not (port_file.exists() and port_file.read_text().count("\n")):
            assert self.process.poll() is None, "the browser ended as it started"
            await asyncio.sleep(0.05)
        port = port_file.read_text().split("\n")[0]
        self._session = aiohttp.ClientSession()
        while True:
            async with self._session.get(f"http://127.0.0.1:{port}/json") as reply:
                tabs = [tab for tab in await reply.json() if tab["type"] == "page"]
            if tabs:
                break
            await asyncio.sleep(0.05)
        self._socket = await self._session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0)
        self._id = 0

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._run(self._ask(method, parameters))

    async def _ask(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._id += 1
        await self._socket.send_str(json.dumps({"id": self._id, "method": method, "params": parameters}))
        while True:
            message = json.loads(await self._socket.receive_str())
            if message.get("id") == self._id:
                assert "error" not in message, message
                return message["result"]

    def open(self, url: str) -> None:
        self.ask("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def reload(self) -> None:
        self.ask("Page.reload")
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, expression: str, timeout_s: float = 45.0) -> None:
        """Until the expression counts as true."""
        ends_s = time.monotonic() + timeout_s
        while time.monotonic() < ends_s:
            if self.evaluate(f"Boolean({expression})"):
                return
            threading.Event().wait(0.05)
        text = self.evaluate("document.body.innerText")
        raise AssertionError(f"not true within {timeout_s:g} s: {expression}\nthe page shows:\n{text}")

    def text(self, selector: str) -> str:
        return self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")

    def type(self, selector: str, text: str) -> None:
        """As a person does: into the focused field, character events and all."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).select()")
        self.ask("Input.insertText", text=text)

    def press(self, key: str) -> None:
        code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **code, **({"text": "\r"} if key == "Enter" else {}))
        self.ask("Input.dispatchKeyEvent", type="keyUp", **code)

    def click(self, selector: str) -> None:
        """A real click in the middle of an element."""
        box = f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
        x, y = self.evaluate(box + " return [b.x + b.width / 2, b.y + b.height / 2]; })()")
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """Twice is fine."""
        if self._loop.is_closed():
            return

        async def hang_up() -> None:
            if hasattr(self, "_session"):
                await self._session.close()

        self._run(hang_up())
        self._loop.close()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)
