"""How things stand in a task, for a person who asks why an episode failed. Pure; refuses to know physics and files."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim import expert
from sim.grip import TURN_ON
from sim.judging import LIFT, PUSH
from sim.kinematics import tip_position
from sim.scene import BIN_CENTRE, BIN_SIZE, BLOCK_SIZE, COLOURS
from sim.situation import HELD_OPENING, Situation, held
from sim.tasks import Task

_KEEPS = ("pick", "bin", "stack")


def phase(q: np.ndarray, blocks: np.ndarray, task: Task) -> str:
    """What the expert would do next with joints (7,) and blocks (4, 4).

    approach, press, grip, turn (on around a block whose corners were felt), lift, carry, release, push, retreat, or put
    down what is not wanted in the hand.
    """
    now = Situation.of(q[None], blocks[None], [task])
    aim, tip = expert.goal(now), tip_position(q[None])[0]
    block, gripped = now.block[0], int(held(now.q, now.blocks)[0])
    is_open = bool(aim.opening[0] > HELD_OPENING)
    if gripped >= 0 and not (task.kind in _KEEPS and gripped == now.first[0]):
        return "put down"
    if gripped >= 0:
        return "lift" if task.kind == "pick" else "release" if is_open else "carry"
    beside = float(np.hypot(*(block[:2] - tip[:2])))
    if task.kind == "touch":
        return "approach" if beside > BLOCK_SIZE / 2 else "press"
    if task.kind.startswith("push"):
        side = 1 if task.kind == "push-left" else -1
        if side * block[1] > expert.PUSH_LIMIT:
            return "retreat"
        is_behind = abs(block[0] - tip[0]) < 0.016 and 0 < side * (block[1] - tip[1]) < expert.BEHIND + 0.030
        return "push" if is_behind and tip[2] < 0.030 else "approach"
    if task.kind == "stack" and bool(expert.is_stacked(now.block, now.base)[0]):
        return "retreat"
    if task.kind == "bin" and float(np.abs(block[:2] - BIN_CENTRE).max()) < BIN_SIZE / 2 - 0.004:
        return "retreat"
    if aim.roll[0] - now.q[0, 5] > 0.99 * TURN_ON:
        return "turn"
    return "approach" if is_open else "grip"


def explained(
    q: np.ndarray, blocks: np.ndarray, task: Task | None, touched: tuple[str, ...], before: dict[str, Any] | None
) -> dict[str, Any]:
    """Phase, distances in m and what was touched, for JSON; `before` is the same at the start of the episode."""
    tip = tip_position(q[None])[0]
    gripped = int(held(q[None], blocks[None])[0])
    values: dict[str, Any] = {
        "tip": _rounded(tip),
        "joints": _rounded(q),
        "blocks": {colour: _rounded(row[:3]) for colour, row in zip(COLOURS, blocks, strict=True)},
        "holds": COLOURS[gripped] if gripped >= 0 else None,
        "touched": list(touched),
    }
    if task is None:
        return values | {"ended": "the instruction is no task"}
    block = blocks[COLOURS.index(task.colour), :3]
    start = None if before is None else np.array(before["blocks"][task.colour])
    wrong = task.kind == "touch" and bool(touched) and touched[0] != task.colour
    next_phase = phase(q, blocks, task)
    return values | {
        "task": " ".join((task.kind, task.colour, *(("on", task.on) if task.on else ()))),
        "phase": next_phase,
        "tip_to_block_m": round(float(np.linalg.norm(block - tip)), 4),
        "block_to_goal_m": None if start is None else round(_to_goal(task, block, blocks, start), 4),
        "ended": "another block first" if wrong else f"time up: {next_phase}",
    }


def _to_goal(task: Task, block: np.ndarray, blocks: np.ndarray, start: np.ndarray) -> float:
    """What is left to do with the block, m; 0 for a touch."""
    match task.kind:
        case "pick":
            return max(0.0, BLOCK_SIZE / 2 + LIFT - float(block[2]))
        case "bin":
            return float(np.hypot(*(block[:2] - BIN_CENTRE)))
        case "stack":
            assert task.on is not None
            return float(np.linalg.norm(block - blocks[COLOURS.index(task.on), :3] - (0.0, 0.0, BLOCK_SIZE)))
        case "push-left" | "push-right":
            moved = float(block[1] - start[1])
            return max(0.0, PUSH - (moved if task.kind == "push-left" else -moved))
    return 0.0


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]
