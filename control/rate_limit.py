"""How often something may happen: token buckets, for one and for many."""

from __future__ import annotations

import time
from collections.abc import Hashable

_FORGET_AT = 256


class Budget:
    """How often something may happen: `rate_hz` in the long run, `burst` at once."""

    def __init__(self, rate_hz: float, burst: int) -> None:
        self._rate_hz, self._burst, self._left = rate_hz, burst, float(burst)
        self._at_s = time.monotonic()

    def take(self) -> bool:
        self._refill()
        if self._left < 1:
            return False
        self._left -= 1
        return True

    @property
    def is_full(self) -> bool:
        """Whether it is as good as new."""
        self._refill()
        return self._left >= self._burst

    def _refill(self) -> None:
        now_s = time.monotonic()
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._rate_hz)
        self._at_s = now_s


class SharedBudget:
    """A budget for each client, and one for all together: who uses up their own takes nothing from the others.

    Clients cost nothing once their budget is full again, however many come and go: as many are kept as the budget of
    all lets in while one refills, and no more than `_FORGET_AT` beyond that.
    """

    def __init__(self, each: tuple[float, int], in_all: tuple[float, int]) -> None:
        """Both as `rate_hz` and `burst`."""
        self._each, self._all = each, Budget(*in_all)
        self._clients: dict[Hashable, Budget] = {}

    def __len__(self) -> int:
        return len(self._clients)

    def take(self, client: Hashable) -> bool:
        own = self._clients.get(client) or Budget(*self._each)
        if not own.take() or not self._all.take():
            return False
        if client not in self._clients and len(self._clients) >= _FORGET_AT:
            self._clients = {name: budget for name, budget in self._clients.items() if not budget.is_full}
        self._clients[client] = own
        return True
