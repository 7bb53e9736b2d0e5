"""The control loop: one tick from the newest inputs to an action and a record of it. The whole system in one screen.

Knows the order of things; refuses to know sockets (it is given inboxes and outboxes), processes and torch (it is given
a head). A fault is a value with a reason that leads to HOLD, never an exception: the robot keeps its last target
meanwhile. The same object runs live, and in lockstep on a simulated clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from control.cache import FeatureCache
from control.clock import NS_PER_MS, NS_PER_S, Clock, Tick
from control.head import ActionHead
from control.measured import MeasuredRobot
from control.messages import (
    MAX_COMMAND_CHARS,
    MAX_COMMANDS,
    ActionChunk,
    Cycle,
    Instruction,
    Mode,
    RobotSpec,
    State,
)
from control.safety import MAX_BAD_TARGETS, Freshness, Gated, Limits, find_bad_target, gate, next_mode
from control.wire import MAX_TEXT_CHARS


class Inbox(Protocol):
    """The newest message of a topic, None when there is no new one. `refusal`: why the newest is not given, or ''."""

    rejected: int
    refusal: str

    def poll(self) -> Any | None: ...


class Outbox(Protocol):
    def send(self, noun: Any) -> None: ...


MAX_CHUNK_ROWS = 100  # a chunk is followed no longer than the robot's watchdog; 100 rows are a second at 100 Hz


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """`state_max_age_ms` and `switch_max_ms` lead to HOLD, `max_following_s` to STOP; `max_missed_ticks` is how many a
    single overrun may cost. `watchdog_ns` is the robot host's, after which it holds by itself.
    """

    period_ns: int
    freshness: Freshness
    state_max_age_ms: float
    switch_max_ms: float
    max_missed_ticks: int
    view_period_ms: float
    workspace: dict[str, tuple[float, float]]
    allow_unlimited: bool = False
    max_following_s: float = 0.5  # how far an arm may be from its command: as far as it moves in this time
    watchdog_ns: int = 300 * NS_PER_MS


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the loop reads and writes: sockets when live, plain queues in lockstep."""

    robot: Inbox
    state: Inbox
    features: Inbox
    instruction: Outbox
    action: Outbox
    cycle: Outbox
    features_arrived_ns: Callable[[], int | None] = lambda: None  # of the features polled last; None: nobody stamps


class ControlLoop:
    """Acts once a tick. `session` must differ from that of any earlier controller the encoder may remember."""

    def __init__(
        self,
        clock: Clock,
        head: ActionHead,
        settings: LoopSettings,
        ports: Ports,
        session: int,
        find_misfits: Callable[[RobotSpec], list[str]] = lambda spec: [],
        needed_cameras: frozenset[str] | None = None,
    ) -> None:
        """`find_misfits` says in sentences why the policy cannot drive a robot; names are checked here in any case.
        A fault of one of `needed_cameras` (None: of any) leads to HOLD.
        """
        self._clock, self._head, self._settings, self._ports = clock, head, settings, ports
        period_ms = settings.period_ns / NS_PER_MS
        self._cache = FeatureCache(
            session,
            head.policy_id,
            settings.freshness,
            period_ms,
            settings.view_period_ms,
            settings.switch_max_ms,
        )
        self.mode = Mode.INIT
        self.reason = "waiting for the robot host"
        self._robot = MeasuredRobot(
            head,
            find_misfits,
            lambda spec: Limits.of(spec, settings.period_ns / NS_PER_S, settings.workspace, settings.allow_unlimited),
            settings.state_max_age_ms,
            settings.allow_unlimited,
            settings.max_following_s,
            needed_cameras,
        )
        self._sent: np.ndarray | None = None  # the newest chunk that moved the robot
        self._commanded: np.ndarray | None = None
        self._step: np.ndarray | None = None  # by which `_commanded` was reached, None while the arm stands
        self._is_lost = True  # whether the arm may stand elsewhere than commanded: begin again at what is measured
        self._has_run = False
        self._bad_targets = 0
        self._stop_request = ""
        self._resume_request = False
        self._latched = ""  # why STOP was entered
        self._said_ns: int | None = None  # when the instruction was said whose first action is still to come
        self._asked: deque[str] = deque(maxlen=MAX_COMMANDS)
        self._seq = 0

    def note(self, asked: str) -> None:
        """What an operator asked, for the record of the next tick."""
        self._asked.append(asked[:MAX_COMMAND_CHARS])

    @property
    def spec(self) -> RobotSpec | None:
        return self._robot.spec

    @property
    def acting(self) -> Instruction | None:
        return self._cache.acting

    @property
    def pending(self) -> Instruction | None:
        return self._cache.pending

    def say(self, text: str) -> Instruction:
        """Take a new instruction and tell the encoder at once. Raises ValueError for text that is no instruction."""
        now_ns = self._clock.now_ns()
        instruction = self._cache.say(text, now_ns)
        self._said_ns = now_ns
        self._ports.instruction.send(instruction)
        return instruction

    def stop(self, reason: str) -> None:
        """STOP is latched with the next tick; the robot is told at once."""
        self._stop_request = reason
        self._ports.action.send(self._action(self._clock.now_ns(), None, Mode.STOP, np.empty((0, 0))))

    def resume(self) -> None:
        self._resume_request = True

    def tick(self, tick: Tick) -> Cycle:
        began_ns = self._clock.now_ns()
        robot, cache, ports = self._robot, self._cache, self._ports
        robot.take_spec(ports.robot.poll())
        is_restarted = robot.take_state(ports.state.poll())
        state_fault = robot.find_fault(began_ns, self._clock.now_ns(), ports.robot.refusal, ports.state.refusal)
        state_ns = self._clock.now_ns()
        cache.take(ports.features.poll(), began_ns, ports.features_arrived_ns())
        age_ms = cache.age_ms(began_ns)
        verdict = cache.judge(began_ns, ports.features.refusal, is_starting=not self._has_run)
        features_ns = self._clock.now_ns()

        has_held = outlasts_watchdog(tick.missed, self._settings.period_ns, self._settings.watchdog_ns)
        if state_fault or is_restarted or has_held or self._missed_fault(tick):
            self._is_lost = True  # after so long a gap the robot host holds by itself, somewhere on its way
        elif tick.missed and self._sent is not None and self.mode is Mode.RUN:
            self._commanded, self._step = followed_to(self._sent, tick.missed)
        fault = state_fault or robot.camera_fault or self._missed_fault(tick) or verdict.fault
        danger = "" if state_fault else robot.find_danger(None if self._is_lost else self._commanded)
        keeps_cause = self._latched and not self._resume_request  # in STOP features grow old, which explains nothing
        stop = self._stop_request or danger or ("" if keeps_cause else verdict.stop)
        head_failed = False
        targets, gated = None, Gated(np.empty((0, 0)), (), "")
        if not fault and not stop and (self.mode is not Mode.STOP or self._resume_request):
            assert cache.features is not None and robot.state is not None and age_ms is not None
            targets, fault = self._ask_head(cache.features.tokens, robot.state, age_ms)
            head_failed = bool(fault)
        head_ns = self._clock.now_ns()
        if targets is not None:
            assert robot.spec is not None and robot.limits is not None and robot.state is not None
            last = self._last_commanded(robot.spec, robot.limits, robot.state)
            gated = gate(
                resampled(targets, last, self._head.period_s, self._settings.period_ns / NS_PER_S),
                last,
                robot.limits,
                verdict.speed,
                self._step,
            )
            fault = gated.fault
            head_failed = bool(fault)
        self._bad_targets = self._bad_targets + 1 if head_failed else 0
        if self._bad_targets >= MAX_BAD_TARGETS:
            stop = f"{self._bad_targets} bad outputs of the head in a row: {fault}"
        self._change_mode(fault, stop, verdict.speed, age_ms)
        safety_ns = self._clock.now_ns()

        chunk = self._chunk(began_ns, age_ms, gated)
        self._ports.action.send(chunk)
        published_ns = self._clock.now_ns()
        switch_ms = None
        if self._said_ns is not None and cache.pending is None and self.mode is Mode.RUN:
            switch_ms = (published_ns - self._said_ns) / NS_PER_MS
            self._said_ns = None
        if newest := cache.newest_instruction:
            self._ports.instruction.send(newest)
        marks = (began_ns, state_ns, features_ns, head_ns, safety_ns, published_ns)
        cycle = self._record(tick, marks, age_ms, gated, switch_ms)
        self._ports.cycle.send(cycle)
        self._seq += 1
        return cycle

    def _missed_fault(self, tick: Tick) -> str:
        if tick.missed <= self._settings.max_missed_ticks:
            return ""
        return (
            f"{tick.missed} ticks missed in a row, limit {self._settings.max_missed_ticks}: the machine is overloaded"
        )

    def _ask_head(self, tokens: np.ndarray, state: State, age_ms: float) -> tuple[np.ndarray | None, str]:
        try:
            return self._head.act(tokens, state.values, age_ms, state.history), ""
        except Exception as error:  # whatever a head raises leads to HOLD, and to STOP when it goes on
            first_line = str(error).partition("\n")[0][:300]
            return None, f"the head failed on features of shape {tokens.shape}: {type(error).__name__}: {first_line}"

    def _last_commanded(self, spec: RobotSpec, limits: Limits, state: State) -> np.ndarray:
        """(A,) the reference of the velocity limit: the last command, or the measurement where that may be untrue."""
        if self._commanded is None or self._is_lost:
            measured = dict(zip(spec.state_names, state.values, strict=True))
            middle = (limits.low + limits.high) / 2  # only where `allow_unlimited` accepts an unmeasured action
            self._commanded = np.array([measured.get(name, middle[i]) for i, name in enumerate(spec.action_names)])
            self._is_lost, self._step = False, None
        return self._commanded

    def _change_mode(self, fault: str, stop: str, speed: float, age_ms: float | None) -> None:
        before = self.mode
        self.mode = next_mode(before, fault=fault, stop=stop, resume=self._resume_request)
        if self.mode is Mode.STOP:
            self._latched = stop or self._latched
            self._is_lost = True  # the arm may be moved by hand meanwhile
        slowed = f"features {age_ms:.0f} ms old: speed {speed:.0%}" if age_ms is not None and speed < 1 else ""
        reason = {Mode.RUN: slowed, Mode.STOP: self._latched}.get(self.mode, fault)
        self.reason = reason[:MAX_TEXT_CHARS]  # a longer one is refused by every reader, and the cycle with it
        if before is Mode.STOP and self.mode is not Mode.STOP:
            self._latched, self._bad_targets = "", 0
        self._stop_request, self._resume_request = "", False

    def _chunk(self, now_ns: int, age_ms: float | None, gated: Gated) -> ActionChunk:
        if self.mode is Mode.RUN:
            targets = self._sent = gated.targets
            self._step = None if self._commanded is None else targets[0] - self._commanded
            self._commanded, self._has_run = targets[0], True
        else:
            self._step = None
            targets = np.empty((0, 0)) if self._commanded is None else self._commanded[np.newaxis]
        return self._action(now_ns, age_ms, self.mode, targets)

    def _action(self, now_ns: int, age_ms: float | None, mode: Mode, targets: np.ndarray) -> ActionChunk:
        """A message to the robot host; it is valid for as many periods as it has rows."""
        period_ns = self._settings.period_ns
        valid_until_ns = now_ns + len(targets) * period_ns
        return ActionChunk(
            self._seq, now_ns, self._acting_id, age_ms, mode, targets, period_ns / NS_PER_S, valid_until_ns
        )

    @property
    def _acting_id(self) -> int:
        return self.acting.id if self.acting else 0

    def _record(
        self, tick: Tick, marks: tuple[int, ...], age_ms: float | None, gated: Gated, switch_ms: float | None
    ) -> Cycle:
        stages = ("state", "features", "head", "safety", "publish")
        state, features = self._robot.state, self._cache.features
        asked = tuple(self._asked)
        self._asked.clear()
        return Cycle(
            seq=self._seq,
            stamp_ns=marks[0],
            deadline_ns=tick.deadline_ns,
            lateness_ms=tick.lateness_ns / NS_PER_MS,
            cycle_ms=(marks[-1] - marks[0]) / NS_PER_MS,
            stage_ms={name: (marks[i + 1] - marks[i]) / NS_PER_MS for i, name in enumerate(stages)},
            state_age_ms=(marks[0] - state.stamp_ns) / NS_PER_MS if state else None,
            feature_age_ms=age_ms,
            feature_seq=features.seq if features else None,
            encoder_epoch=features.encoder_epoch if features else None,
            encode_ms=features.encode_ms if features else None,
            instruction_id=self._acting_id,
            pending_id=self.pending.id if self.pending else None,
            mode=self.mode,
            reason=self.reason,
            limits=gated.hit,
            missed_ticks=tick.missed,
            switch_ms=switch_ms,
            rejected=self._ports.robot.rejected + self._ports.state.rejected + self._ports.features.rejected,
            task_done=state.task_done if state else None,
            task_instruction_id=state.task_instruction_id if state else 0,
            feature_arrived_ns=self._cache.arrived_ns,
            commands=asked,
        )


def outlasts_watchdog(missed: int, period_ns: int, watchdog_ns: int) -> bool:
    """Whether the robot host has held by itself in a gap of so many `missed` ticks, somewhere on its way."""
    return missed > 0 and (missed + 1) * period_ns > watchdog_ns


def followed_to(sent: np.ndarray, missed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Where a chunk (H, A) has led after so many `missed` ticks (A,), and by which step, None past its end."""
    row = min(missed, len(sent) - 1)
    return sent[row], sent[row] - sent[row - 1] if 0 < missed < len(sent) else None


def resampled(targets: np.ndarray, last: np.ndarray, trained_s: float, period_s: float) -> np.ndarray:
    """A chunk (H, A) of a policy that was trained at one period, at another; the way begins at `last` (A,).

    A chunk that the gate will refuse is returned as it is.
    """
    if abs(period_s - trained_s) < 1e-6 or find_bad_target(targets, len(last)):
        return targets
    rows = np.vstack((last, targets))
    known_s = trained_s * np.arange(len(rows))
    count = min(max(1, round(known_s[-1] / period_s)), MAX_CHUNK_ROWS)
    wanted_s = period_s * np.arange(1, count + 1)
    return np.column_stack([np.interp(wanted_s, known_s, column) for column in rows.T])
