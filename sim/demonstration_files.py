"""Demonstrations as recordings: what a folder of them is made of, and one file of it, made by the scripted expert.

An episode is one task from a fresh scene. What is executed carries noise or leaves the path for a while, and goes
through the safety gate and the host's interpolation as it does live; the label is always what the expert would do from
the true state, so both a policy that clones labels and one that learns to recover can use it. The same plan gives the
same episodes, in whichever order and process the files are made.

Knows the simulator and the recording's nouns; refuses to know processes.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from control.clock import NS_PER_MS, NS_PER_S, FakeClock
from control.environment import commit
from control.errors import ConfigError, RecordingError
from control.messages import ActionChunk, Frames, Instruction, Mode, State
from control.recording import RecordingWriter
from control.recording_format import Label, Truth
from control.recording_images import ImageCodec
from control.recording_reader import read_recording
from sim import expert, tasks
from sim.demonstrations import PERIOD_S, TICK_S, Whims, start_somewhere
from sim.following import Following
from sim.judging import LIMIT_S
from sim.options import seed_number
from sim.scene import COLOURS
from sim.situation import Situation
from sim.tabletop import TabletopRobot

CONTROL_HZ = round(1 / PERIOD_S)
HORIZON = 8  # rows of a label
_AFTER_S = 0.5  # how long an episode goes on once nothing can change its verdict
_PAUSE_NS = NS_PER_S  # between two episodes of a file
_START_NS = NS_PER_S  # the stamp at which a file begins
_VALID_NS = 300 * NS_PER_MS


@dataclass(frozen=True, slots=True)
class Plan:
    """All that decides what is in a folder of demonstrations."""

    episodes: int
    kinds: tuple[str, ...]
    wordings: str  # seen, unseen or all
    seed: int
    per_file: int  # episodes
    images: str  # jpeg or webp
    quality: int
    camera_hz: int
    state_hz: int
    noise: float  # rad, standard deviation on each executed angle
    detours: float  # share of the time off the expert's path
    anywhere: float  # share of the episodes that do not begin at home
    cameras: dict[str, tuple[int, int]]

    def __post_init__(self) -> None:
        if self.state_hz % CONTROL_HZ or self.state_hz % self.camera_hz or NS_PER_S % self.state_hz:
            raise ConfigError(
                f"--state-hz {self.state_hz}: expected a multiple of the {CONTROL_HZ} Hz of control and of --camera-hz"
                f" {self.camera_hz} that divides a second, such as 20, 50 or 100"
            )

    @property
    def files(self) -> int:
        return -(-self.episodes // self.per_file)

    def indices(self, number: int) -> range:
        """The episodes of a file."""
        return range(number * self.per_file, min(self.episodes, (number + 1) * self.per_file))

    def drawn(self) -> list[tuple[int, tasks.Task, str]]:
        """Seed of the scene, task and text of every episode."""
        listed = tasks.episodes(self.seed, self.episodes, "unseen" if self.wordings == "unseen" else "seen", self.kinds)
        if self.wordings != "all":
            return listed
        rng = np.random.default_rng([seed_number(self.seed), 0xA11])
        both = [(seed, task, tasks.wordings(task, "seen") + tasks.wordings(task, "unseen")) for seed, task, _ in listed]
        return [(seed, task, texts[int(rng.integers(len(texts)))]) for seed, task, texts in both]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @staticmethod
    def from_json(text: str, file: Path) -> Plan:
        """Raises ConfigError for what is no plan of this version."""
        try:
            values = json.loads(text)
            sizes = {str(name): (int(height), int(width)) for name, (height, width) in values["cameras"].items()}
            return Plan(**values | {"kinds": tuple(values["kinds"]), "cameras": sizes})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{file} is no plan of demonstrations: {error}; was it changed by hand?") from None

    def differences(self, other: Plan) -> list[str]:
        """In words: what this one has and what the other has."""
        pairs = [(item.name, getattr(self, item.name), getattr(other, item.name)) for item in dataclasses.fields(self)]
        changed = [pair for pair in pairs if pair[1] != pair[2]]
        return [f"{_option(name)} {_text(ours)} there, {_text(theirs)} here" for name, ours, theirs in changed]


def _option(name: str) -> str:
    return "cameras" if name == "cameras" else "--" + {"kinds": "tasks"}.get(name, name.replace("_", "-"))


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {height}x{width}" for name, (height, width) in value.items())
    return ",".join(value) if isinstance(value, tuple) else f"{value}"


def file_of(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.mcap"


def outcomes_in(file: Path, plan: Plan, number: int) -> list[bool] | None:
    """Success of each episode in a file that is there and whole; None for one that is to be made again."""
    if not file.exists():
        return None
    try:
        recording = read_recording(file, {"episode"})
    except ConfigError:
        return None  # cut before its first chunk, or damaged
    found = [episode.index for episode in recording.episodes]
    if recording.lost or found != list(plan.indices(number)):
        return None
    return [episode.success is True for episode in recording.episodes]


class Demonstrator:
    """A table-top with the expert at it, for as many files as are wanted; one process, one OpenGL context."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan, self._folder, self._drawn = plan, folder, plan.drawn()
        self._clock = FakeClock()
        self._robot = TabletopRobot(self._clock, cameras=plan.cameras)
        self._robot.connect()
        self._codec = ImageCodec("jpeg" if plan.images == "jpeg" else "webp", plan.quality)
        self._notes = {"made_by": "scripted expert", "plan": plan.to_json(), "commit": commit()}

    def make(self, number: int, tell: Callable[[int], None], stopped: Callable[[], bool]) -> list[bool] | None:
        """File `number`, under its name only when it is whole; None when it was stopped. `tell` gets each episode.

        Raises RecordingError when the disk is full.
        """
        file = file_of(self._folder, number)
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        outcomes: list[bool] = []
        with RecordingWriter(
            partial, self._robot.spec, images=self._codec, notes=self._notes, overwrite=True
        ) as writer:
            begin_ns = self._clock.now_ns() - _START_NS
            for index in self._plan.indices(number):
                success = _Attempt(self._plan, self._robot, self._clock, writer, begin_ns).run(
                    index, *self._drawn[index], stopped
                )
                if success is None:
                    break
                outcomes.append(success)
                tell(index)
        if len(outcomes) < len(self._plan.indices(number)):
            partial.unlink()
            return None
        _rename_when_on_disk(partial, file)
        return outcomes

    def close(self) -> None:
        self._robot.close()


def _rename_when_on_disk(partial: Path, file: Path) -> None:
    """A machine that loses power has the file whole or not at all."""
    try:
        with partial.open("rb") as opened:
            os.fsync(opened.fileno())
        partial.replace(file)
    except OSError as error:
        raise RecordingError(f"recording {file} cannot be kept: {error.strerror or error}; is the disk full?") from None


class _Attempt:
    """One episode; its stamps begin where the file's do."""

    def __init__(
        self, plan: Plan, robot: TabletopRobot, clock: FakeClock, writer: RecordingWriter, begin_ns: int
    ) -> None:
        self._plan, self._robot, self._clock, self._writer, self._begin_ns = plan, robot, clock, writer, begin_ns
        self._arm = Following(robot, clock, PERIOD_S)

    def _now_ns(self) -> int:
        return self._clock.now_ns() - self._begin_ns

    def run(self, index: int, seed: int, task: tasks.Task, text: str, stopped: Callable[[], bool]) -> bool | None:
        """Whether the expert did it; None when it was stopped."""
        plan, robot = self._plan, self._robot
        rng = np.random.default_rng([plan.seed, index, 0xDE40])
        robot.reset(seed)
        start_somewhere(rng, robot, plan.anywhere)
        said = Instruction(index + 1, self._now_ns(), 1, index + 1, text)
        self._writer.begin_episode(said.stamp_ns, index, text, seed)
        self._writer.write(said)
        robot.begin(said)
        whims = Whims.draw(rng, 0, 1 - plan.detours)
        last = round(LIMIT_S[task.kind] * plan.state_hz)
        tick = 0
        while tick < last:
            if stopped():
                return None
            state = robot.read_state()
            if robot.is_over:
                last = min(last, tick + round(_AFTER_S * plan.state_hz))
            acts, looks = tick % (plan.state_hz // CONTROL_HZ) == 0, tick % (plan.state_hz // plan.camera_hz) == 0
            self._look(index, tick, state, truth=acts or looks, frames=looks)
            if acts:
                ticks = round(tick / plan.state_hz / TICK_S)
                if ticks >= whims.until:
                    whims = Whims.draw(rng, ticks, 1 - plan.detours)
                self._act(rng, index, tick, state, task, whims)
            self._arm.advance(NS_PER_S // plan.state_hz)
            tick += 1
        success = robot.judge() is True
        self._writer.end_episode(self._now_ns(), success)
        self._clock.advance(_PAUSE_NS)
        return success

    def _look(self, index: int, tick: int, state: np.ndarray, truth: bool, frames: bool) -> None:
        now_ns, robot = self._now_ns(), self._robot
        seq = now_ns * self._plan.state_hz // NS_PER_S  # grows through the file
        self._writer.write(State(seq, now_ns, state, None, index + 1, robot.judge()))
        if truth:
            poses = zip(COLOURS, robot.block_poses, strict=True)
            self._writer.write(Truth(now_ns, {colour: tuple(map(float, pose)) for colour, pose in poses}))
        if frames:
            self._writer.write(Frames(seq, now_ns, robot.cameras.render()))

    def _act(
        self, rng: np.random.Generator, index: int, tick: int, state: np.ndarray, task: tasks.Task, whims: Whims
    ) -> None:
        now_ns, blocks = self._now_ns(), self._robot.block_poses
        chunk = expert.targets(Situation.of(state[None], blocks[None], [task]), HORIZON, PERIOD_S)[0]
        self._writer.write(Label(now_ns, chunk))
        target = whims.target(rng, state, blocks, task)
        target[:6] += rng.normal(0.0, 1.0, 6) * self._plan.noise
        done = self._arm.aim(target, state)[None]
        seq = now_ns * CONTROL_HZ // NS_PER_S
        self._writer.write(ActionChunk(seq, now_ns, index + 1, None, Mode.RUN, done, PERIOD_S, now_ns + _VALID_NS))
