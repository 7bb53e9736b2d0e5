"""What is measured of a policy, and what the outcomes come to: the plan, the controls, the expert beside it, figures.

Works on any robot that `control.robot.Evaluates`; what else a robot can do decides which controls there are. Knows no
files and no screen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from control.clock import NS_PER_MS, NS_PER_S, FakeClock
from control.errors import ConfigError
from control.head import ActionHead
from control.messages import Features, Frames, Instruction
from control.robot import Demonstrates, Episode, Explains, HasTip, Swaps
from sim.evaluate import (
    NO_WORDS,
    STEP_NS,
    EvaluatedRobot,
    FrameEncoder,
    Images,
    Lockstep,
    Outcome,
    Twist,
    run_episode,
)

CONTROLS = ("swapped", "empty", "frozen_image", "frozen_first_image")
EXPERT = "expert"
SWAP_S = (0.6, 1.2)  # after the first features: under way, and hardly ever done

Witness = Callable[[int, "Job", Outcome], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One episode to run: for success at an age (`kind` is ''), for a control, or by the expert."""

    kind: str
    age_ms: float
    episode: Episode
    twist: Twist = Twist()


def plan(
    robot: EvaluatedRobot,
    episodes: Sequence[Episode],
    ages_ms: Sequence[float],
    *,
    controls: int,
    tasks: str,
    wordings: str,
    expert: bool,
) -> list[Job]:
    """Every episode at every age; of each task the first `controls` once for each control, at the youngest age."""
    if not episodes:
        raise ConfigError("there is no episode to run: expected at least 1 a task")
    if expert and not isinstance(robot, Demonstrates):
        raise ConfigError(f"--expert: robot '{robot.spec.name}' has no scripted expert (control.robot.Demonstrates)")
    jobs = [Job("", age_ms, episode) for age_ms in sorted(set(ages_ms)) for episode in episodes]
    first: Counter[str] = Counter()
    for number, episode in enumerate(episodes):
        first[episode.task] += 1
        if first[episode.task] <= controls:
            elsewhere = episodes[(number + 1) % len(episodes)].seed if len(episodes) > 1 else episode.seed + 1
            for kind, twist in _twists(robot, episode, elsewhere, tasks, wordings).items():
                jobs.append(Job(kind, min(ages_ms), episode, twist))
    if expert:
        jobs += [Job(EXPERT, 0.0, episode, Twist(blind=True)) for episode in episodes]
    return jobs


def _twists(robot: EvaluatedRobot, episode: Episode, elsewhere: int, tasks: str, wordings: str) -> dict[str, Twist]:
    twists = {
        "empty": Twist(heard=NO_WORDS),
        "frozen_image": Twist(frozen_seed=elsewhere),
        "frozen_first_image": Twist(frozen_first=True),
    }
    if isinstance(robot, Swaps):
        low, high = SWAP_S
        swap_s = low + (high - low) * float(np.random.default_rng([episode.seed, 0x50AB]).random())
        twists["swapped"] = Twist(then=robot.another(episode, tasks, wordings), swap_s=round(swap_s, 2))
    return twists


def run_jobs(
    jobs: Iterable[tuple[int, Job]],
    robot: EvaluatedRobot,
    clock: FakeClock,
    encoder: FrameEncoder,
    head: ActionHead,
    lockstep: Lockstep,
    witness: Callable[[Job], Any] | None = None,
) -> Iterator[tuple[int, Outcome]]:
    """The outcome of each numbered job, on one robot that is reset in between; the same whatever ran before.

    `witness` makes for a job what is told of it: `see(images)`, `begun(said)` and `ended(outcome, said)`.
    """
    for number, job in jobs:
        seen = witness(job) if witness is not None and not job.kind else None
        before: list[dict[str, Any]] = []

        def begun(before: list[dict[str, Any]] = before) -> None:
            if isinstance(robot, Explains):
                before.append(robot.explain())

        by_expert = job.kind == EXPERT
        outcome = run_episode(
            robot,
            clock,
            _Nothing() if by_expert else encoder,
            _Expert(robot, head.horizon) if by_expert else head,
            lockstep,
            job.episode,
            job.age_ms,
            twist=job.twist,
            session=number + 1,
            see=seen.see if seen is not None else None,
            begun=begun,
        )
        if not outcome.success:
            after = robot.explain(before[0]) if isinstance(robot, Explains) else {}
            outcome = replace(outcome, ended=str(after.get("ended", "time up")))
            if seen is not None:
                seen.ended(outcome, robot.read_frames(), {"at_start": before[0] if before else {}, "at_end": after})
        yield number, outcome


class _Nothing:
    """Features of nothing, for a head that looks at no image."""

    def encode(self, frames: Frames, instruction: Instruction) -> Features:
        ids = (instruction.session, instruction.id, 1, EXPERT)
        stamp_ns = frames.stamp_ns
        return Features(frames.seq, stamp_ns, frames.seq, stamp_ns, *ids, np.zeros((1, 1), np.float32), {}, 0.0)


class _Expert:
    """The robot's own script as a head. It knows the truth of this moment."""

    policy_id = EXPERT
    window_samples = 0

    def __init__(self, robot: Any, horizon: int) -> None:
        self._robot, self.horizon = robot, horizon
        spec = robot.spec
        self.state_names, self.action_names = spec.state_names, spec.action_names
        self.period_s = spec.action_period_s

    def act(
        self, tokens: np.ndarray, state: np.ndarray, feature_age_ms: float, window: np.ndarray | None = None
    ) -> np.ndarray:
        return self._robot.demonstrate(self.horizon)


def measure_encode_ms(
    encoder: FrameEncoder, robot: EvaluatedRobot, episode: Episode, clock: FakeClock, count: int = 30
) -> float:
    """The median time of an encode of this robot's frames, on this machine as busy as it is now."""
    robot.reset(episode.seed)
    images: Images = robot.read_frames()
    said = Instruction(1, clock.now_ns(), 0, 1, episode.text)
    took: list[float] = []
    for number in range(count + 5):
        clock.advance(NS_PER_S)  # no view is so young that it is used again
        took.append(encoder.encode(Frames(number + 1, clock.now_ns(), images), said).encode_ms)
    return float(np.median(took[5:]))


def live_age_ms(encode_ms: float, view_period_ms: float) -> float:
    """The feature age that a live run reaches with such an encoder, rounded up to a step of the lockstep.

    An encode, and then as long as it takes until the next features are in, which is the longer of another encode and
    the time between two views: the age just before a switch to newer features, not the mean.
    """
    step_ms = STEP_NS / NS_PER_MS
    return math.ceil((encode_ms + max(encode_ms, view_period_ms)) / step_ms - 1e-9) * step_ms


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """The 95 % confidence interval of a success rate (Wilson, 1927)."""
    if not episodes:
        return 0.0, 1.0
    z, rate = 1.959964, successes / episodes
    centre = rate + z * z / (2 * episodes)
    spread = z * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes**2))
    scale = 1 + z * z / episodes
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def summarise(outcomes: Sequence[Outcome], path_key: str = "path_m") -> dict[str, Any]:
    """Success with its interval; time, path and jerk as medians of the successes; and how the failures ended."""
    done = [outcome for outcome in outcomes if outcome.success]
    ended = Counter(outcome.ended for outcome in outcomes if not outcome.success)
    return {
        "rate": _rate(len(done), len(outcomes)),
        "episodes": len(outcomes),
        "successes": len(done),
        "ci95": wilson_interval(len(done), len(outcomes)),
        "time_s": _median([outcome.time_s for outcome in done]),
        path_key: _median([outcome.path for outcome in done]),
        "jerk": _median([outcome.jerk for outcome in done if outcome.jerk is not None]),
        "ended": dict(ended.most_common()),
    }


def figures(robot: EvaluatedRobot, jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """`success`, `controls` and `expert` of a whole evaluation, for the report."""
    pairs = list(zip(jobs, outcomes, strict=True))
    names = list(dict.fromkeys(job.episode.task for job in jobs))
    ages = sorted({job.age_ms for job in jobs if not job.kind})
    path_key = "path_m" if isinstance(robot, HasTip) else "path_rad"

    def of(kind: str, task: str | None = None, age_ms: float | None = None) -> list[Outcome]:
        return [
            outcome
            for job, outcome in pairs
            if job.kind == kind and task in (None, job.episode.task) and age_ms in (None, job.age_ms)
        ]

    found: dict[str, Any] = {
        "success": {
            task: {f"{age_ms:g}": summarise(of("", task, age_ms), path_key) for age_ms in ages} for task in names
        }
    }
    if any(job.kind in CONTROLS for job in jobs):
        total = {kind: of(kind) for kind in CONTROLS if of(kind)}
        found["controls"] = {
            "feature_age_ms": ages[0],
            **_control_row(total),
            "ci95": {
                kind: wilson_interval(sum(outcome.success for outcome in rows), len(rows))
                for kind, rows in total.items()
                if kind != "swapped"
            },
            "episodes": {kind: len(rows) for kind, rows in total.items()},
            "by_task": {
                task: _control_row({kind: of(kind, task) for kind in total})
                | ({"chance": robot.chance(task)} if isinstance(robot, Explains) else {})
                for task in names
            },
        }
    if experts := {task: of(EXPERT, task) for task in names if of(EXPERT, task)}:
        found["expert"] = {task: summarise(rows, path_key) for task, rows in experts.items()}
    return found


def _control_row(rows: dict[str, list[Outcome]]) -> dict[str, Any]:
    return {
        kind: _swap_row(outcomes) if kind == "swapped" else _rate(sum(o.success for o in outcomes), len(outcomes))
        for kind, outcomes in rows.items()
    }


def _swap_row(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Of the swaps that came in time: how many did the new task, and how many the old one."""
    told = [outcome for outcome in outcomes if not outcome.too_soon]
    new, old = sum(outcome.success for outcome in told), sum(outcome.did_old for outcome in told)
    return {
        "follows_new": _rate(new, len(told)),
        "follows_new_ci95": wilson_interval(new, len(told)),
        "does_old": _rate(old, len(told)),
        "does_old_ci95": wilson_interval(old, len(told)),
        "episodes": len(told),
        "over_before_the_swap": len(outcomes) - len(told),
    }


def _rate(count: int, of: int) -> float | None:
    return count / of if of else None


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
