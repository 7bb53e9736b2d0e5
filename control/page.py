"""The page: the run in a browser. Views as the encoder saw them, instructions, STOP, modes, plots, the arm in 3-D.

A client of the bus like any other, in a process of its own: the loop gives it nothing but what it publishes anyway,
and closing, reloading, hanging or killing it changes nothing there. Every viewer is fed by a task of its own that drops
what comes too fast; a viewer that does not read for `_PATIENCE_S` is closed.

Built with aiohttp and a page written by hand. The source of viser 1.1, the obvious candidate, was read: it has hotkeys,
images and uPlot, but no token, no check of Host or Origin (any page in the same browser could command the robot), all
interfaces by default, it takes rich below 15, and it brings 180 MB.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from control.address import BusAddress
from control.clock import NS_PER_MS, NS_PER_S
from control.errors import PageError
from control.page_access import COOKIE, Access, is_loopback
from control.page_bus import PageBus, rounded
from control.page_orders import Answer, Orders
from control.plain_text import shown
from control.rate_limit import Budget

log = logging.getLogger("page")

_STATIC = Path(__file__).parent / "page_static"
_OPEN_FILES = {"/login", "/page.css"}  # what is served without a token
_MAX_VIEWERS, _MAX_MESSAGE, _MAX_FORM = 8, 8 << 10, 4 << 10
_MESSAGES_HZ, _MESSAGES_BURST = 20.0, 60  # from one viewer; beyond it is closed
_FEED_S, _QUIET_S = 0.1, 0.5  # how often a viewer is fed, and at least, so that it can tell silence from loss
_PATIENCE_S = 5.0
_LATE_S = 2.0  # a command but STOP that came so late, since this process hung, is refused
_STEP_S, _IDLE_S = 0.02, 0.1  # how often the bus is read, with viewers and without
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:;"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(eq=False, slots=True, weakref_slot=True)
class Viewer:
    """One open window. Answers wait for the task that feeds it."""

    socket: web.WebSocketResponse
    transport: asyncio.BaseTransport | None
    answers: deque[Answer] = field(default_factory=lambda: deque(maxlen=32))
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, answer: Answer) -> None:
        self.answers.append(answer)
        self.woken.set()

    async def send(self, data: str | bytes) -> bool:
        """Whether it is still there. One that does not read is closed."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await (self.socket.send_str(data) if isinstance(data, str) else self.socket.send_bytes(data))
            return True
        except (ConnectionError, RuntimeError):  # it has gone
            return False
        except TimeoutError:
            log.warning("a window did not read for %g s: closed", _PATIENCE_S)
            if isinstance(self.transport, asyncio.WriteTransport):
                self.transport.abort()
            return False


class Page:
    """The server. `ladder_ms` and `period_ms` are drawn beside the data, `links` is what the arm is drawn from."""

    def __init__(
        self,
        bus: BusAddress,
        *,
        host: str,
        port: int,
        require_token: bool,
        image_hz: float,
        ladder_ms: tuple[float, float, float],
        period_ms: float,
        links: list[dict[str, Any]],
    ) -> None:
        self._host, self._port, self._image_s = host, port, 1 / image_hz
        self._about = {"ladder_ms": ladder_ms, "period_ms": period_ms, "links": links}
        self._access = Access(host, require_token)
        self._bus, self._orders = PageBus(bus), Orders(bus)
        self._viewers: set[Viewer] = set()
        self._views: tuple[int, bytes | None] = (0, None)  # a number that grows, and the newest message of views

    def run(self, stopped: Callable[[], bool]) -> None:
        """Until `stopped()`. Raises PageError when the port cannot be had."""
        try:
            asyncio.run(self._serve(stopped))
        finally:
            self._orders.close()
            self._bus.close()

    async def _serve(self, stopped: Callable[[], bool]) -> None:
        app = web.Application(middlewares=[self._judge], client_max_size=_MAX_FORM)
        app.add_routes(
            [
                web.get("/", self._index),
                web.get("/ws", self._socket),
                web.get("/login", self._login),
                web.post("/login", self._login),
                *(web.get(f"/{file.name}", self._file) for file in _STATIC.iterdir() if file.suffix in (".js", ".css")),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._host, self._port, reuse_address=True)
            try:
                await site.start()
            except OSError as error:
                raise self._cannot_listen(error) from None
            self._announce(runner.addresses[0][1])
            views_s = 0.0
            while not stopped():
                self._bus.look(bool(self._viewers))
                self._bus.step()
                for answer in self._orders.answers():
                    answer.viewer.tell(answer)
                if self._viewers and time.monotonic() >= views_s:
                    views_s = time.monotonic() + self._image_s
                    self._views = (self._views[0] + 1, self._bus.views())
                await asyncio.sleep(_STEP_S if self._viewers else _IDLE_S)
            ending = [viewer.socket.close(code=WSCloseCode.GOING_AWAY, message=b"ended") for viewer in self._viewers]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*ending), 0.2)
        finally:
            await runner.cleanup()

    def _cannot_listen(self, error: OSError) -> PageError:
        where = f"{self._host} port {self._port}"
        choose = f"choose another with --set page.port={self._port + 1}, or 0 for any that is free"
        if error.errno == errno.EADDRINUSE:
            return PageError(f"no page: {where} is in use by another program or run; {choose}")
        return PageError(f"no page: cannot listen on {where}: {error.strerror or error}; {choose}")

    def _announce(self, port: int) -> None:
        name = socket.gethostname() if self._host in ("0.0.0.0", "::") else self._host  # noqa: S104 - compared only
        url = f"http://{f'[{name}]' if ':' in name else name}:{port}/"
        if self._access.token is None:
            log.info("the page is at %s", url)
            return
        log.info("the page is at %s?token=%s", url, self._access.token)
        if not is_loopback(self._host):
            log.warning("the page is open to the network and not encrypted; an ssh tunnel to loopback is")

    # -- requests ------------------------------------------------------------------------------------------------------

    @web.middleware
    async def _judge(self, request: web.Request, handler: Any) -> web.StreamResponse:
        needs_origin = request.path == "/ws" or request.method == "POST"
        origin = request.headers.get("Origin")
        fault = self._access.find_fault(request.headers.get("Host", ""), origin, needs_origin=needs_origin)
        if fault:
            return web.Response(status=403, text=f"refused: {fault}\n", headers=_HEADERS)
        if request.path not in _OPEN_FILES and not self._access.is_known(request.cookies.get(COOKIE)):
            if request.path != "/":
                return web.Response(status=401, text="refused: no token; open / first\n", headers=_HEADERS)
            offered = request.query.get("token")
            return await self._login(request) if offered is None else self._let_in(offered)
        try:
            response = await handler(request)
        except web.HTTPException as error:
            return web.Response(status=error.status, text=f"{error.status} {error.reason}\n", headers=_HEADERS)
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    async def _index(self, request: web.Request) -> web.StreamResponse:
        if "token" in request.query:  # known already: the token leaves the address bar
            return web.Response(status=303, headers={"Location": "/"})
        return _static("index.html")

    async def _file(self, request: web.Request) -> web.StreamResponse:
        return _static(request.path.removeprefix("/"))

    async def _login(self, request: web.Request) -> web.StreamResponse:
        if self._access.token is None:
            return web.Response(status=303, headers={"Location": "/"})
        if request.method == "POST":
            return self._let_in(str((await request.post()).get("token", "")))
        return _static("login.html", status=401)

    def _let_in(self, offered: str) -> web.Response:
        if not self._access.lets_in(offered.strip()):
            return _static("login.html", status=403)
        response = web.Response(status=303, headers={"Location": "/", **_HEADERS})
        response.set_cookie(COOKIE, self._access.token or "", httponly=True, samesite="Strict", path="/")
        return response

    # -- viewers -------------------------------------------------------------------------------------------------------

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if len(self._viewers) >= _MAX_VIEWERS:
            return web.Response(status=503, text=f"refused: {_MAX_VIEWERS} windows are open already\n")
        opened = web.WebSocketResponse(heartbeat=10.0, max_msg_size=_MAX_MESSAGE, compress=False)
        await opened.prepare(request)
        viewer = Viewer(opened, request.transport)
        self._viewers.add(viewer)
        feeding = asyncio.create_task(self._feed(viewer))
        budget = Budget(_MESSAGES_HZ, _MESSAGES_BURST)
        try:
            async for message in opened:
                if not budget.take():
                    await opened.close(code=WSCloseCode.POLICY_VIOLATION, message=b"too many messages")
                    break
                if message.type is WSMsgType.TEXT:
                    self._take(viewer, message.data)
        finally:
            self._viewers.discard(viewer)
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        return opened

    def _take(self, viewer: Viewer, data: str) -> None:
        try:
            order = json.loads(data)
            ref, verb, text = int(order["ref"]), order["verb"], order.get("text", "")
            late_s = self._bus.now_ns() / NS_PER_S - float(order["at_ms"]) / 1000 if order.get("at_ms") else 0.0
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            expected = 'expected {"ref": 1, "verb": "say", "text": "..."}'
            viewer.tell(Answer(viewer, 0, "", "failed", f"{expected}, got {shown(data[:80])}"))
            return
        if not late_s <= _LATE_S and verb != "stop":  # NaN is late
            why = f"given {late_s:.0f} s before it arrived, and not carried out: much may have changed; give it again"
            viewer.tell(Answer(viewer, ref, shown(str(verb)[:20]), "failed", why))
            return
        refused = self._orders.give(viewer, ref, verb, text)
        if refused is not None:
            viewer.tell(refused)

    async def _feed(self, viewer: Viewer) -> None:
        """Everything so far, then what is new, for one viewer; slow ones get less and hold up nobody."""
        revision, views, fed_s = -1, self._views[0], 0.0
        count = self._bus.count - len(self._bus.rows)
        is_open = await viewer.send(json.dumps({"about": self._about}))
        while is_open:
            while is_open and viewer.answers:
                is_open = await viewer.send(json.dumps({"reply": _reply(viewer.answers.popleft())}))
            message: dict[str, Any] = {}
            if revision != self._bus.revision:
                revision = self._bus.revision
                message |= {"said": [asdict(item) for item in self._bus.said], "robot": self._robot()}
            new = min(self._bus.count - count, len(self._bus.rows))
            count = self._bus.count
            if new:
                message["rows"] = list(self._bus.rows)[-new:]
            if is_open and (message or time.monotonic() - fed_s > _QUIET_S):
                fed_s = time.monotonic()
                message["now_ms"] = self._bus.now_ns() / NS_PER_MS
                is_open = await viewer.send(json.dumps(message, allow_nan=False))
            if is_open and views != self._views[0] and self._views[1] is not None:
                views = self._views[0]
                is_open = await viewer.send(self._views[1])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(viewer.woken.wait(), _FEED_S)
            viewer.woken.clear()

    def _robot(self) -> dict[str, Any] | None:
        spec = self._bus.spec
        if spec is None:
            return None
        return {
            "name": shown(spec.name),
            "state_names": [shown(name) for name in spec.state_names],
            "action_names": [shown(name) for name in spec.action_names],
            "low": [rounded(value) for value in spec.action_low],
            "high": [rounded(value) for value in spec.action_high],
        }


def _reply(answer: Answer) -> dict[str, Any]:
    return {"ref": answer.ref, "verb": answer.verb, "outcome": answer.outcome, "message": answer.message}


_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


def _static(name: str, status: int = 200) -> web.Response:
    file = _STATIC / name
    text = file.read_text(encoding="utf-8")
    return web.Response(status=status, text=text, content_type=_TYPES[file.suffix], headers=_HEADERS)
