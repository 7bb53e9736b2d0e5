"""A policy's own episodes, labelled by the expert: what it meets when it acts, and what it should have done there.

Cloning the expert's path fails off that path; labels on the states a policy really comes to are what mends it (dataset
aggregation: Ross, Gordon, Bagnell 2011). Several tables run side by side, so that their frames are encoded together.
A share of the time the expert drives, with its whims, from wherever the policy got to.

Letters: R tables, N frames, E ticks of 50 ms, T feature tokens, D width, H horizon. Refuses to know networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from control.clock import FakeClock
from control.messages import Instruction
from sim import expert, tasks
from sim.demonstrations import PERIOD_S, TICK_NS, TICK_S, Whims, start_somewhere
from sim.judging import LIMIT_S
from sim.options import seed_number
from sim.tabletop import TabletopRobot

_AFTERWARDS_S = 0.8  # how long a policy goes on once its task is over, before the next one
_CHAIN = 3  # tasks on one scene at most
_TICKS_A_PERIOD = round(PERIOD_S / TICK_S)


class Policy(Protocol):
    """Encoder and head for many tables at a time."""

    def features(self, images: Mapping[str, np.ndarray], instructions: Sequence[str]) -> np.ndarray:
        """(R, T, D) from {camera: (R, height, width, 3)} and R instructions."""
        ...

    def act(self, tokens: np.ndarray, states: np.ndarray, age_ms: np.ndarray) -> np.ndarray:
        """(R, H, 7) absolute targets."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Rollouts:
    """Frames as features with the ticks after each; as `FeatureSet` of the model's side wants them."""

    tokens: np.ndarray  # (N, T, D) float16
    frame_tick: np.ndarray  # (N,)
    last_tick: np.ndarray  # (N,)
    stamp_ms: np.ndarray  # (N + E,)
    states: np.ndarray  # (E, 7) float32
    targets: np.ndarray  # (E, H, 7) float32
    outcomes: list[tuple[str, float, bool]]  # of every task that the policy drove alone: kind, feature age, success


@dataclass(slots=True)
class _Table:
    """One table with what is going on there."""

    robot: TabletopRobot
    clock: FakeClock
    task: tasks.Task = tasks.Task("touch", "red")
    text: str = ""
    tick: int = 0  # of this task
    ends: int = 0
    left: int = 0  # tasks still to come on this scene
    age_ticks: int = 0
    expert_share: float = 0.0
    whims: Whims | None = None  # while the expert drives
    has_helped: bool = False
    kept: list[np.ndarray] = field(default_factory=list)  # features of this task, newest last
    first_frame: int = 0
    first_tick: int = 0


class Collector:
    """Runs R tables with a policy and keeps what happened."""

    def __init__(
        self, policy: Policy, seed: int, tables: int, kinds: Sequence[str], max_age_ms: float, expert_share: float
    ) -> None:
        self._rng = np.random.default_rng([seed_number(seed), 0xDA66])
        self._policy, self._kinds, self._max_age_ms, self._share = policy, kinds, max_age_ms, expert_share
        self._tables = []
        for _ in range(tables):
            clock = FakeClock()
            robot = TabletopRobot(clock)
            robot.connect()
            self._tables.append(_Table(robot, clock))
        self._tokens: list[np.ndarray] = []
        self._frames: list[tuple[int, int]] = []  # table, tick of the table
        self._ticks: list[list[tuple[np.ndarray, np.ndarray, tasks.Task]]] = [[] for _ in self._tables]
        self._spans: list[tuple[int, int, int]] = []  # table, first and last tick of a task
        self._outcomes: list[tuple[str, float, bool]] = []

    def run(self, frames: int, horizon: int) -> Rollouts:
        """Until there are about `frames` of them."""
        while len(self._frames) < frames:
            for index, table in enumerate(self._tables):
                if table.tick >= table.ends:
                    self._next_task(index, table)
            self._period()
        for index, table in enumerate(self._tables):
            self._end(index, table)
        return self._result(horizon)

    def _next_task(self, index: int, table: _Table) -> None:
        rng = self._rng
        self._end(index, table)
        if table.left == 0:
            table.robot.reset(int(rng.integers(2**31)))
            start_somewhere(rng, table.robot, share=0.25)
            table.left = int(rng.integers(1, _CHAIN + 1))
        table.left -= 1
        table.task = tasks.sample_task(rng, self._kinds)
        table.text = tasks.sample_wording(rng, table.task, "seen")
        table.robot.begin(Instruction(0, 0, 1, 1, table.text))
        table.tick, table.ends = 0, round(0.6 * LIMIT_S[table.task.kind] / TICK_S)
        if table.left and rng.random() < 0.25:
            table.ends = int(rng.integers(10, 60))  # another instruction in mid-task
        table.age_ticks = int(rng.integers(0, round(self._max_age_ms / 1000 / TICK_S) + 1))
        table.expert_share = self._share if rng.random() < 0.5 else 0.0
        table.has_helped, table.whims = False, None
        table.kept = []
        table.first_tick = len(self._ticks[index])

    def _end(self, index: int, table: _Table) -> None:
        if table.tick:
            self._spans.append((index, table.first_tick, len(self._ticks[index]) - 1))
            if not table.has_helped:
                done = bool(table.robot.judge())
                if done or table.tick >= round(0.6 * LIMIT_S[table.task.kind] / TICK_S):
                    self._outcomes.append((table.task.kind, table.age_ticks * TICK_S * 1000, done))
        table.tick = 0

    def _period(self) -> None:
        """One control period of all tables: look, encode, act, and step physics."""
        seen = [table.robot.cameras.render() for table in self._tables]
        images = {name: np.stack([image[name] for image in seen]) for name in seen[0]}
        tokens = self._policy.features(images, [table.text for table in self._tables])
        states = np.stack([table.robot.read_state() for table in self._tables])
        used, ages = [], []
        for index, table in enumerate(self._tables):
            table.kept.append(tokens[index])
            self._tokens.append(tokens[index].astype(np.float16))
            self._frames.append((index, len(self._ticks[index])))
            # The newest features that are as old as this table's, or the oldest there are.
            back = min(-(-table.age_ticks // _TICKS_A_PERIOD), len(table.kept) - 1)
            used.append(table.kept[-1 - back])
            ages.append(back * PERIOD_S * 1000)
        chunks = self._policy.act(np.stack(used), states, np.array(ages, dtype=np.float32))
        for index, table in enumerate(self._tables):
            table.robot.apply(self._drive(table, states[index], chunks[index, 0]))
            for _ in range(_TICKS_A_PERIOD):
                self._ticks[index].append((table.robot.read_state(), table.robot.block_poses, table.task))
                table.clock.advance(TICK_NS)
                table.robot.judge()
                table.tick += 1
            if table.robot.is_over:
                table.ends = min(table.ends, table.tick + round(_AFTERWARDS_S / TICK_S))

    def _drive(self, table: _Table, state: np.ndarray, target: np.ndarray) -> np.ndarray:
        rng = self._rng
        if table.whims is None and rng.random() < table.expert_share * PERIOD_S:
            table.whims, table.has_helped = Whims.draw(rng, table.tick, 0.5), True
        if table.whims is not None:
            if table.tick < table.whims.until:
                return table.whims.target(rng, state, table.robot.block_poses, table.task)
            table.whims = None
        limit = table.robot.spec.max_velocity * PERIOD_S
        return state + np.clip(target - state, -limit, limit)

    def _result(self, horizon: int) -> Rollouts:
        starts = np.cumsum([0, *(len(ticks) for ticks in self._ticks)])
        every = [tick for ticks in self._ticks for tick in ticks]
        states = np.stack([state for state, _, _ in every])
        situation = expert.Situation.of(
            states, np.stack([blocks for _, blocks, _ in every]), [task for _, _, task in every]
        )
        last = np.concatenate([np.zeros(len(ticks), dtype=np.int64) for ticks in self._ticks])
        for table, first, end in self._spans:
            last[starts[table] + first : starts[table] + end + 1] = starts[table] + end
        frame_tick = np.array([starts[table] + tick for table, tick in self._frames])
        own = np.concatenate([np.arange(len(ticks)) * TICK_S * 1000 for ticks in self._ticks])
        return Rollouts(
            np.stack(self._tokens),
            frame_tick,
            last[frame_tick],
            np.concatenate([own[frame_tick], own]),
            states.astype(np.float32),
            expert.targets(situation, horizon, PERIOD_S).astype(np.float32),
            self._outcomes,
        )
