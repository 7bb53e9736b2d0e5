"""Who may use the page: the host and origin of a request, and the token.

Knows HTTP's words and no socket. A browser runs pages of strangers beside ours, so being on loopback is not enough:

* **DNS rebinding**: a stranger's name may point to 127.0.0.1. On loopback only localhost and addresses are answered.
  Elsewhere the token protects: its cookie belongs to the name that it was entered at.
* **Cross-site requests**: a browser says where a WebSocket or a form comes from (Origin); only the page itself may.
* **Other users of the machine** reach loopback too: `page.require_token` asks them.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from urllib.parse import urlsplit

from control.plain_text import shown

COOKIE = "saccade_page"


def is_loopback(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


class Access:
    """Judges requests. `token` is None where none is asked for."""

    def __init__(self, host: str, require_token: bool = False) -> None:
        self._is_loopback = is_loopback(host)
        self.token = None if self._is_loopback and not require_token else secrets.token_urlsafe(18)

    def find_fault(self, host: str, origin: str | None, *, needs_origin: bool) -> str:
        """Why a request with these headers is refused; empty when it is not."""
        try:
            is_local = is_loopback(urlsplit(f"//{host}").hostname or "")
        except ValueError:  # another name, which may point anywhere, or no name at all
            is_local = False
        if self._is_loopback and not is_local:
            return f"this page answers on loopback only, and was asked for as '{shown(host[:80])}'"
        if needs_origin and origin is None:
            return "a request without an Origin; browsers send one"
        if origin is not None and origin != f"http://{host}":
            return f"a request from another page: Origin '{shown(origin[:80])}'"
        return ""

    def is_known(self, cookie: str | None) -> bool:
        """Whether a request with this cookie may go on."""
        return self.token is None or (cookie is not None and self._equals(cookie))

    def lets_in(self, offered: str) -> bool:
        """Whether a token that somebody typed is the right one. Its 144 bits cannot be guessed, so guesses are not
        counted: a stranger's would keep out whoever has the token."""
        return self.token is not None and self._equals(offered)

    def _equals(self, offered: str) -> bool:
        return hmac.compare_digest(offered.encode("utf-8", "replace"), (self.token or "").encode())
