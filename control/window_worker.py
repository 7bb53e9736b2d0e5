"""A browser's window without a browser, for `bench watchers`: it reads what the page sends, or behaves badly.

Started by control/bench_watchers.py with the page's address; ends by itself when that command is gone.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys

import aiohttp
from yarl import URL

_READS_S = 0.4  # a window that is reloaded again and again reads this long


class Window:
    """Opens windows of one page. `keep_open` for a good one, `misbehave` for those that reload and do not read."""

    def __init__(self, address: str, parent: int) -> None:
        self._url, self._parent = URL(address), parent

    async def keep_open(self) -> None:
        async with self._session() as session, await self._open(session) as opened:
            while self._is_wanted() and await _hears(opened):
                pass

    async def misbehave(self) -> None:
        """One window that never reads, and another that is reloaded again and again, also while the page hangs."""
        deaf = socket.create_connection((self._url.host, self._url.port))
        deaf.sendall(_handshake(self._url))
        async with self._session() as session:
            while self._is_wanted():
                try:
                    async with asyncio.timeout(_READS_S):
                        opened = await self._open(session)
                        while await _hears(opened):
                            pass
                    await asyncio.sleep(_READS_S)  # the page has closed it
                except TimeoutError:
                    continue  # closed without a word, and opened again
                except (aiohttp.ClientError, OSError):
                    await asyncio.sleep(_READS_S)  # the page is gone, or has too many windows
        deaf.close()

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))

    async def _open(self, session: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse:
        async with session.get(self._url) as answer:  # a token in the address becomes a cookie
            answer.raise_for_status()
        origin = str(self._url.origin())
        return await session.ws_connect(self._url.origin() / "ws", headers={"Origin": origin}, max_msg_size=0)

    def _is_wanted(self) -> bool:
        return os.getppid() == self._parent


async def _hears(opened: aiohttp.ClientWebSocketResponse) -> bool:
    """Waits for a message; False for the end of the connection, which `receive` would say again without waiting."""
    return (await opened.receive()).type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)


def _handshake(url: URL) -> bytes:
    lines = (
        "GET /ws HTTP/1.1",
        f"Host: {url.host}:{url.port}",
        f"Origin: {url.origin()}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


if __name__ == "__main__":
    manner, where, started_by = sys.argv[1], sys.argv[2], int(sys.argv[3])
    window = Window(where, started_by)
    asyncio.run(window.keep_open() if manner == "good" else window.misbehave())
