"""A table-top in lockstep, and one with cameras where this machine can render."""

from __future__ import annotations

import os

import pytest

from control.clock import FakeClock
from control.messages import Instruction
from sim import tasks
from sim.tabletop import RenderingUnavailable, TabletopRobot

os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa's software renderer; one core is enough for small images


class Bench:
    """A robot on a clock that moves only when told to."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.robot = TabletopRobot(self.clock)
        self.instruction_id = 0

    def wait(self, seconds: float) -> None:
        """In periods of 0.1 s, as a controller reads the state: physics steps at most 0.25 s a call."""
        for _ in range(round(seconds / 0.1)):
            self.clock.advance(100_000_000)
            self.robot.read_state()

    def say(self, text: str) -> tasks.Task | None:
        self.instruction_id += 1
        self.robot.begin(Instruction(0, 0, 1, self.instruction_id, text))
        return self.robot.task


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture(scope="session")
def can_render() -> None:
    robot = TabletopRobot(FakeClock(), cameras=["top"])
    try:
        robot.connect()
    except RenderingUnavailable as missing:
        pytest.skip(str(missing))
    robot.close()
