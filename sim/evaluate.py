"""One episode in lockstep: the live ControlLoop, safety gate and interpolation around any robot, on a fake clock.

Asks robot, encoder and head through their protocols. The feature age is exact: what is acted on at a tick was captured
`feature_age_ms` before it, however long encoding really took. An age or a period that the steps of the lockstep cannot
hold exactly is refused. Which episodes there are, and what the outcomes come to, stands in evaluation.py.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from control.clock import NS_PER_MS, NS_PER_S, FakeClock, Tick
from control.errors import ConfigError
from control.head import ActionHead
from control.history import StateHistory
from control.host import Follower
from control.loop import ControlLoop, LoopSettings, Ports
from control.messages import Features, Frames, Instruction, State
from control.robot import Episode, Evaluates, HasTip, Robot, Swaps

STEP_NS = 10 * NS_PER_MS  # the host's rate, and the resolution of the feature age
NO_WORDS = "."  # an instruction of no content: a prompt of no text at all is refused by the encoder

Images = dict[str, np.ndarray]


class FrameEncoder(Protocol):
    def encode(self, frames: Frames, instruction: Instruction) -> Features: ...


class EvaluatedRobot(Robot, Evaluates, Protocol):
    """What eval needs of a robot, and no more."""


@dataclass(frozen=True, slots=True)
class Lockstep:
    """How an episode is driven, as the config says: the loop, the robot host's watchdog and its window of states."""

    loop: LoopSettings
    watchdog_ns: int
    history_samples: int = 0
    host_hz: float = 100.0

    def check(self, feature_age_ms: float) -> None:
        """Raise ConfigError for a period, a window or a feature age that would not be measured as it is named."""
        step_ms = STEP_NS // NS_PER_MS
        period_ns = self.loop.period_ns
        if period_ns <= 0 or period_ns % STEP_NS:
            raise ConfigError(
                f"eval runs in steps of {step_ms} ms: the control period must be a multiple of them, got"
                f" {period_ns / NS_PER_MS:g} ms; choose a control.rate_hz like 5, 10, 20 or 50"
            )
        if self.history_samples and round(NS_PER_S / self.host_hz) % STEP_NS:
            raise ConfigError(
                f"eval runs in steps of {step_ms} ms: a window of states at robot.host_hz {self.host_hz:g} does not fit"
                " them; a policy with a window can be evaluated at 100, 50, 25, 20 or 10 Hz"
            )
        if not math.isfinite(feature_age_ms) or feature_age_ms < 0 or feature_age_ms % step_ms:
            raise ConfigError(
                f"a feature age must be 0 or a positive multiple of {step_ms} ms, got {feature_age_ms:g} ms: eval runs"
                f" in steps of {step_ms} ms"
            )
        hold_after_ms = self.loop.freshness.hold_after_ms
        if feature_age_ms >= hold_after_ms:
            raise ConfigError(
                f"at a feature age of {feature_age_ms:g} ms nothing would move: freshness.hold_after_ms is"
                f" {hold_after_ms:g}; choose a younger age or raise hold_after_ms and stop_after_ms"
            )


@dataclass(frozen=True, slots=True)
class Twist:
    """What is done to the policy in an episode to see whether it looks and listens. Nothing, by default."""

    heard: str | None = None  # what the encoder is told instead of the sentence
    frozen_seed: int | None = None  # every frame is the first one of this other scene
    frozen_first: bool = False  # every frame is the first one of this scene
    blind: bool = False  # no frame is rendered
    then: Episode | None = None  # another instruction in mid-task, `swap_s` after the first features
    swap_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one episode went. With a swap, `success` is the new task's and `did_old` the old one's."""

    success: bool
    time_s: float  # since the first features, or since the swap
    path: float  # of the tool, m; of the measured joints in their own units where the robot knows no tool
    jerk: float | None  # RMS over the actions of the third difference at the control rate, unit/s^3; None where short
    touched: tuple[str, ...] = ()
    did_old: bool = False
    too_soon: bool = False  # the old task was over before the swap: says nothing
    ended: str = ""  # how a failure ended, in a few words


class _Inbox:
    """One message at a time, as a reader of the newest gets it."""

    rejected = 0
    refusal = ""

    def __init__(self) -> None:
        self.newest: Any = None

    def send(self, noun: Any) -> None:
        self.newest = noun

    def poll(self) -> Any:
        noun, self.newest = self.newest, None
        return noun


class _Drive:
    """Robot, encoder and loop of one episode, a step at a time."""

    def __init__(
        self,
        robot: EvaluatedRobot,
        clock: FakeClock,
        encoder: FrameEncoder,
        head: ActionHead,
        lockstep: Lockstep,
        feature_age_ms: float,
        session: int,
        look: Callable[[], Images],
    ) -> None:
        self._robot, self._clock, self._encoder, self._look = robot, clock, encoder, look
        self._spec_in, self._state_in, self._features_in, said_out, self._action_out, cycle_out = (
            _Inbox() for _ in range(6)
        )
        ports = Ports(self._spec_in, self._state_in, self._features_in, said_out, self._action_out, cycle_out)
        self._loop = ControlLoop(clock, head, lockstep.loop, ports, session)
        self._follower = Follower(robot.spec, lockstep.watchdog_ns, STEP_NS)
        self._spec_in.send(robot.spec)
        self.age_steps = round(feature_age_ms * NS_PER_MS / STEP_NS)
        self._tick_steps = lockstep.loop.period_ns // STEP_NS
        self._period_s = lockstep.loop.period_ns / NS_PER_S
        self._encoded: deque[tuple[int, Features]] = deque()
        self._heard: Instruction | None = None
        self._history_steps = max(1, round(NS_PER_S / lockstep.host_hz) // STEP_NS)
        self._history = self._standing(lockstep) if lockstep.history_samples else None
        self._commanded: list[np.ndarray] = []
        self._tool: HasTip | None = robot if isinstance(robot, HasTip) else None
        self._last_place = self._place()
        self.path = 0.0
        self.steps = 0

    def _standing(self, lockstep: Lockstep) -> StateHistory:
        """The window of a robot that has stood where it is for as long as the window lasts, as before a live run."""
        history = StateHistory(lockstep.history_samples, lockstep.host_hz)
        values, now_ns = self._robot.read_state(), self._clock.now_ns()
        for row in range(lockstep.history_samples, 0, -1):
            history.add(now_ns - row * self._history_steps * STEP_NS, values)
        return history

    def say(self, text: str, heard: str | None) -> Instruction:
        """Tell the loop; the encoder is told `heard` where that is not None."""
        instruction = self._loop.say(text)
        self._heard = instruction if heard is None else replace(instruction, text=heard)
        return instruction

    def step(self, see: Callable[[Images], None] | None = None) -> None:
        clock, step = self._clock, self.steps
        if self._history is not None and step % self._history_steps == 0:
            self._history.add(clock.now_ns(), self._robot.read_state())
        if step % self._tick_steps == (-self.age_steps) % self._tick_steps:
            assert self._heard is not None
            images = self._look()
            if see is not None:
                see(images)
            frames = Frames(step + 1, clock.now_ns(), images)
            self._encoded.append((step + self.age_steps, self._encoder.encode(frames, self._heard)))
        if self._encoded and self._encoded[0][0] <= step:
            # How long this machine took is not part of the episode, and a constant age cannot flap.
            self._features_in.send(replace(self._encoded.popleft()[1], encode_ms=0.0))
        if step % self._tick_steps == 0:
            window = self._history.window() if self._history is not None else None
            self._state_in.send(State(step, clock.now_ns(), self._robot.read_state(), window))
            self._loop.tick(Tick(clock.now_ns(), 0, 0))
            self._follower.take(self._action_out.poll(), self._measured(), clock.now_ns())
        target = self._follower.target(clock.now_ns())
        if target is not None:
            self._follower.commanded = self._robot.apply(target)
        if step % self._tick_steps == 0 and self._follower.commanded is not None:
            self._commanded.append(self._follower.commanded)
        clock.advance(STEP_NS)
        self._robot.judge()  # steps physics up to now
        place = self._place()
        self.path += float(np.linalg.norm(place - self._last_place))
        self._last_place = place
        self.steps += 1

    @property
    def jerk(self) -> float | None:
        if len(self._commanded) < 4:
            return None
        return float(np.sqrt(np.mean((np.diff(self._commanded, n=3, axis=0) / self._period_s**3) ** 2)))

    def _place(self) -> np.ndarray:
        return self._tool.tip if self._tool is not None else self._robot.read_state()

    def _measured(self) -> np.ndarray | None:
        """(A,) the measured value of every action, None where one is not measured; as the robot host has it."""
        spec = self._robot.spec
        state = dict(zip(spec.state_names, self._robot.read_state(), strict=True))
        if not state.keys() >= set(spec.action_names):
            return None
        return np.array([state[name] for name in spec.action_names])


def run_episode(
    robot: EvaluatedRobot,
    clock: FakeClock,
    encoder: FrameEncoder,
    head: ActionHead,
    lockstep: Lockstep,
    episode: Episode,
    feature_age_ms: float,
    *,
    twist: Twist | None = None,
    session: int = 1,
    see: Callable[[Images], None] | None = None,
    begun: Callable[[], None] | None = None,
) -> Outcome:
    """One episode from a fresh scene until it is over or its time is up, counted since the first features.

    `see` gets every capture, and `begun` is called once the instruction was given. Of two sessions in a row the encoder
    may know which is which: give another number for each episode. Raises ConfigError as `Lockstep.check` does.
    """
    lockstep.check(feature_age_ms)
    twist = twist or Twist()
    look = _eyes(robot, episode, twist)
    robot.reset(episode.seed)
    drive = _Drive(robot, clock, encoder, head, lockstep, feature_age_ms, session, look)
    robot.begin(replace(drive.say(episode.text, twist.heard), text=episode.meaning))
    if begun is not None:
        begun()
    if twist.then is not None:
        return _swapped(robot, drive, episode, twist.then, twist.swap_s)
    last_step = _steps(episode.limit_s) + drive.age_steps
    while drive.steps < last_step and not robot.is_over:
        drive.step(see)
    time_s = max(0, drive.steps - drive.age_steps) * STEP_NS / NS_PER_S
    return Outcome(robot.judge() is True, time_s, drive.path, drive.jerk, _touched(robot))


def _swapped(robot: EvaluatedRobot, drive: _Drive, episode: Episode, then: Episode, swap_s: float) -> Outcome:
    assert isinstance(robot, Swaps)
    swap_step = _steps(swap_s) + drive.age_steps
    while drive.steps < swap_step and not robot.is_over:
        drive.step()
    if robot.is_over:
        return Outcome(False, swap_s, drive.path, drive.jerk, _touched(robot), too_soon=True)
    did_old = robot.begin_beside(replace(drive.say(then.text, None), text=then.meaning))
    last_step = swap_step + _steps(then.limit_s) + drive.age_steps
    while drive.steps < last_step and robot.judge() is not True and did_old() is not True:
        drive.step()
    time_s = (drive.steps - swap_step) * STEP_NS / NS_PER_S
    return Outcome(robot.judge() is True, time_s, drive.path, drive.jerk, _touched(robot), did_old=did_old() is True)


def _eyes(robot: EvaluatedRobot, episode: Episode, twist: Twist) -> Callable[[], Images]:
    """Where the frames come from. Resets the robot where a frame of a scene is needed."""
    if twist.blind:
        return dict
    if twist.frozen_seed is None and not twist.frozen_first:
        return robot.read_frames
    robot.reset(episode.seed if twist.frozen_seed is None else twist.frozen_seed)
    frozen = {name: image.copy() for name, image in robot.read_frames().items()}
    return lambda: frozen


def _steps(duration_s: float) -> int:
    return round(duration_s * NS_PER_S / STEP_NS)


def _touched(robot: EvaluatedRobot) -> tuple[str, ...]:
    return tuple(getattr(robot, "touched", ()))
