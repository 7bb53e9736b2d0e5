"""A policy's own episodes: what it meets when it acts, for the expert to label.

Cloning the expert's path fails off that path; labels on the states a policy really comes to are what mends it (dataset
aggregation: Ross, Gordon, Bagnell 2011). Several tables run side by side, so that their frames are encoded together.
The cameras look every few control periods and the policy acts on features that grow old in between, as it does when
deployed; until the first ones of a task come, the arm stands. For a share of the time the expert drives, with its
whims, from wherever the policy got to.

Letters: R tables, N frames, E ticks of 50 ms, T feature tokens, D width, H horizon. Refuses to know networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from control.clock import FakeClock
from control.messages import Instruction
from sim import expert, tasks
from sim.demonstrations import PERIOD_S, TICK_NS, TICK_S, Look, Whims, look_at, sample_doable, start_somewhere
from sim.following import Following
from sim.options import seed_number
from sim.rehearsal import Track
from sim.situation import Situation, indices
from sim.tabletop import TabletopRobot

LIMIT_S = 9.0  # of a task: the expert needs 1 to 5
_AFTERWARDS_S = 0.6  # how long a policy goes on once its task is over, before the next one
_CHAIN = 2  # tasks on one scene at most
_TICKS_A_PERIOD = round(PERIOD_S / TICK_S)


class Policy(Protocol):
    """Encoder and head for many tables at a time."""

    def features(self, images: Mapping[str, np.ndarray], instructions: Sequence[str]) -> np.ndarray:
        """(R, T, D) from {camera: (R, height, width, 3)} and R instructions."""
        ...

    def act(self, tokens: np.ndarray, states: np.ndarray, age_ms: np.ndarray) -> np.ndarray:
        """(R, H, 7) absolute targets."""
        ...


@dataclass(slots=True)
class Frame:
    """What the policy saw at a tick, and made of it."""

    tick: int
    tokens: np.ndarray  # (T, D)
    look: Look | None  # None: it was told instead


@dataclass(slots=True)
class Scene:
    """One scene from its reset to the next one."""

    states: list[np.ndarray] = field(default_factory=list)
    blocks: list[np.ndarray] = field(default_factory=list)
    asked: list[tasks.Task] = field(default_factory=list)  # at each tick
    last_tick: list[int] = field(default_factory=list)  # of the task that goes on at each tick
    frames: list[Frame] = field(default_factory=list)
    outcomes: list[tuple[str, float, bool]] = field(default_factory=list)  # driven alone: kind, feature age, success

    @property
    def track(self) -> Track:
        asked = np.array([indices(task) for task in self.asked])
        return Track(np.array(self.states), np.array(self.blocks), asked)

    def looks(self) -> list[Look]:
        """Its frames, each with all that happened."""
        track = self.track
        return [replace(frame.look, track=track) for frame in self.frames if frame.look is not None]


@dataclass(slots=True)
class _Table:
    """One table with what is going on there."""

    robot: TabletopRobot
    arm: Following
    scene: Scene = field(default_factory=Scene)
    task: tasks.Task = tasks.Task("touch", "red")
    text: str = ""
    began: int = 0  # the tick at which this task was given
    ends: int = 0
    left: int = 0  # tasks still to come on this scene
    delay: int = 0  # periods from a frame to the first action on it
    expert_share: float = 0.0
    whims: Whims | None = None  # while the expert drives
    has_helped: bool = False
    first_frame: int = 0  # of this task

    @property
    def tick(self) -> int:
        return len(self.scene.states)


class Collector:
    """Runs R tables with a policy. `expert_share` is the chance a second that the expert takes over for a while."""

    def __init__(
        self,
        policy: Policy,
        seed: int,
        tables: int,
        kinds: Sequence[str],
        max_age_ms: float,
        expert_share: float,
        look_every: int = 4,
    ) -> None:
        self.policy = policy
        self._rng = np.random.default_rng([seed_number(seed), 0xDA66])
        self._kinds, self._share, self._look_every = kinds, expert_share, look_every
        self._delays = max(1, round(max_age_ms / 1000 / PERIOD_S) - look_every + 2)
        self.tables: list[_Table] = []
        for _ in range(tables):
            clock = FakeClock()
            robot = TabletopRobot(clock)
            robot.connect()
            self.tables.append(_Table(robot, Following(robot, clock, PERIOD_S)))

    def scenes(self) -> Iterator[Scene]:
        """Without end, each as soon as it is over."""
        while True:
            for table in self.tables:
                if table.tick >= table.ends:
                    yield from self._next_task(table)
            self._period()

    def _next_task(self, table: _Table) -> Iterator[Scene]:
        rng = self._rng
        self._close_task(table)
        if table.left == 0:
            if table.scene.frames:
                yield table.scene
            table.scene = Scene()
            table.robot.reset(int(rng.integers(2**31)))
            start_somewhere(rng, table.robot, share=0.25)
            table.arm.restart()
            table.left = int(rng.integers(1, _CHAIN + 1))
        table.left -= 1
        table.task = sample_doable(rng, self._kinds, table.robot.block_poses)
        table.text = tasks.sample_wording(rng, table.task, "seen")
        table.robot.begin(Instruction(0, 0, 1, 1, table.text))
        table.began = table.tick
        table.ends = table.tick + round(LIMIT_S / TICK_S)
        if table.left and rng.random() < 0.3:
            table.ends = table.tick + int(rng.integers(10, 60))  # another instruction in mid-task
        table.delay = int(rng.integers(0, self._delays))
        table.expert_share = self._share if rng.random() < 0.5 else 0.0
        table.has_helped, table.whims = False, None
        table.first_frame = len(table.scene.frames)

    def _close_task(self, table: _Table) -> None:
        length = table.tick - table.began
        table.scene.last_tick += [table.tick - 1] * length
        done = bool(table.robot.judge())
        if length and not table.has_helped and (done or length >= round(LIMIT_S / TICK_S)):
            table.scene.outcomes.append((table.task.kind, table.delay * PERIOD_S * 1000, done))

    def _period(self) -> None:
        """One control period of all tables: look where it is time, act, and step physics."""
        due = [table for table in self.tables if self._is_due(table)]
        if due:
            self._see(due)
        states = [table.robot.read_state() for table in self.tables]
        for table, state, target in zip(self.tables, states, self._chosen(states), strict=True):
            target = self._drive(table, state, target)
            if target is not None:
                table.arm.aim(target, state)
            for _ in range(_TICKS_A_PERIOD):
                table.scene.states.append(table.robot.read_state())
                table.scene.blocks.append(table.robot.block_poses)
                table.scene.asked.append(table.task)
                table.arm.advance(TICK_NS)
                table.robot.judge()
            if table.robot.is_over:
                table.ends = min(table.ends, table.tick + round(_AFTERWARDS_S / TICK_S))

    def _chosen(self, states: Sequence[np.ndarray]) -> list[np.ndarray | None]:
        """The policy's next target for each table; None where no features of this task are there yet: it stands."""
        used, ages, is_ready = [], [], []
        for table in self.tables:
            frames = table.scene.frames[table.first_frame :]
            ready = [frame for frame in frames if frame.tick + table.delay * _TICKS_A_PERIOD <= table.tick]
            is_ready.append(bool(ready))
            frame = ready[-1] if ready else frames[0]
            used.append(frame.tokens)
            ages.append((table.tick - frame.tick) * TICK_S * 1000)
        chunks = self.policy.act(np.stack(used), np.stack(states), np.array(ages, dtype=np.float32))
        return [chunk[0] if ready else None for chunk, ready in zip(chunks, is_ready, strict=True)]

    def _is_due(self, table: _Table) -> bool:
        frames = table.scene.frames[table.first_frame :]
        return not frames or table.tick - frames[-1].tick >= self._look_every * _TICKS_A_PERIOD

    def _see(self, tables: Sequence[_Table]) -> None:
        seen = [look_at(table.robot, table.tick, table.task) for table in tables]
        images = {name: np.stack([look.images[name] for look in seen]) for name in seen[0].images}
        tokens = self.policy.features(images, [table.text for table in tables])
        for table, look, made in zip(tables, seen, tokens, strict=True):
            table.scene.frames.append(Frame(table.tick, made, look))

    def _drive(self, table: _Table, state: np.ndarray, target: np.ndarray | None) -> np.ndarray | None:
        """`target`, or the expert's while that helps."""
        rng = self._rng
        if table.whims is None and rng.random() < table.expert_share * PERIOD_S:
            table.whims, table.has_helped = Whims.draw(rng, table.tick, 0.5), True
        if table.whims is not None:
            if table.tick < table.whims.until:
                return table.whims.target(rng, state, table.robot.block_poses, table.task)
            table.whims = None
        return target


@dataclass(frozen=True, slots=True, eq=False)
class Rollouts:
    """Frames as features with the ticks after each; as `FeatureSet` of the model's side wants them."""

    tokens: np.ndarray  # (N, T, D) float16
    frame_tick: np.ndarray  # (N,)
    last_tick: np.ndarray  # (N,)
    stamp_ms: np.ndarray  # (N + E,)
    states: np.ndarray  # (E, 7) float32
    targets: np.ndarray  # (E, H, 7) float32
    outcomes: list[tuple[str, float, bool]]


def labelled(scenes: Sequence[Scene], horizon: int) -> Rollouts:
    """What the policy made of its frames, and what the expert would have done at every tick."""
    starts = np.cumsum([0, *(len(scene.states) for scene in scenes)])
    states = np.concatenate([np.array(scene.states) for scene in scenes])
    asked = [task for scene in scenes for task in scene.asked]
    situation = Situation.of(states, np.concatenate([np.array(scene.blocks) for scene in scenes]), asked)
    last = np.concatenate([start + np.array(scene.last_tick) for start, scene in zip(starts, scenes, strict=False)])
    frame_tick = np.array(
        [start + frame.tick for start, scene in zip(starts, scenes, strict=False) for frame in scene.frames]
    )
    own_ms = np.concatenate([np.arange(len(scene.states)) * TICK_S * 1000 for scene in scenes])
    return Rollouts(
        np.stack([frame.tokens for scene in scenes for frame in scene.frames]).astype(np.float16),
        frame_tick,
        last[frame_tick],
        np.concatenate([own_ms[frame_tick], own_ms]),
        states.astype(np.float32),
        expert.targets(situation, horizon, PERIOD_S).astype(np.float32),
        [outcome for scene in scenes for outcome in scene.outcomes],
    )


def successes(outcomes: Sequence[tuple[str, float, bool]]) -> str:
    """How often a policy alone did each kind of task."""
    counts = {kind: [done for name, _, done in outcomes if name == kind] for kind in sorted({o[0] for o in outcomes})}
    return ", ".join(f"{kind} {sum(done)} of {len(done)}" for kind, done in counts.items()) or "none driven to its end"
