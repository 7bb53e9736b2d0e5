"""A small robot, and a control loop on a fake clock with hand-fed inputs."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from control.clock import NS_PER_MS, FakeClock, Tick
from control.loop import ControlLoop, LoopSettings, Ports
from control.messages import Features, RobotSpec, State
from control.safety import Freshness

PERIOD_NS = 100 * NS_PER_MS


def two_joint_spec(**changes: Any) -> RobotSpec:
    fields = {
        "name": "two-joint",
        "cameras": {"front": (28, 28)},
        "state_names": ("a", "b"),
        "action_names": ("a", "b"),
        "action_low": np.array([-1.0, -2.0]),
        "action_high": np.array([1.0, 2.0]),
        "max_velocity": np.array([1.0, 2.0]),
        "action_period_s": 0.1,
    }
    return RobotSpec(**(fields | changes))


class Queue:
    """An inbox and outbox without a socket."""

    def __init__(self) -> None:
        self.items: deque[Any] = deque()
        self.rejected = 0
        self.refusal = ""

    def send(self, noun: Any) -> None:
        self.items.append(noun)

    def poll(self) -> Any | None:
        newest = self.items[-1] if self.items else None
        self.items.clear()
        return newest


class FixedHead:
    """Always the same targets: the state names are also the action names."""

    policy_id = "policy"
    state_names = ("a", "b")
    action_names = ("a", "b")
    horizon = 2
    period_s = 0.1
    window_samples = 0

    def __init__(self, targets: Any = ((0.01, 0.01), (0.02, 0.02))) -> None:
        self.targets: Any = np.array(targets, dtype=np.float64)

    def act(self, tokens: np.ndarray, state: np.ndarray, feature_age_ms: float, window: Any = None) -> np.ndarray:
        self.window = window
        if isinstance(self.targets, Exception):
            raise self.targets
        return self.targets


class LoopRig:
    """A ControlLoop on a fake clock with hand-fed inputs; `tick` moves one period on."""

    def __init__(
        self, head: Any = None, spec: RobotSpec | None = None, needed_cameras: Any = None, **settings: Any
    ) -> None:
        self.clock = FakeClock()
        self.robot, self.state, self.features = Queue(), Queue(), Queue()
        self.instruction, self.action, self.cycle = Queue(), Queue(), Queue()
        self.spec = spec or two_joint_spec()
        self.head = head or FixedHead()
        defaults = {
            "period_ns": PERIOD_NS,
            "freshness": Freshness(300, 600, 2000),
            "state_max_age_ms": 150,
            "switch_max_ms": 1000,
            "max_missed_ticks": 3,
            "view_period_ms": 40.0,
            "workspace": {},
        }
        ports = Ports(self.robot, self.state, self.features, self.instruction, self.action, self.cycle)
        options = LoopSettings(**(defaults | settings))
        self.loop = ControlLoop(self.clock, self.head, options, ports, 7, needed_cameras=needed_cameras)
        self.feature_seq = 0

    def feed_robot(self) -> None:
        self.robot.send(self.spec)

    def feed_state(self, values: Any = (0.0, 0.0), age_ms: float = 0.0, **changes: Any) -> None:
        stamp_ns = self.clock.now_ns() - round(age_ms * NS_PER_MS)
        self.state.send(State(1, stamp_ns, np.array(values, dtype=np.float64), **changes))

    def feed_features(self, instruction_id: int = 1, age_ms: float = 100.0, **changes: Any) -> None:
        self.feature_seq += 1
        now_ns = self.clock.now_ns()
        fields = {
            "seq": self.feature_seq,
            "stamp_ns": now_ns,
            "frame_seq": self.feature_seq,
            "frame_stamp_ns": now_ns - round(age_ms * NS_PER_MS),
            "session": 7,
            "instruction_id": instruction_id,
            "encoder_epoch": 1,
            "policy_id": "policy",
            "tokens": np.ones((1, 4), dtype=np.float32),
            "view_age_ms": {"front": 0.0},
            "encode_ms": 50.0,
        }
        self.features.send(Features(**(fields | changes)))

    def tick(self, missed: int = 0) -> Any:
        self.clock.advance(PERIOD_NS)
        return self.loop.tick(Tick(self.clock.now_ns(), 0, missed))

    def healthy_tick(self, instruction_id: int = 1, state: Any = (0.0, 0.0)) -> Any:
        """A tick with fresh state and features."""
        self.clock.advance(PERIOD_NS)
        self.feed_state(state)
        self.feed_features(instruction_id)
        return self.loop.tick(Tick(self.clock.now_ns(), 0, 0))

    def running(self) -> LoopRig:
        """In RUN, acting on instruction 1."""
        self.feed_robot()
        self.loop.say("touch the red block")
        assert self.healthy_tick().mode == "RUN"
        return self
