"""Closed-loop success at a given feature age, in lockstep: the live ControlLoop, safety gate and interpolation on a
fake clock.

Knows the simulated robot, and asks any encoder and head through their protocols. The age is exact: what is acted on at
a tick was captured `feature_age_ms` before it, however long encoding really took. An age or a period that the steps of
the lockstep cannot hold exactly is refused.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from control.clock import NS_PER_MS, NS_PER_S, FakeClock, Tick
from control.errors import ConfigError
from control.head import ActionHead
from control.host import Follower
from control.loop import ControlLoop, LoopSettings, Ports
from control.messages import Features, Frames, Instruction, State
from sim.tabletop import TabletopRobot
from sim.tasks import Task

STEP_NS = 10 * NS_PER_MS  # the host's rate, and the resolution of the feature age


class FrameEncoder(Protocol):
    def encode(self, frames: Frames, instruction: Instruction) -> Features: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one episode ended. `touched` names the blocks in the order of their first touch."""

    seed: int
    text: str
    colour: str
    success: bool
    time_s: float
    touched: tuple[str, ...]
    miss_m: float  # from the finger tips to the named block's centre at the end


class _Inbox:
    """One message at a time, as a conflating socket would deliver it."""

    rejected = 0
    last_error = ""

    def __init__(self) -> None:
        self.newest: Any = None

    def send(self, noun: Any) -> None:
        self.newest = noun

    def poll(self) -> Any:
        noun, self.newest = self.newest, None
        return noun


def check_lockstep(settings: LoopSettings, feature_age_ms: float) -> None:
    """Raise ConfigError for a control period or a feature age that would not be measured as it is named."""
    step_ms = STEP_NS // NS_PER_MS
    if settings.period_ns <= 0 or settings.period_ns % STEP_NS:
        raise ConfigError(
            f"eval runs in steps of {step_ms} ms: the control period must be a multiple of them, got"
            f" {settings.period_ns / NS_PER_MS:g} ms; choose a control.rate_hz like 5, 10, 20 or 50"
        )
    if not math.isfinite(feature_age_ms) or feature_age_ms < 0 or feature_age_ms % step_ms:
        raise ConfigError(
            f"a feature age must be 0 or a positive multiple of {step_ms} ms, got {feature_age_ms:g} ms: eval runs in"
            f" steps of {step_ms} ms"
        )
    hold_after_ms = settings.freshness.hold_after_ms
    if feature_age_ms >= hold_after_ms:
        raise ConfigError(
            f"at a feature age of {feature_age_ms:g} ms nothing would move: freshness.hold_after_ms is"
            f" {hold_after_ms:g}; choose a younger age or raise hold_after_ms and stop_after_ms"
        )


def run_episode(
    robot: TabletopRobot,
    clock: FakeClock,
    encoder: FrameEncoder,
    head: ActionHead,
    settings: LoopSettings,
    *,
    seed: int,
    task: Task,
    text: str,
    watchdog_ns: int,
    feature_age_ms: float = 100.0,
    limit_s: float = 12.0,
) -> Outcome:
    """One episode from the home pose until a block is touched or `limit_s` has passed since the first features.

    `watchdog_ns` is the robot host's. Raises ConfigError as `check_lockstep` does.
    """
    check_lockstep(settings, feature_age_ms)
    robot.reset(seed)
    spec_in, state_in, features_in, instruction_out, action_out, cycle_out = (_Inbox() for _ in range(6))
    ports = Ports(spec_in, state_in, features_in, instruction_out, action_out, cycle_out)
    loop = ControlLoop(clock, head, settings, ports, session=1)
    follower = Follower(robot.spec, watchdog_ns, STEP_NS)
    spec_in.send(robot.spec)
    instruction = loop.say(text)
    robot.begin(instruction)
    age_steps = round(feature_age_ms * NS_PER_MS / STEP_NS)
    tick_steps = settings.period_ns // STEP_NS
    encoded: deque[tuple[int, Features]] = deque()
    last_step, step = round(limit_s * NS_PER_S / STEP_NS) + age_steps, 0
    while step < last_step and not robot.touched:
        if step % tick_steps == (-age_steps) % tick_steps:
            frames = Frames(step + 1, clock.now_ns(), robot.read_frames())
            encoded.append((step + age_steps, encoder.encode(frames, instruction)))
        if encoded and encoded[0][0] <= step:
            # How long this machine took is not part of the episode, and a constant age cannot flap.
            features_in.send(replace(encoded.popleft()[1], encode_ms=0.0))
        if step % tick_steps == 0:
            state_in.send(State(step, clock.now_ns(), robot.read_state()))
            loop.tick(Tick(clock.now_ns(), 0, 0))
            follower.take(action_out.poll(), robot.read_state(), clock.now_ns())
        target = follower.target(clock.now_ns())
        if target is not None:
            follower.commanded = robot.apply(target)
        clock.advance(STEP_NS)
        robot.judge()  # steps physics up to now
        step += 1
    success = bool(robot.judge())
    miss_m = float(np.linalg.norm(robot.tip - robot.blocks[task.colour]))
    time_s = max(0, step - age_steps) * STEP_NS / NS_PER_S
    return Outcome(seed, text, task.colour, success, time_s, robot.touched, miss_m)


def run_episodes(
    encoder: FrameEncoder,
    head: ActionHead,
    settings: LoopSettings,
    robot_options: dict[str, Any],
    drawn: Iterable[tuple[int, Task, str]],
    feature_age_ms: float,
    watchdog_ns: int,
) -> Iterator[Outcome]:
    """The outcome of each of `drawn` (seed of the scene, task, wording), on one robot that is reset in between."""
    clock = FakeClock()
    robot = TabletopRobot(clock, **robot_options)
    robot.connect()
    try:
        for seed, task, text in drawn:
            yield run_episode(
                robot,
                clock,
                encoder,
                head,
                settings,
                seed=seed,
                task=task,
                text=text,
                watchdog_ns=watchdog_ns,
                feature_age_ms=feature_age_ms,
            )
    finally:
        robot.close()


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """The 95 % confidence interval of a success rate (Wilson, 1927)."""
    if not episodes:
        return 0.0, 1.0
    z, rate = 1.959964, successes / episodes
    centre = rate + z * z / (2 * episodes)
    spread = z * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes**2))
    scale = 1 + z * z / episodes
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def describe(feature_age_ms: float, row: dict[str, Any]) -> str:
    """One row of `summarise` as a sentence."""
    low, high = row["ci95"]
    took = f", median {row['time_s']:.1f} s" if row["time_s"] is not None else ""
    return (
        f"feature age {feature_age_ms:4g} ms: {row['successes']} of {row['episodes']} touched the named block"
        f" (95 %: {low:.0%}-{high:.0%}), another one first {row['wrong_block_first']}{took}"
    )


def summarise(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Success with its interval, median time of the successes, and how the failures ended."""
    outcomes = list(outcomes)
    done = [outcome for outcome in outcomes if outcome.success]
    wrong = [outcome for outcome in outcomes if outcome.touched and not outcome.success]
    return {
        "episodes": len(outcomes),
        "successes": len(done),
        "rate": len(done) / len(outcomes) if outcomes else None,
        "ci95": wilson_interval(len(done), len(outcomes)),
        "time_s": float(np.median([outcome.time_s for outcome in done])) if done else None,
        "wrong_block_first": len(wrong),
        "miss_m": [round(outcome.miss_m, 3) for outcome in outcomes if not outcome.success],
    }
