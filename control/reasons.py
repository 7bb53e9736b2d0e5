"""Reasons as people read them."""

from __future__ import annotations

import logging
import re
import time

RUN_ENDS, CONTROLLER_ENDS = ENDING = ("the run is ending", "the controller is ending")  # of the STOP at the end

_SILENCE_S = 5.0  # a fault that goes on is told again after this time
_MOST_KINDS = 20  # told in that time


def kind(reason: str) -> str:
    """A reason without its numbers: a growing age is one event, not ten a second."""
    return re.sub(r"\d+", "#", reason)


class Told:
    """Writes a fault to a log once, and while it goes on again every few seconds: a flood of faults is no flood of
    lines. Faults of the same kind are one.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._told_s: dict[str, float] = {}

    def warn(self, fault: str) -> None:
        self._tell(logging.WARNING, fault)

    def error(self, fault: str) -> None:
        self._tell(logging.ERROR, fault)

    def _tell(self, level: int, fault: str) -> None:
        now_s = time.monotonic()
        self._told_s = {known: told_s for known, told_s in self._told_s.items() if now_s - told_s <= _SILENCE_S}
        if kind(fault) not in self._told_s and len(self._told_s) < _MOST_KINDS:
            self._told_s[kind(fault)] = now_s
            self._log.log(level, fault)
