"""The nouns of the system: what the processes say to each other.

Knows the fields, shapes and units of every message. Refuses to know bytes (wire.py) and who listens (bus.py).

Letters: S state values, A actions, H horizon, T feature tokens, D feature width. Stamps are monotonic nanoseconds
of the robot's machine; arrays are read-only by agreement.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum

import numpy as np

MAX_FAULT_CHARS = 500
MAX_COMMANDS, MAX_COMMAND_CHARS = 32, 300  # of a cycle: the newest


class Mode(StrEnum):
    """What the controller does: INIT waits for its inputs, RUN acts, HOLD keeps the target, STOP waits for `resume`."""

    INIT = "INIT"
    RUN = "RUN"
    HOLD = "HOLD"
    STOP = "STOP"


@dataclass(frozen=True, slots=True, eq=False)
class RobotSpec:
    """What a robot has and may do. Limits are in the unit of each action (rad, m) and bind every action sent."""

    name: str
    cameras: dict[str, tuple[int, int]]  # name -> (height, width) in pixels
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_low: np.ndarray  # (A,)
    action_high: np.ndarray  # (A,)
    max_velocity: np.ndarray  # (A,) per second
    action_period_s: float
    max_acceleration: np.ndarray | None = None  # (A,) per second squared, None where the maker gives none

    def __post_init__(self) -> None:
        actions = len(self.action_names)
        for label, values in (("state_names", self.state_names), ("action_names", self.action_names)):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"robot '{self.name}': {label} must be distinct and not empty, got {list(values)}")
        for label in ("action_low", "action_high", "max_velocity", "max_acceleration"):
            if label == "max_acceleration" and self.max_acceleration is None:
                continue
            values = np.asarray(getattr(self, label), dtype=np.float64)
            if values.shape != (actions,):
                raise ValueError(
                    f"robot '{self.name}': {label} must have one value for each of the {actions} actions,"
                    f" got shape {values.shape}"
                )
            if np.isnan(values).any():
                raise ValueError(f"robot '{self.name}': {label} holds NaN")
            values.flags.writeable = False
            object.__setattr__(self, label, values)
        if not (self.action_low < self.action_high).all():
            raise ValueError(f"robot '{self.name}': every action_low must be under its action_high")
        if not (self.max_velocity > 0).all():
            raise ValueError(f"robot '{self.name}': every max_velocity must be positive")
        if self.max_acceleration is not None and not (self.max_acceleration > 0).all():
            raise ValueError(f"robot '{self.name}': every max_acceleration must be positive")
        for camera, size in self.cameras.items():
            if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
                raise ValueError(
                    f"robot '{self.name}': camera '{camera}' must be (height, width) in pixels, got {size}"
                )
        if not 0.001 <= self.action_period_s <= 1.0:
            raise ValueError(
                f"robot '{self.name}': action_period_s must lie in 0.001..1.0 s, got {self.action_period_s}"
            )

    def equals(self, other: RobotSpec) -> bool:
        """Whether every field is the same, arrays included."""
        ours, theirs = ([getattr(spec, item.name) for item in fields(spec)] for spec in (self, other))
        return all(
            np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in zip(ours, theirs, strict=True)
        )


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """All cameras of one capture, stamped by the robot host when the capture began."""

    seq: int
    stamp_ns: int
    images: dict[str, np.ndarray]  # camera -> (height, width, 3) uint8 RGB
    published_ns: int | None = None  # when all images were there and went to the bus; None where nobody stamps it
    captured_ns: dict[str, int] = field(default_factory=dict)  # camera -> when its driver says its image was taken
    faults: dict[str, str] = field(default_factory=dict)  # camera -> what is wrong with its image

    def view_age_ms(self, camera: str) -> float:
        """How much older than the stamp the image of a camera is: 0 where its driver does not say."""
        return max(0, self.stamp_ns - self.captured_ns.get(camera, self.stamp_ns)) / 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """The robot's own measurement of itself, named by `RobotSpec.state_names`.

    `task_done` is the robot's own judgement of instruction `task_instruction_id`: a simulator knows, hardware says
    None.
    """

    seq: int
    stamp_ns: int
    values: np.ndarray  # (S,) float64
    history: np.ndarray | None = None  # (T, S) a window at the host's rate, oldest first, its last row `values`
    task_instruction_id: int = 0
    task_done: bool | None = None
    camera_faults: dict[str, str] = field(default_factory=dict)  # camera -> what is wrong with what it gives


@dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    """What the operator asked for. `session` tells one controller's instruction 1 from the next controller's."""

    seq: int
    stamp_ns: int
    session: int
    id: int  # grows by one, from 1
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What the encoder saw, with all that is needed to use it: no session is kept with anybody."""

    seq: int
    stamp_ns: int  # the encoder's clock when it published
    frame_seq: int
    frame_stamp_ns: int  # the robot's clock at capture, copied
    session: int
    instruction_id: int
    encoder_epoch: int  # changes with every start of the encoder
    policy_id: str
    tokens: np.ndarray  # (T, D) float32
    view_age_ms: dict[str, float]  # how much older than the frame each view inside is (0 unless a view was reused)
    encode_ms: float
    stage_ms: dict[str, float] = field(default_factory=dict)
    frame_published_ns: int | None = None  # the robot's clock, copied from the frame
    fault: str = ""  # why this frame could not be encoded; then seq is 0 and there are no tokens


@dataclass(frozen=True, slots=True, eq=False)
class ActionChunk:
    """Targets for the next H periods; row 0 is due one period after `stamp_ns`. Only mode RUN moves the robot."""

    seq: int
    stamp_ns: int
    instruction_id: int  # the instruction that produced it, 0 before any
    feature_age_ms: float | None
    mode: Mode
    targets: np.ndarray  # (H, A) float64, H = 0 when there is nothing to follow
    period_s: float
    valid_until_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class Cycle:
    """One row a tick: when it ran, what it used, what it decided and why."""

    seq: int
    stamp_ns: int  # when the tick began
    deadline_ns: int
    lateness_ms: float
    cycle_ms: float  # state to publish, without the wait
    stage_ms: dict[str, float]  # state, features, head, safety, publish
    state_age_ms: float | None
    feature_age_ms: float | None
    feature_seq: int | None
    encoder_epoch: int | None
    encode_ms: float | None
    instruction_id: int  # the one acted on
    pending_id: int | None  # the one waiting for its first feature
    mode: Mode
    reason: str  # empty in plain RUN
    limits: tuple[str, ...]  # the limits this tick hit
    missed_ticks: int  # ticks skipped just before this one
    switch_ms: float | None = None  # set on the tick that first acts on a new instruction
    rejected: int = 0  # messages refused since the start
    task_done: bool | None = None
    task_instruction_id: int = 0
    feature_arrived_ns: int | None = None  # when the features in use came off the bus; None where nobody stamps it
    commands: tuple[str, ...] = ()  # what operators asked since the tick before, `status` apart; of a refused one why


@dataclass(frozen=True, slots=True)
class Command:
    """A request of an operator's client; `request_id` comes back in every reply."""

    request_id: int
    verb: str  # say, status, stop, resume
    text: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """The controller's answer. `accepted` may come first and promises a later `done` or `failed`."""

    request_id: int
    outcome: str  # accepted, done, failed
    message: str
    values: dict[str, float | int | str | bool | None] = field(default_factory=dict)
