"""What a robot may say about its shape, so that the page can draw it in 3-D from its joint values.

Knows links and joints; refuses to know meshes and who draws. A robot that has no `links` is simply not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from control.errors import RobotError

_MAX_LINKS = 128


@dataclass(frozen=True, slots=True)
class Link:
    """A frame of the robot, joined to its parent by at most one joint. Frames are parallel where all joints are zero.

    It is drawn as a line from the parent's origin to its own. A joint turns (rad) or slides (m) the link by `gain`
    times the state of that name; without `state` it is fixed.
    """

    name: str
    parent: str  # a link before this one; empty: the base, x forward, y left, z up
    origin: tuple[float, float, float]  # m, in the parent's frame
    state: str = ""
    axis: tuple[float, float, float] = (0.0, 0.0, 1.0)
    kind: Literal["turn", "slide"] = "turn"
    gain: float = 1.0


@runtime_checkable
class HasLinks(Protocol):
    """What a robot adds that can be drawn. Known before `connect`, and never changes."""

    @property
    def links(self) -> Sequence[Link]: ...


def drawable(robot: Any) -> list[dict[str, Any]]:
    """The links of a robot for JSON, [] where it has none. Raises RobotError naming the link and its fault."""
    if not isinstance(robot, HasLinks):
        return []
    links, known = list(robot.links), {""}
    if len(links) > _MAX_LINKS:
        raise RobotError(f"robot.links: expected at most {_MAX_LINKS}, got {len(links)}")
    states = {"", *robot.spec.state_names}
    for link in links:
        if not link.name or link.name in known:
            raise RobotError(f"robot.links: expected names that differ, got '{link.name}' again or empty")
        if link.parent not in known:
            raise RobotError(f"robot.links: the parent '{link.parent}' of '{link.name}' does not stand before it")
        if link.state not in states:
            raise RobotError(f"robot.links: '{link.name}' moves with '{link.state}', which is no state of the robot")
        if not all(math.isfinite(value) for value in (*link.origin, *link.axis, link.gain)) or not any(link.axis):
            raise RobotError(f"robot.links: '{link.name}' has an origin, axis or gain that is no length or direction")
        known.add(link.name)
    return [asdict(link) for link in links]
