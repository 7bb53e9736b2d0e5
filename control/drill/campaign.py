"""One fault after another, and what became of each: who noticed, how soon, was the robot held, is all well again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from control.clock import NS_PER_MS, NS_PER_S
from control.drill.faults import Kind
from control.drill.judge import (
    Seen,
    broken_promises,
    largest_step,
    longest_silence_ms,
    motions,
    oldest_action_ms,
    oldest_features_ms,
)
from control.drill.rig import Rig
from control.errors import NotRunning
from control.messages import Mode
from control.supervisor import RECORDER

_QUIET_S = 0.4  # of health before a fault
_WORDS = 48  # characters of what was said, in the report
_RECOVERS_S = 30.0  # without what an encoder takes to load, which is this machine's and has a limit of its own
_LOADS_S = 120.0
_CALM_S = 120.0  # for a healthy run before a fault: nothing is broken then, but the machine may be busy
_STABLE_S = 0.5  # healthy so long: recovered
_RESUME_S = 0.2


@dataclass(slots=True)
class Outcome:
    """One row of the report. Times in ms from the injection; None: it did not happen.

    The four after `held_ms` are the worst of all that was seen until the run was healthy again.
    """

    kind: str
    target: str
    seed: int
    lasted_ms: float
    detected_by: str | None = None
    detected_as: str = ""
    detect_ms: float | None = None
    held_ms: float | None = None  # the last motion before the robot was held
    largest_step: float = 0.0  # of what the velocity limit allows in one period of the robot host
    oldest_action_ms: float = 0.0  # the age, at a motion, of the last action in RUN that had come
    oldest_features_ms: float = 0.0  # in RUN
    silence_ms: float = 0.0  # between two cycles of one controller
    has_new_run: bool = False  # the supervisor ended the run, and a second start began another
    was_stopped: bool = False  # latched in STOP, and resumed by the drill as an operator would
    recovered: bool = False
    recover_ms: float | None = None  # from the end of the fault
    load_ms: float | None = None  # of an encoder that was started again meanwhile: from its start until it was ready
    broken: list[str] = field(default_factory=list)

    @property
    def promise_kept(self) -> bool:
        return not self.broken

    def row(self) -> dict[str, Any]:
        plain = {
            name: round(value, 4 if name == "largest_step" else 1) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }
        return plain | {"promise_kept": self.promise_kept}

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> Outcome:
        return cls(**{name: value for name, value in row.items() if name != "promise_kept"})


def campaign(rig: Rig, kinds: Sequence[Kind], seeds: Sequence[int], stopped: Callable[[], bool]) -> Iterator[Outcome]:
    """The fault of each seed in turn: `kinds[seed % len(kinds)]`, with all else drawn by the seed."""
    for seed in seeds:
        outcome = one_fault(rig, kinds[seed % len(kinds)], seed)
        if stopped():
            return  # what the end of the drill has cut off is no outcome
        yield outcome


def one_fault(rig: Rig, kind: Kind, seed: int) -> Outcome:
    """Inject, take back, wait for health, judge. Starts the run again where the fault has ended it."""
    rng = random.Random(seed)
    if kind.target == RECORDER and not rig.child(RECORDER).is_running():
        rig.end()  # one that has ended comes back with a new run only
    if rig.has_ended:
        rig.start()
    if not rig.wait(lambda: not _resume_if_stopped(rig, 0) and _is_well(rig, 0, _QUIET_S), _CALM_S):
        return Outcome(kind.name, kind.target, seed, 0.0, broken=["the run was not healthy before this fault"])
    rig.wait(lambda: False, rng.uniform(0.0, 0.3))  # anywhere in a period
    begun_ns = time.monotonic_ns()
    with kind.inject(rig, rng):
        rig.wait(lambda: rig.has_ended, rng.uniform(*kind.seconds))
    over_ns = time.monotonic_ns()
    outcome = Outcome(kind.name, kind.target, seed, (over_ns - begun_ns) / NS_PER_MS)
    _recover(rig, kind, outcome, over_ns)
    seen = rig.snapshot(begun_ns - NS_PER_S // 2)
    _judge(rig, kind, outcome, seen, begun_ns)
    outcome.load_ms = None if outcome.has_new_run else rig.load_ms(begun_ns)
    rig.forget(time.monotonic_ns() - 2 * NS_PER_S)
    return outcome


def _recover(rig: Rig, kind: Kind, outcome: Outcome, over_ns: int) -> None:
    now_ns, left_ns, left_to_load_ns = over_ns, _RECOVERS_S * NS_PER_S, _LOADS_S * NS_PER_S
    while left_ns > 0 and left_to_load_ns > 0:
        before_ns, now_ns = now_ns, time.monotonic_ns()
        if not rig.has_ended and rig.is_loading:
            left_to_load_ns -= now_ns - before_ns
        else:
            left_ns -= now_ns - before_ns
        if rig.has_ended:
            if not kind.ends_run and not kind.may_end_run:
                outcome.broken.append(f"the run ended with code {rig.exit_code}: {rig.lines[-1][1].strip()}")
            _start_again(rig, outcome)
            break
        outcome.was_stopped |= _resume_if_stopped(rig, over_ns)
        if _is_well(rig, over_ns, _STABLE_S):
            outcome.recovered = True
            break
        rig.wait(lambda: False, 0.02)
    if outcome.recovered:
        outcome.recover_ms = max(0.0, (time.monotonic_ns() - over_ns) / NS_PER_MS - _STABLE_S * 1000)
    else:
        outcome.broken.append(f"not healthy again within {_RECOVERS_S:g} s, loading not counted")


def _start_again(rig: Rig, outcome: Outcome) -> None:
    """A second start works at once, whatever the first one left."""
    left = [name for name, pid in rig.processes().items() if pid is not None]
    if left:
        outcome.broken.append(f"still running after the end: {', '.join(left)}")
    rig.end()
    outcome.has_new_run, outcome.was_stopped = True, False
    try:
        rig.start()
    except NotRunning as error:
        outcome.broken.append(str(error))
        return
    outcome.recovered = True


def _resume_if_stopped(rig: Rig, since_ns: int) -> bool:
    """As an operator would; a latch is a promise: nothing moves before somebody says so."""
    cycle = rig.last_cycle
    if rig.has_ended or cycle is None or cycle.mode is not Mode.STOP or cycle.stamp_ns <= since_ns:
        return False
    client = rig.client()
    client.send("resume")
    rig.wait(lambda: rig.has_ended, _RESUME_S)
    client.close()
    return True


def _is_well(rig: Rig, since_ns: int, seconds: float) -> bool:
    """Whether every cycle of the last `seconds` was a healthy one that began after `since_ns`."""
    from_ns = time.monotonic_ns() - round(seconds * NS_PER_S)
    return from_ns >= since_ns and rig.is_healthy(since_ns) and rig.was_healthy(from_ns)


def _judge(rig: Rig, kind: Kind, outcome: Outcome, seen: Seen, begun_ns: int) -> None:
    promises = rig.promises
    outcome.largest_step = largest_step(seen.rows, promises.spec, promises.host_period_ns)
    outcome.oldest_action_ms = oldest_action_ms(seen)
    outcome.oldest_features_ms = oldest_features_ms(seen.cycles)
    outcome.broken += broken_promises(seen, promises)
    found = _detections(rig, seen, begun_ns)
    if found:
        at_ns, outcome.detected_by, said = min(found)
        outcome.detected_as = said[:_WORDS]
        outcome.detect_ms = (at_ns - begun_ns) / NS_PER_MS
    elif kind.is_noticed:
        outcome.broken.append("nobody noticed")
    held = [row.at_ns for row in seen.rows if row.targets is None and not row.is_start and row.at_ns >= begun_ns]
    if held:
        before = [row.at_ns for row in motions(seen.rows) if begun_ns <= row.at_ns <= held[0]]
        outcome.held_ms = (max(before, default=begun_ns) - begun_ns) / NS_PER_MS
    if kind.silences or outcome.has_new_run:
        return
    outcome.silence_ms = longest_silence_ms(seen)
    if outcome.silence_ms > promises.longest_silence_ns / NS_PER_MS:
        outcome.broken.append(f"the controller said nothing for {outcome.silence_ms:.0f} ms")


def _detections(rig: Rig, seen: Seen, begun_ns: int) -> list[tuple[int, str, str]]:
    """Everything that was said about something being wrong: when, by whom, and in which words."""
    found = [
        (cycle.stamp_ns, "controller", cycle.reason)
        for cycle in seen.cycles
        if cycle.stamp_ns >= begun_ns and cycle.reason
    ]
    for at_ns, line in rig.lines_since(begun_ns):
        name, _, text = line.partition("|")
        words = text.strip()
        if name.strip() == "run" or words.startswith(("E ", "W ")) or "holding:" in words:
            found.append((at_ns, {"run": "supervisor"}.get(name.strip(), name.strip()), words.removeprefix("I ")))
    return found
