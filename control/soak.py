"""A long run with everything on, seen from outside: does anything grow, and is the end as punctual as the beginning?

Knows `launch.py run` as a user starts it, /proc and the bus; refuses to know what the robot does. The encoder is killed
every few minutes. A process is compared with itself at the same time after its own start, so that one which was started
again is not taken for one that shrank.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control.address import BusAddress
from control.bus import Subscriber
from control.clock import NS_PER_S
from control.command_bus import CommandClient
from control.errors import NotRunning
from control.holders import rss_mb
from control.messages import Cycle, Mode
from control.reasons import ENDING, kind
from control.report import percentiles

SAMPLE_S = 5.0
_NAMES = {"robot": "robot", "encoder": "encoder", "control": "controller", "record": "recorder", "page": "page"}
_RESUME_S = 5.0  # between two attempts to resume
_PATIENCE_S = 60.0  # for the end of the run, after its duration


@dataclass(slots=True)
class Life:
    """One process of the run: what was measured, in seconds since its first sample."""

    name: str
    pid: int
    first_s: float
    samples: list[tuple[float, float, int]] = field(default_factory=list)  # s, MiB, descriptors

    def around(self, begin_s: float, end_s: float) -> tuple[float, float] | None:
        """Median memory and descriptors between two of its own times."""
        found = [(mb, fds) for at_s, mb, fds in self.samples if begin_s <= at_s < end_s]
        if not found:
            return None
        return statistics.median(mb for mb, _ in found), statistics.median(fds for _, fds in found)


class Soak:
    """`words` are the arguments of `launch.py run`. `settled_s`: growth is counted from this time of a process on."""

    def __init__(
        self, launcher: Path, words: Sequence[str], bus: BusAddress, settled_s: float, restart_every_s: float
    ) -> None:
        self._command = [sys.executable, str(launcher), "run", *words]
        self._bus, self._settled_s, self._restart_every_s = bus, settled_s, restart_every_s
        self.lives: dict[int, Life] = {}
        self.cycles: list[tuple[int, float, float | None, int]] = []  # stamp, lateness, feature age, missed ticks
        self.kills = 0
        self.stops: Counter[str] = Counter()  # by their reason
        self._resumed_s = 0.0

    def run(self, seconds: float, stopped: Callable[[], bool], show: Callable[[str], None]) -> int:
        """The exit code of the run, which ends by itself after `seconds`. Raises NotRunning when it does not."""
        process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, start_new_session=True)
        cycles, client = Subscriber(self._bus, "cycle", newest_only=False), CommandClient(self._bus)
        began_s = time.monotonic()
        sample_s = kill_s = began_s
        ends_s = None
        try:
            while process.poll() is None:
                cycles.socket.poll(100)
                while (cycle := cycles.poll()) is not None:
                    self._take(cycle, client)
                now_s = time.monotonic()
                if ends_s is None and self.cycles:
                    ends_s, kill_s = now_s + seconds + _PATIENCE_S, now_s + self._restart_every_s
                if stopped() or (ends_s is not None and now_s > ends_s):
                    break
                if now_s >= sample_s:
                    sample_s = now_s + SAMPLE_S
                    self._sample(process.pid, now_s)
                    minutes = (now_s - began_s) / 60
                    show(f"{minutes:.1f} min, {len(self.cycles)} cycles, encoder killed {self.kills} times")
                if ends_s is not None and now_s >= kill_s and now_s < ends_s - _PATIENCE_S - self._restart_every_s / 2:
                    kill_s = now_s + self._restart_every_s
                    self._kill_encoder()
        finally:
            cycles.close()
            client.close()
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                code = process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise NotRunning(f"the run did not end within {_PATIENCE_S:g} s of being asked to: killed") from None
        return code

    def _take(self, cycle: Cycle, client: CommandClient) -> None:
        """Start-up, all before the first RUN, is left out. A STOP is counted and resumed, but for a run's last word."""
        if not self.cycles and cycle.mode is not Mode.RUN:
            return
        is_stop = cycle.mode is Mode.STOP and cycle.reason not in ENDING
        if is_stop and time.monotonic() - self._resumed_s > _RESUME_S:
            self.stops[kind(cycle.reason)] += 1
            self._resumed_s = time.monotonic()
            client.send("resume")
        self.cycles.append((cycle.stamp_ns, cycle.lateness_ms, cycle.feature_age_ms, cycle.missed_ticks))

    def _sample(self, parent: int, now_s: float) -> None:
        found = children(parent) | {"supervisor": parent}
        for name, pid in found.items():
            life = self.lives.setdefault(pid, Life(name, pid, now_s))
            memory_mb, descriptors = rss_mb(pid), _descriptors(pid)
            if memory_mb is not None and descriptors is not None:
                life.samples.append((now_s - life.first_s, memory_mb, descriptors))

    def _kill_encoder(self) -> None:
        encoders = [life for life in self.lives.values() if life.name == "encoder" and rss_mb(life.pid) is not None]
        if encoders:
            os.kill(encoders[-1].pid, signal.SIGKILL)
            self.kills += 1

    def result(self) -> dict[str, Any]:
        """Lateness and ages at the start and the end, missed ticks, and how memory and descriptors grew."""
        tenth = max(1, len(self.cycles) // 10)
        missed = sum(missed for *_, missed in self.cycles[1:])
        return {
            "cycles": len(self.cycles),
            "hours": (self.cycles[-1][0] - self.cycles[0][0]) / NS_PER_S / 3600 if self.cycles else 0.0,
            "missed_ticks": missed,
            "missed_share": missed / max(1, len(self.cycles) + missed),
            "encoder_kills": self.kills,
            "stops": dict(self.stops),
            "first_tenth": _figures(self.cycles[:tenth]),
            "last_tenth": _figures(self.cycles[-tenth:]),
            "processes": {name: self._growth(name) for name in sorted({life.name for life in self.lives.values()})},
        }

    def _growth(self, name: str) -> dict[str, Any]:
        """Of a process that lives on: from `settled_s` to its end. Of one that was started again: from life to life."""
        lives = [life for life in self.lives.values() if life.name == name and life.samples]
        last_s = lives[-1].samples[-1][0]
        if len(lives) == 1:
            spans = (
                lives[0].around(self._settled_s, self._settled_s + 60.0),
                lives[0].around(last_s - 60.0, last_s + 1),
            )
        else:
            ages_s = [life.samples[-1][0] for life in lives]
            at_s = min(self._settled_s, max(ages_s[0] - SAMPLE_S, 0.0))
            long = [life for life, age_s in zip(lives, ages_s, strict=True) if age_s >= at_s]
            spans = tuple(life.around(at_s - SAMPLE_S, at_s + SAMPLE_S) for life in (long[0], long[-1]))
        (first, first_fds), (last, last_fds) = (span or (None, None) for span in spans)
        everybody_s = max(life.first_s + life.samples[-1][0] for life in self.lives.values() if life.samples)
        return {
            "starts": len(lives),
            "rss_mb": [value if value is None else round(value, 1) for value in (first, last)],
            "rss_growth": last / first - 1 if first and last else None,
            "descriptors": [first_fds, last_fds],
            "gone_s": max(0.0, everybody_s - (lives[-1].first_s + last_s)),  # before the run's end
        }


def children(parent: int) -> dict[str, int]:
    """Ids by name of the processes that a run has started."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            ppid = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # it has just ended
        if ppid == parent and len(words) > 2 and (name := _NAMES.get(words[2].decode(errors="replace"))):
            found[name] = int(entry.name)
    return found


def _descriptors(pid: int) -> int | None:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def _figures(cycles: Sequence[tuple[int, float, float | None, int]]) -> dict[str, Any]:
    return {
        "lateness_ms": percentiles([lateness for _, lateness, _, _ in cycles]),
        "feature_age_ms": percentiles([age for _, _, age, _ in cycles if age is not None]),
    }


def broken(found: dict[str, Any], most_missed: float, most_growth: float) -> list[str]:
    """What a soak promises and did not keep, in sentences."""
    sentences = []
    if found["missed_share"] > most_missed:
        sentences.append(f"{found['missed_share']:.2%} of the ticks missed, limit {most_missed:.2%}")
    for name, process in found["processes"].items():
        if process["gone_s"] > 2 * SAMPLE_S and name != "encoder":  # a run without one has an exit code
            sentences.append(f"{name} ended {process['gone_s']:.0f} s before the run")
        growth, (first, last) = process["rss_growth"], process["rss_mb"]
        if growth is None:
            sentences.append(f"{name} did not live long enough to say how its memory grew")
        elif not growth <= most_growth:
            sentences.append(f"memory of {name} went from {first} to {last} MiB, limit {most_growth:.0%}")
        if growth is not None and process["descriptors"][1] > process["descriptors"][0]:
            sentences.append(
                f"{name} holds {process['descriptors'][1]:g} descriptors, {process['descriptors'][0]:g} before"
            )
    recording = found.get("run", {}).get("recording")
    if recording is not None and not recording["is_whole"]:
        sentences.append(f"the recording ended early ({recording['ended']})")
    return sentences


def read_report(file: Path) -> dict[str, Any]:
    """What the run itself said, {} where it wrote nothing; files are named without the folder they were in."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return json.loads(text.replace(f"{file.parent}/", "")) if text else {}
