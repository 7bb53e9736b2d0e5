"""Labelled data from the table-top: episodes that go everywhere a policy may come to, and what the expert says of each.

An episode is a chain of tasks on one scene, driven by the expert with what makes it leave its path: noise on the
commands, a wrong idea of where the blocks are, excursions, tasks that change in the middle. Every 50 ms the joints and
the true poses are kept, a few times a second the cameras look. The expert labels any of these states for any task, so
a frame serves under the task that was driven and under others. An acting state lies some way after its frame, because
a slow encoder's features are that old when they are acted on.

Letters: N frames, P tasks a frame, M = N * P samples, K acting states of a sample, H horizon, Q objects (what the task
names first; where it goes). Refuses to know networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from control.clock import FakeClock
from sim import expert, facts, kinematics, tasks
from sim.following import Following
from sim.options import seed_number
from sim.phrasing import varied
from sim.rehearsal import Rehearsal, Track, rehearse
from sim.scene import BIN_CENTRE, CAMERAS, COLOURS
from sim.situation import Situation, indices
from sim.tabletop import TabletopRobot

PERIOD_S = 0.1
TICK_S = 0.05  # between two states that are kept
TICK_NS = 50_000_000
OBJECTS = (*COLOURS, "bin")
_FRAMES_A_SECOND = 3.0
_EPISODE_S = 8.0
_POOL = 1536  # frames that are mixed before batches are drawn from them
_SERVES = 4  # times on average that a frame is drawn


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Where the objects of a task were when the frame was taken."""

    uv: dict[str, np.ndarray]  # camera -> (M, Q, 2) float32: the centre, u right, v down, in [0, 1)
    visible: dict[str, np.ndarray]  # camera -> (M, Q) bool; where False, uv is clipped into the image
    facts: np.ndarray  # (M, F) float32, in the order of facts.NAMES


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """M samples on N frames."""

    images: dict[str, np.ndarray]  # camera -> (N, height, width, 3) uint8 RGB
    image_index: np.ndarray  # (M,) the frame of each sample
    instructions: list[str]  # M of them
    states: np.ndarray  # (M, K, 7) float32, when the policy acts
    feature_age_ms: np.ndarray  # (M, K) float32, from the frame to the acting state
    targets: np.ndarray  # (M, K, H, 7) float32, the expert's chunk from the acting state
    truth: Truth
    rehearsal: Rehearsal | None = None
    windows: None = None


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """One moment of a track as the cameras saw it."""

    track: Track
    tick: int
    task: tasks.Task  # that was driven then
    images: dict[str, np.ndarray]
    uv: dict[str, np.ndarray]  # camera -> (5, 2), in the order of OBJECTS
    visible: dict[str, np.ndarray]  # camera -> (5,)


_UNWRITTEN = Track(np.empty((0, 7)), np.empty((0, 4, 4)), np.empty((0, 3), int))


@dataclass(slots=True)
class Whims:
    """What makes the drive leave the expert's path, drawn anew every second or so."""

    noise_rad: float
    misjudged: np.ndarray  # (4, 4) added to the poses
    excursion: np.ndarray | None  # joints to go to instead
    until: int  # tick

    @staticmethod
    def draw(rng: np.random.Generator, tick: int, calm: float) -> Whims:
        """`calm` is the chance of no whim at all."""
        until = tick + int(rng.integers(6, 40))
        if rng.random() < calm:
            return Whims(0.0, np.zeros((4, 4)), None, until)
        offset = rng.normal(0.0, 1.0, (4, 4)) * (1, 1, 0.2, 0) * rng.choice([0.0, 0.004, 0.01, 0.02])
        excursion = None
        if rng.random() < 0.22:
            tip = rng.uniform((0.18, -0.32, 0.03), (0.56, 0.32, 0.30))
            excursion = kinematics.tool_down(tip[None], rng.choice([0.0, 0.03, 0.05, 0.08]))[0]
            excursion += rng.normal(0.0, (0, 0, 0, 0.1, 0.1, 0.6, 0))
            until = tick + int(rng.integers(4, 24))
        return Whims(float(rng.choice([0.0, 0.005, 0.015, 0.03])), offset, excursion, until)

    def target(self, rng: np.random.Generator, q: np.ndarray, blocks: np.ndarray, task: tasks.Task) -> np.ndarray:
        if self.excursion is not None:
            step = self.excursion - q
            goal = q + step * min(1.0, 0.1 / max(float(np.abs(step[:6]).max()), 1e-9))
            goal[6] = q[6] + np.clip(step[6], -0.015, 0.015)
        else:
            seen = Situation.of(q[None], (blocks + self.misjudged)[None], [task])
            goal = expert.next_target(seen, PERIOD_S)[0]
        goal[:6] += rng.normal(0.0, 1.0, 6) * self.noise_rad
        return goal


def drive(
    rng: np.random.Generator, robot: TabletopRobot, clock: FakeClock, kinds: Sequence[str], sees: bool = True
) -> tuple[Track, list[Look]]:
    """One episode of the expert and its whims, and how the cameras saw it unless they are shut."""
    robot.reset(int(rng.integers(2**31)))
    robot.jitter(rng)
    start_somewhere(rng, robot, share=0.5)
    ticks = round(_EPISODE_S / TICK_S)
    calm = float(rng.choice([0.9, 0.5, 0.2]))
    states, blocks, asked = np.empty((ticks, 7)), np.empty((ticks, 4, 4)), np.empty((ticks, 3), int)
    track, seen = Track(states, blocks, asked), []
    arm = Following(robot, clock, PERIOD_S)
    whims, task, task_ends = Whims.draw(rng, 0, calm), tasks.sample_task(rng, kinds), 0
    for tick in range(ticks):
        states[tick], blocks[tick] = robot.read_state(), robot.block_poses
        if tick >= task_ends:
            task = sample_doable(rng, kinds, blocks[tick])
            task_ends = tick + int(rng.integers(20, 100))
        asked[tick] = indices(task)
        if tick >= whims.until:
            whims = Whims.draw(rng, tick, calm)
        if sees and rng.random() < _FRAMES_A_SECOND * TICK_S:
            look = look_at(robot, tick, task)
            seen.append(replace(look, track=track))
        if tick % round(PERIOD_S / TICK_S) == 0:
            arm.aim(whims.target(rng, states[tick], blocks[tick], task), states[tick])
        arm.advance(TICK_NS)
    return track, seen


def start_somewhere(rng: np.random.Generator, robot: TabletopRobot, share: float) -> None:
    """This share of the episodes begins with the arm anywhere above the blocks, the others at home."""
    if rng.random() >= share:
        return
    tip = rng.uniform((0.18, -0.32, 0.06), (0.56, 0.32, 0.32))
    q = kinematics.tool_down(tip[None], rng.uniform(0.0, 0.08))[0]
    robot.pose(q + rng.normal(0.0, (0, 0, 0, 0.15, 0.1, 0.6, 0)))


def sample_doable(rng: np.random.Generator, kinds: Sequence[str], blocks: np.ndarray) -> tasks.Task:
    """A random task that can be done with blocks (4, 4) that lie so; after 20 draws one that can not."""
    task = tasks.sample_task(rng, kinds)
    for _ in range(20):
        if expert.is_doable(task, blocks):
            break
        task = tasks.sample_task(rng, kinds)
    return task


def look_at(robot: TabletopRobot, tick: int, task: tasks.Task) -> Look:
    """What the cameras see now, of a track that is still to be written."""
    cameras = robot.cameras
    points = [*robot.blocks.values(), np.array([*BIN_CENTRE, 0.02])]
    uv = {
        name: np.clip(np.nan_to_num([cameras.pixel(name, point) for point in points], nan=0.5), 0.0, 0.9999)
        for name in robot.spec.cameras
    }
    visible = {
        name: np.array([*(cameras.sees(name, colour) for colour in COLOURS), cameras.holds(name, points[4])])
        for name in robot.spec.cameras
    }
    return Look(_UNWRITTEN, tick, task, cameras.render(), uv, visible)


def looks(
    seed: int,
    kinds: Sequence[str] = tasks.KINDS,
    cameras: Mapping[str, tuple[int, int]] | tuple[str, ...] = CAMERAS,
    image_size: tuple[int, int] = (112, 112),
) -> Iterator[Look]:
    """Frames without end, episode by episode, the same for the same arguments."""
    rng = np.random.default_rng([seed_number(seed), 0xDE30])
    clock = FakeClock()
    robot = TabletopRobot(clock, cameras=cameras, image_size=image_size)
    robot.connect()
    while True:
        yield from drive(rng, robot, clock, kinds)[1]


def sample_batches(
    seed: int,
    frames: int,
    per_frame: int = 2,
    acting: int = 6,
    horizon: int = 8,
    max_age_ms: float = 1000.0,
    split: tasks.Split = "seen",
    kinds: Sequence[str] = tasks.KINDS,
    source: Callable[[], Iterator[Look]] | None = None,
    pool: int = _POOL,
    rehearsed: int = 0,
    **robot_options: object,
) -> Iterator[Batch]:
    """Batches without end of `frames` frames, each under `per_frame` tasks and at `acting` acting states.

    With `rehearsed` situations each, drawn from the episodes whose frames wait to be drawn.
    """
    rng = np.random.default_rng([seed_number(seed), 0xBA7C])
    stream = source() if source is not None else looks(seed, kinds, **robot_options)  # type: ignore[arg-type]

    def made() -> Iterator[Batch]:
        for chosen, waiting in _mixed(rng, stream, frames, pool):
            batch = batch_of(rng, chosen, per_frame, acting, horizon, max_age_ms, split, kinds)
            if rehearsed:
                tracks = [look.track for look in waiting]
                situations = rehearse(rng, tracks, rehearsed, horizon, max_age_ms, TICK_S, PERIOD_S, kinds)
                batch = replace(batch, rehearsal=situations)
            yield batch

    return made()  # what is wrong with the arguments is said at once


def _mixed(
    rng: np.random.Generator, stream: Iterator[Look], frames: int, pool: int
) -> Iterator[tuple[list[Look], list[Look]]]:
    """`frames` at a time, each at random from the newest of the stream, and the others that wait.

    The pool fills up while it is drawn from.
    """
    waiting: list[Look] = []
    for count, look in enumerate(stream):
        waiting.append(look)
        while len(waiting) >= min(pool, 8 * frames + count // 2) + frames:
            yield [_taken(rng, waiting) for _ in range(frames)], waiting


def _taken(rng: np.random.Generator, waiting: list[Look]) -> Look:
    """One of them. Each serves `_SERVES` times, under other tasks: to get it took longer than to learn from it."""
    index = int(rng.integers(len(waiting)))
    return waiting.pop(index) if rng.random() < 1 / _SERVES else waiting[index]


def batch_of(
    rng: np.random.Generator,
    chosen: Sequence[Look],
    per_frame: int,
    acting: int,
    horizon: int,
    max_age_ms: float,
    split: tasks.Split,
    kinds: Sequence[str],
) -> Batch:
    """These frames under the task that was driven, and `per_frame` - 1 others."""
    samples = [
        (i, look, look.task if j == 0 else tasks.sample_task(rng, kinds))
        for i, look in enumerate(chosen)
        for j in range(per_frame)
    ]
    states, blocks, ages, asked = [], [], [], []
    for _, look, task in samples:
        last = len(look.track.states) - 1 - look.tick
        later = np.minimum(rng.integers(0, round(max_age_ms / 1000 / TICK_S) + 1, acting), last)
        states.append(look.track.states[look.tick + later])
        blocks.append(look.track.blocks[look.tick + later])
        ages.append(later * TICK_S * 1000)
        asked += [task] * acting
    acting_states = np.concatenate(states)
    acting_states[:, :6] += rng.normal(0.0, 0.002, (len(acting_states), 6))
    chunks = expert.targets(Situation.of(acting_states, np.concatenate(blocks), asked), horizon, PERIOD_S)
    objects = np.array([_objects(task) for _, _, task in samples])
    rows = np.arange(len(samples))[:, None]
    then = Situation.of(
        np.array([look.track.states[look.tick] for _, look, _ in samples]),
        np.array([look.track.blocks[look.tick] for _, look, _ in samples]),
        [task for _, _, task in samples],
    )
    cameras = chosen[0].images
    return Batch(
        images={name: np.stack([look.images[name] for look in chosen]) for name in cameras},
        image_index=np.array([i for i, _, _ in samples]),
        instructions=[_said(rng, task, split) for _, _, task in samples],
        states=acting_states.reshape(len(samples), acting, 7).astype(np.float32),
        feature_age_ms=np.array(ages, dtype=np.float32),
        targets=chunks.reshape(len(samples), acting, horizon, 7).astype(np.float32),
        truth=Truth(
            {name: np.array([look.uv[name] for _, look, _ in samples], np.float32)[rows, objects] for name in cameras},
            {name: np.array([look.visible[name] for _, look, _ in samples])[rows, objects] for name in cameras},
            facts.of(then),
        ),
    )


def _said(rng: np.random.Generator, task: tasks.Task, split: tasks.Split) -> str:
    text = tasks.sample_wording(rng, task, split)
    return varied(rng, task, text) if split == "seen" else text


def _objects(task: tasks.Task) -> tuple[int, int]:
    """What the task names first, and where that goes: indices into OBJECTS."""
    first = COLOURS.index(task.colour)
    if task.kind == "stack":
        assert task.on is not None
        return first, COLOURS.index(task.on)
    return first, OBJECTS.index("bin") if task.kind == "bin" else first
