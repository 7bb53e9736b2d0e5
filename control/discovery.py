"""Robots by name, through Python entry points: somebody's own arm is a small package of theirs.

A package adds `[project.entry-points."saccade.robots"] my-arm = "my_arm:MyArm"`, where `MyArm(clock, **options)` is a
Robot.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
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
    make = _imported(name, points[0])
    _check_takes(name, make, clock, options)
    try:
        robot = make(clock, **options)
    except ConfigError as error:
        raise RobotError(f"robot '{name}' does not take these robot.options {options}: {error}") from None
    except SaccadeError:
        raise
    except ValueError as error:
        raise RobotError(f"robot '{name}' does not take these robot.options {options}: {error}") from None
    except ImportError as error:
        raise RobotError(_lacks(name, points[0], error)) from error
    except Exception as error:  # a driver may raise anything, and the operator needs one clear line
        fault = f"{type(error).__name__}: {error}; see its driver"
        raise RobotError(f"robot '{name}' could not be made with robot.options {options}: {fault}") from error
    if not isinstance(robot, Robot):
        raise RobotError(f"robot '{name}' ({points[0].value}) is no control.robot.Robot: methods are missing")
    return robot


def _imported(name: str, point: EntryPoint) -> Callable[..., Any]:
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise RobotError(_lacks(name, point, error)) from error
    except Exception as error:  # of a module of somebody else
        fault = f"{type(error).__name__}: {error}"
        raise RobotError(f"robot '{name}' ({point.value}) cannot be imported: {fault}; see its driver") from error


def _lacks(name: str, point: EntryPoint, error: Exception) -> str:
    return f"robot '{name}' ({point.value}) cannot be imported: {error}; is its extra installed?"


def _check_takes(name: str, make: Callable[..., Any], clock: Clock, options: dict[str, Any]) -> None:
    """By its signature: a TypeError out of the call would as well be a driver's own."""
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # written in C, and it gives none
        return
    try:
        signature.bind(clock, **options)
    except TypeError as error:
        raise RobotError(f"robot '{name}' does not take these robot.options {options}: {error}") from None
