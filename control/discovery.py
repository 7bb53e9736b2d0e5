"""Robots by name, through Python entry points: somebody's own arm is a small package of theirs.

A package adds `[project.entry-points."saccade.robots"] my-arm = "my_arm:MyArm"`, where `MyArm(clock, **options)` is a
Robot.
"""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import Any

from control.clock import Clock
from control.errors import ConfigError, RobotError, SaccadeError
from control.robot import Robot

GROUP = "saccade.robots"
REMOTE = "remote"  # not a robot: the run waits for a host that somebody else starts


def installed_robots() -> list[str]:
    return sorted(point.name for point in entry_points(group=GROUP))


def make_robot(name: str, clock: Clock, options: dict[str, Any]) -> Robot:
    """The robot of that name, not yet connected. Raises RobotError naming the installed ones or the fault."""
    points = [point for point in entry_points(group=GROUP) if point.name == name]
    if not points:
        known = [*installed_robots(), REMOTE]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise RobotError(
            f"robot '{name}' is not installed{hint} Installed: {', '.join(known)}."
            f" A package adds a robot through the entry point group '{GROUP}'"
        )
    try:
        robot = points[0].load()(clock, **options)
    except ConfigError as error:
        raise RobotError(f"robot '{name}' does not take these robot.options {options}: {error}") from None
    except SaccadeError:
        raise
    except (ImportError, AttributeError) as error:
        raise RobotError(
            f"robot '{name}' ({points[0].value}) cannot be imported: {error}; is its extra installed?"
        ) from None
    except (TypeError, ValueError) as error:
        raise RobotError(f"robot '{name}' does not take these robot.options {options}: {error}") from None
    if not isinstance(robot, Robot):
        raise RobotError(f"robot '{name}' ({points[0].value}) is no control.robot.Robot: methods are missing")
    return robot
