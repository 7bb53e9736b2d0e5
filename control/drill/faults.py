"""The faults of a drill: what is done to which part, for how long, and what is expected of it. Each is drawn by a seed.

A fault is injected into a healthy run and taken back; the campaign waits until the run is healthy again.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import zmq

from control.drill import relay
from control.drill.relay import TOPICS, Disturb
from control.drill.rig import PROCESSES, Rig
from control.drill.robot import tell
from control.messages import Command
from control.supervisor import RECORDER
from control.wire import encode

_MEGABYTE = 1 << 20
_STARTS_AGAIN_S = 10.0

CLOCK = "clock"
"""The target of the kinds that need a rig which can set the wall clock."""

Inject = Callable[[Rig, random.Random], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Kind:
    """One thing that can go wrong. `seconds` is how long it lasts, drawn between the two; 0: it is over at once.

    `is_noticed`: somebody has to say so; where it is False it may pass without any effect. `ends_run`: the supervisor
    ends the run with the robot held, and a new one has to begin at once; with `may_end_run` it may or may not.
    `silences`: the controller itself cannot speak meanwhile, so its silence breaks no promise.
    """

    name: str
    target: str
    inject: Inject
    seconds: tuple[float, float]
    is_noticed: bool = True
    ends_run: bool = False
    may_end_run: bool = False
    silences: bool = False


@contextlib.contextmanager
def _done() -> Iterator[None]:
    yield


def _signalled(name: str, number: signal.Signals) -> Inject:
    def inject(rig: Rig, rng: random.Random) -> AbstractContextManager[None]:
        rig.child(name).process.send_signal(number)
        return _done()

    return inject


def _stopped(name: str) -> Inject:
    @contextlib.contextmanager
    def inject(rig: Rig, rng: random.Random) -> Iterator[None]:
        process = rig.child(name).process
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)  # does nothing to one that has ended meanwhile

    return inject


def _without_memory(name: str) -> Inject:
    """No further memory for the process: whatever it asks for is refused."""

    @contextlib.contextmanager
    def inject(rig: Rig, rng: random.Random) -> Iterator[None]:
        process = rig.child(name).process
        used = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.prlimit(process.pid, resource.RLIMIT_AS, (used + rng.randint(0, 4) * _MEGABYTE, -1))
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):  # it ended of it
                resource.prlimit(process.pid, resource.RLIMIT_AS, before)

    return inject


@contextlib.contextmanager
def _too_little_memory_to_load(rig: Rig, rng: random.Random) -> Iterator[None]:
    """The encoder is started again with less memory than it needs to load; the one after that has enough."""
    child = rig.child("encoder")
    before = child.process.pid
    child.kill()
    rig.wait(lambda: child.process.pid != before, _STARTS_AGAIN_S)
    most = rng.randint(64, 512) * _MEGABYTE
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(child.process.pid, resource.RLIMIT_AS, (most, most))
    yield


def _disk_full(rig: Rig, rng: random.Random) -> AbstractContextManager[None]:
    """The recording can grow no further, as on a full disk."""
    resource.prlimit(rig.child(RECORDER).process.pid, resource.RLIMIT_FSIZE, (_MEGABYTE // 4, -1))
    return _done()


def _disturbed(topic: str, make: Callable[[random.Random, Rig], Disturb]) -> Inject:
    @contextlib.contextmanager
    def inject(rig: Rig, rng: random.Random) -> Iterator[None]:
        rig.relay.disturb(topic, make(rng, rig))
        try:
            yield
        finally:
            rig.relay.disturb(topic, None)

    return inject


def _replayed(topic: str) -> Inject:
    """Messages of the seconds before come again between the new ones."""

    @contextlib.contextmanager
    def inject(rig: Rig, rng: random.Random) -> Iterator[None]:
        old: list[bytes] = []
        for _ in range(10):
            if (newest := rig.relay.newest(topic)) is not None:
                old.append(newest)
            threading.Event().wait(0.06)
        rig.relay.disturb(topic, relay.replayed(old, rng))
        try:
            yield
        finally:
            rig.relay.disturb(topic, None)

    return inject


def _lying(sensor: Callable[[random.Random, Rig], dict[str, object]]) -> Inject:
    @contextlib.contextmanager
    def inject(rig: Rig, rng: random.Random) -> Iterator[None]:
        tell(rig.faults, sensor(rng, rig))
        try:
            yield
        finally:
            tell(rig.faults, {})

    return inject


@contextlib.contextmanager
def _starved(rig: Rig, rng: random.Random) -> Iterator[None]:
    """Twice as many busy processes as there are cores."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
        for process in busy:
            process.wait()


def _flooded(verbs: tuple[str, ...]) -> Inject:
    """Commands as fast as one client can send them."""

    @contextlib.contextmanager
    def inject(rig: Rig, rng: random.Random) -> Iterator[None]:
        client = rig.client()

        def send_one() -> None:
            with contextlib.suppress(zmq.Again):  # its own queue is full
                client.send(rng.choice(verbs), f"touch the block number {rng.randrange(1000)}")
            while client.receive():
                pass

        with _again_and_again(send_one):
            yield
        client.close()

    return inject


@contextlib.contextmanager
def _garbled(rig: Rig, rng: random.Random) -> Iterator[None]:
    """What is no command, or half of one, as fast as one client can send it."""
    scrambled, truncated = relay.scrambled(rng), relay.truncated(rng)
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(rig.buses["controller"].endpoint("command"))

    def send_one() -> None:
        [(_, data)] = rng.choice((scrambled, truncated))(encode(Command(rng.randrange(2**32), "say", "touch it")))
        with contextlib.suppress(zmq.Again):
            socket.send(data, zmq.NOBLOCK)
            socket.recv(zmq.NOBLOCK)

    with _again_and_again(send_one):
        yield
    socket.close()


@contextlib.contextmanager
def _again_and_again(do: Callable[[], None]) -> Iterator[None]:
    """In a thread, until the `with` is left; which raises what went wrong there."""
    ends = threading.Event()
    failed: list[Exception] = []

    def run() -> None:
        try:
            while not ends.is_set():
                do()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()
    if failed:
        raise failed[0]


@contextlib.contextmanager
def _clock_set(rig: Rig, rng: random.Random) -> Iterator[None]:
    """The wall clock of every process goes wrong by up to ten years, and back."""
    rig.wall_clock.set(rng.choice((-1, 1)) * rng.randint(1, rng.choice((2, 3600, 300_000_000))))
    try:
        yield
    finally:
        rig.wall_clock.set(0)


def _messages(topic: str) -> list[Kind]:
    """What can happen to the messages of a topic. Gaps of the loop's own inputs are noticed by their age."""
    noticed = topic in ("state", "features", "action")
    kinds = [
        Kind("dropped", topic, _disturbed(topic, lambda rng, rig: relay.dropped(rng, 1.0)), (1.0, 2.5), noticed),
        Kind("half dropped", topic, _disturbed(topic, lambda rng, rig: relay.dropped(rng, 0.5)), (0.5, 2.0), False),
        Kind("delayed", topic, _disturbed(topic, lambda rng, rig: relay.delayed(rng, 800.0)), (0.5, 2.0), False),
        Kind("duplicated", topic, _disturbed(topic, lambda rng, rig: relay.duplicated(rng, 300.0)), (0.5, 2.0), False),
        Kind("reordered", topic, _disturbed(topic, lambda rng, rig: relay.reordered(rng.randint(2, 5))), (1, 2), False),
        Kind("truncated", topic, _disturbed(topic, lambda rng, rig: relay.truncated(rng)), (1.0, 2.5), noticed),
        Kind("scrambled", topic, _disturbed(topic, lambda rng, rig: relay.scrambled(rng)), (0.5, 2.5), False),
        Kind("sent again", topic, _replayed(topic), (0.5, 2.0), False),
    ]
    wrong_version = _disturbed(topic, lambda rng, rig: relay.rewritten(v=rng.choice((0, 2, 99))))
    return [*kinds, Kind("of another wire version", topic, wrong_version, (1.0, 2.0), noticed)]


def _sensors() -> list[Kind]:
    def state(kind: str, **more: object) -> Inject:
        return _lying(lambda rng, rig: {"state": kind, "index": rng.randrange(100), **more})

    def cameras(kind: str) -> Inject:
        return _lying(lambda rng, rig: {"cameras": kind, "camera": rng.choice(sorted(rig.spec.cameras))})

    return [
        Kind("NaN", "sensors", state("nan"), (0.5, 2.0)),
        Kind("infinite", "sensors", state("inf"), (0.5, 2.0)),
        Kind("frozen", "sensors", state("frozen"), (0.5, 2.5), False),
        Kind("noisy", "sensors", state("noisy", sigma=0.01), (0.5, 2.0), False),
        Kind("outside", "sensors", state("outside"), (0.5, 1.5)),
        Kind("missing", "camera", cameras("missing"), (0.5, 2.0)),
        Kind("black", "camera", cameras("black"), (0.5, 2.0)),
        Kind("misshapen", "camera", cameras("misshapen"), (0.5, 2.0)),
        Kind("frozen", "camera", cameras("frozen"), (2.0, 3.5), False),
    ]


def _processes() -> list[Kind]:
    kinds = [
        Kind("killed", "encoder", _signalled("encoder", signal.SIGKILL), (0.0, 0.0)),
        Kind("killed", "robot", _signalled("robot", signal.SIGKILL), (0.0, 0.0), ends_run=True),
        Kind(
            "killed", "controller", _signalled("controller", signal.SIGKILL), (0.0, 0.0), ends_run=True, silences=True
        ),
        Kind("out of memory", RECORDER, _without_memory(RECORDER), (1.0, 2.0), False),
        Kind("out of memory in loading", "encoder", _too_little_memory_to_load, (1.0, 2.0)),
        Kind("without processor", "all", _starved, (1.0, 3.0), False, silences=True),
        Kind("disk full", RECORDER, _disk_full, (1.5, 2.5)),
        Kind("wall clock set", CLOCK, _clock_set, (0.5, 2.0), False),
    ]
    for name in PROCESSES:
        is_speaker = name == "controller"
        kinds += [
            Kind("out of memory", name, _without_memory(name), (1, 2), False, may_end_run=True, silences=is_speaker),
            Kind("stopped", name, _stopped(name), (1.0, 5.0), silences=is_speaker),
        ]
    return kinds


def _operators() -> list[Kind]:
    return [
        Kind("flood", "instruction", _flooded(("say",)), (0.5, 2.0), False),
        Kind("flood", "command", _flooded(("status", "dance", "")), (0.5, 2.0), False),
        Kind("garbled", "command", _garbled, (0.5, 2.0), False),
    ]


def _forgeries() -> list[Kind]:
    """Messages that are well-formed, and wrong."""

    def forged(topic: str, **changes: Callable[[random.Random], object]) -> Inject:
        def make(rng: random.Random, rig: Rig) -> Disturb:
            return relay.rewritten(**{name: draw(rng) for name, draw in changes.items()})

        return _disturbed(topic, make)

    def future(rng: random.Random) -> int:
        return time.monotonic_ns() + rng.randrange(10**9, 10**12)

    def small(rng: random.Random) -> int:
        return rng.randrange(1000)

    return [
        Kind("of another policy", "features", forged("features", policy_id=lambda rng: "other"), (1.0, 2.0)),
        Kind("of an old epoch", "features", forged("features", encoder_epoch=small, seq=small), (0.5, 2.0), False),
        Kind("of another session", "features", forged("features", session=small), (1.0, 2.0)),
        Kind("from the future", "features", forged("features", frame_stamp_ns=future), (1.0, 2.0)),
        Kind("from the future", "action", forged("action", stamp_ns=future), (0.5, 2.0)),
        Kind("without an end", "action", forged("action", valid_until_ns=lambda rng: 2**62), (0.5, 2.0), False),
    ]


KINDS: list[Kind] = [
    *_processes(),
    *_sensors(),
    *_operators(),
    *_forgeries(),
    *(kind for topic in TOPICS for kind in _messages(topic)),
]


def one_of_each(seed: int) -> list[Kind]:
    """Every fault but those of messages, and each of those on one topic, which the seed turns."""
    messages = [_messages(topic) for topic in TOPICS]
    turned = [messages[(seed + index) % len(TOPICS)][index] for index in range(len(messages[0]))]
    return [*_processes(), *_sensors(), *_operators(), *_forgeries(), *turned]
