"""The scripted expert: for every task a law from what is, to where the finger tips should go next, in batches.

Stateless: what to do follows from joints and blocks alone, with no phase that is remembered, so it can label any state,
also those that only a learned policy visits, and it recovers from all of them. Closed form on numpy arrays; refuses to
know MuJoCo.

Letters: N situations. States and targets are (N, 7): six angles in rad and the gripper opening in m.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sim.grip import OPEN, SQUEEZE, grip
from sim.kinematics import LOW, MAX_VELOCITY, tip_position, tool_down
from sim.scene import BIN_CENTRE, BIN_SIZE, BLOCK_SIZE
from sim.situation import (
    GRASP,
    HALF,
    HELD_OPENING,
    TRAVEL_HEIGHT,
    Goal,
    Situation,
    between,
    held,
    indices,
    over,
    smoothstep,
)
from sim.tasks import KINDS, Task

CARRY_HEIGHT = 0.150  # m, of the tip with a block between the fingers: its underside is 50 mm above the block tops
LIFT_HEIGHT = 0.200
RELEASE_HEIGHT = 0.105  # m, over the bin
PRESS = 0.004  # m, how far under the top face a touch aims, so that it touches for sure
NARROW, PUSHER = 0.008, 0.028  # m, openings: one narrow tip, two points
BEHIND = 0.046  # m, from the tip to the centre of the block that it is about to push
LEFT_BELOW = 0.045  # m, from a block that was let go to the fingers, before they move sideways
CLEAR = 0.068  # m, between the centres of two blocks that do not touch, however they are turned
PUSH_LIMIT = 0.30  # m, of the block's y: there the push ends
_ARM_RAD_S, _ROLL_RAD_S, _GRIPPER_M_S = 1.2, 1.8, 0.14
PUSH_AHEAD = 0.035  # m, how far beyond itself the pushing tip aims
# Of what is left, a period. A law of high gain turns 5 mm of doubt into a choice between full speed up and down; a head
# that learnt from one (EASE 1, a funnel a third narrower) froze there: 3 of 46 picks, while touch did 47 of 52.
EASE = 0.4


def _turned(now: Situation, tip: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Toward `roll` only above the blocks: fingers that turn between them push one aside."""
    return now.q[:, 5] + (roll - now.q[:, 5]) * smoothstep(tip[:, 2], 0.045, 0.065)


def _touch(now: Situation, tip: np.ndarray) -> Goal:
    goal = over(tip, now.block[:, :2], now.block[:, 2] + HALF - PRESS, TRAVEL_HEIGHT, 0.010, 0.075)
    return Goal(goal, _turned(now, tip, np.zeros(len(tip))), np.full(len(tip), NARROW))


def _pick(now: Situation, tip: np.ndarray) -> Goal:
    gripping = grip(now, tip)
    has = (held(now.q, now.blocks) == now.first)[:, None]
    up = np.concatenate([tip[:, :2], np.full((len(tip), 1), LIFT_HEIGHT)], axis=1)
    return Goal(
        np.where(has, up, gripping.tip),
        np.where(has[:, 0], now.q[:, 5], gripping.roll),
        np.where(has[:, 0], SQUEEZE, gripping.opening),
    )


def _carry(now: Situation, tip: np.ndarray, xy: np.ndarray, low: np.ndarray, near: float, done: np.ndarray) -> Goal:
    """Grip, carry over `xy`, lower to `low`, let go within `near` of it, and once `done` (N,) rise out of the way."""
    gripping = grip(now, tip)
    has = held(now.q, now.blocks) == now.first
    xy = xy + np.where(has[:, None], tip[:, :2] - now.block[:, :2], 0.0)  # the block is to be there, not the tip
    above = over(tip, xy, low, CARRY_HEIGHT, 0.008, 0.065)
    there = (np.hypot(*(xy - tip[:, :2]).T) < near) & (tip[:, 2] < low + 0.010)
    away = np.concatenate([tip[:, :2], np.full((len(tip), 1), CARRY_HEIGHT)], axis=1)
    away[:, 2] = np.where(now.q[:, 6] > 0.066, away[:, 2], tip[:, 2])  # the fingers open before they rise
    return Goal(
        np.select([has[:, None], done[:, None]], [above, away], gripping.tip),
        np.where(has | done, now.q[:, 5], gripping.roll),
        np.select([has, done], [np.where(there, OPEN, SQUEEZE), OPEN], gripping.opening),
    )


def _bin(now: Situation, tip: np.ndarray) -> Goal:
    xy = np.broadcast_to(BIN_CENTRE, (len(tip), 2))
    offset = np.abs(now.block[:, :2] - xy)
    inside = np.maximum(offset[:, 0], offset[:, 1]) < BIN_SIZE / 2 - 0.004
    return _carry(now, tip, xy, np.full(len(tip), RELEASE_HEIGHT), 0.018, inside)


def _stack(now: Situation, tip: np.ndarray) -> Goal:
    base = now.base
    return _carry(now, tip, base[:, :2], base[:, 2] + BLOCK_SIZE + GRASP + 0.003, 0.016, is_stacked(now.block, base))


def is_stacked(block: np.ndarray, base: np.ndarray) -> np.ndarray:
    """(N,) whether `block` (N, 3 or more) lies on `base`."""
    offset = block[:, :3] - base[:, :3]
    return (np.hypot(offset[:, 0], offset[:, 1]) < HALF) & (np.abs(offset[:, 2] - BLOCK_SIZE) < 0.010)


def _push(now: Situation, tip: np.ndarray, side: int) -> Goal:
    """Beside the block, down, and on toward y = `side` * PUSH_LIMIT with two fingers against it."""
    block = now.block
    waist = np.arctan2(tip[:, 1], tip[:, 0])
    roll = np.clip(waist - side * np.pi / 2, -2.3, 2.3)
    gap = side * (block[:, 1] - tip[:, 1])  # how far behind the block the tip is
    beside = np.abs(block[:, 0] - tip[:, 0])
    low = np.full(len(tip), 0.016)
    pushing = (gap > 0.026) & (gap < BEHIND + 0.030) & (beside < 0.016) & (tip[:, 2] < 0.030)
    start = block[:, :2] - np.array([0.0, side * BEHIND])
    approach = over(tip, start, low, TRAVEL_HEIGHT, 0.012, 0.045)
    # Turned and narrow before it is down: else a finger lands on the block.
    unready = np.maximum(smoothstep(np.abs(roll - now.q[:, 5]), 0.25, 0.60), smoothstep(now.q[:, 6], 0.040, 0.055))
    approach[:, 2] = np.maximum(approach[:, 2], 0.016 + 0.060 * unready)
    on = np.stack([block[:, 0], tip[:, 1] + side * PUSH_AHEAD, low], axis=1)
    up = np.concatenate([tip[:, :2], np.full((len(tip), 1), TRAVEL_HEIGHT)], axis=1)
    done = side * block[:, 1] > PUSH_LIMIT
    goal = np.select([done[:, None], pushing[:, None]], [up, on], approach)
    return Goal(goal, np.where(done, now.q[:, 5], roll), np.full(len(tip), PUSHER))


def _put_down(now: Situation, tip: np.ndarray, index: np.ndarray) -> Goal:
    """What was gripped for another task: straight down onto whatever lies below, and let go.

    Not half onto another block, from which it would fall into the way: first aside, away from those that are too near.
    """
    block = now.blocks[np.arange(len(tip)), index]
    others = now.blocks[:, :, :3].copy()
    others[np.arange(len(tip)), index] = 9.0
    apart = block[:, None, :2] - others[..., :2]
    distance = np.hypot(apart[..., 0], apart[..., 1])
    support = np.where(distance < 0.05, others[..., 2] + HALF, 0.0).max(axis=1)
    over_bin = (np.abs(block[:, :2] - BIN_CENTRE) < BIN_SIZE / 2 + 0.03).all(axis=1)
    low = np.maximum(support, np.where(over_bin, 0.05, 0.0)) + HALF + GRASP + 0.003
    near = np.where(distance < CLEAR, 1.0, 0.0) / np.maximum(distance, 1e-6)
    crowded = (near.sum(axis=1) > 0) & (distance.min(axis=1) > 0.02) & ~over_bin
    away = (apart * (near * (CLEAR + 0.01 - distance))[..., None]).sum(axis=1)
    aside = np.concatenate([tip[:, :2] + away, np.maximum(tip[:, 2:], low[:, None] + 0.012)], axis=1)
    down = np.concatenate([tip[:, :2], low[:, None]], axis=1)
    lets_go = ~crowded & (tip[:, 2] < low + 0.010)
    return Goal(np.where(crowded[:, None], aside, down), now.q[:, 5], np.where(lets_go, OPEN, SQUEEZE))


def _leave(now: Situation, tip: np.ndarray) -> Goal:
    """Off a block that was let go, with open fingers: closed too early they would take it along again."""
    up = np.concatenate([tip[:, :2], np.full((len(tip), 1), TRAVEL_HEIGHT)], axis=1)
    return Goal(up, now.q[:, 5], np.full(len(tip), OPEN))


def is_doable(task: Task, blocks: np.ndarray) -> bool:
    """Whether blocks (4, 4) lie so that the task can be done: in reach, not in the bin, not at the end of a push."""
    _, first, second = indices(task)
    for x, y, z, _ in blocks[[first, second] if task.on else [first]]:
        if not (0.20 < x < 0.56 and abs(y) < 0.30 and z < HALF + 0.01):
            return False
        if (np.abs((x - BIN_CENTRE[0], y - BIN_CENTRE[1])) < BIN_SIZE / 2 + 0.03).all():
            return False
    side = {"push-left": 1, "push-right": -1}.get(task.kind, 0)
    return bool(side * blocks[first, 1] < PUSH_LIMIT - 0.09)


def goal(now: Situation) -> Goal:
    """Where to go next in each situation. What is gripped and not wanted is put down first."""
    tip = tip_position(now.q)
    out = Goal(np.empty((len(tip), 3)), np.empty(len(tip)), np.empty(len(tip)))
    for number, kind in enumerate(KINDS):
        rows = np.flatnonzero(now.kind == number)
        if len(rows):
            _fill(out, rows, _law(kind, now.only(rows), tip[rows]))
    gripped = held(now.q, now.blocks)
    grips = np.isin(now.kind, [KINDS.index(kind) for kind in ("pick", "bin", "stack")])
    rows = np.flatnonzero((gripped >= 0) & ~(grips & (gripped == now.first)))
    if len(rows):
        _fill(out, rows, _put_down(now.only(rows), tip[rows], gripped[rows]))
    open_around = (between(now.q, now.blocks, LEFT_BELOW) >= 0) & (now.q[:, 6] >= HELD_OPENING)
    rows = np.flatnonzero(open_around & ~grips)
    if len(rows):
        _fill(out, rows, _leave(now.only(rows), tip[rows]))
    return out


def _law(kind: str, now: Situation, tip: np.ndarray) -> Goal:
    match kind:
        case "touch":
            return _touch(now, tip)
        case "pick":
            return _pick(now, tip)
        case "bin":
            return _bin(now, tip)
        case "stack":
            return _stack(now, tip)
        case _:
            return _push(now, tip, 1 if kind == "push-left" else -1)


def _fill(out: Goal, rows: np.ndarray, part: Goal) -> None:
    out.tip[rows], out.roll[rows], out.opening[rows] = part.tip, part.roll, part.opening


def next_target(now: Situation, period_s: float) -> np.ndarray:
    """The target one period ahead, (N, 7): toward the joints of the goal, the arm's five scaled together."""
    aim = goal(now)
    wanted = tool_down(aim.tip, aim.opening)
    wanted[:, 5] = aim.roll
    step = wanted - now.q
    step[:, :6] *= EASE
    largest = np.abs(step[:, :5]).max(axis=1, keepdims=True)
    step[:, :5] *= np.minimum(1.0, _ARM_RAD_S * period_s / np.maximum(largest, 1e-9))
    for column, speed in ((5, _ROLL_RAD_S), (6, _GRIPPER_M_S)):
        step[:, column] = np.clip(step[:, column], -speed * period_s, speed * period_s)
    return np.clip(now.q + step, LOW, None)


def targets(now: Situation, horizon: int = 8, period_s: float = 0.1) -> np.ndarray:
    """The law rolled forward, (N, H, 7), row 0 due one period ahead: a gripped block moves along, a pushed one too."""
    rows: list[np.ndarray] = []
    most = MAX_VELOCITY * period_s  # from row to row too: fingers that were stopped by a block lie behind their target
    for _ in range(horizon):
        target = next_target(now, period_s)
        if rows:
            target = rows[-1] + np.clip(target - rows[-1], -most, most)
        rows.append(target)
        now = _after(now, target)
    return np.stack(rows, axis=1)


def _after(now: Situation, q: np.ndarray) -> Situation:
    """The situation once the joints are at `q`: enough of the world to roll the law a second ahead."""
    q = q.copy()
    index = np.arange(len(q))
    blocks = now.blocks.copy()
    before, after = tip_position(now.q), tip_position(q)
    gripped = held(now.q, now.blocks)
    between = np.hypot(*(blocks[index, now.first, :2] - after[:, :2]).T) < 0.020
    between &= np.abs(blocks[index, now.first, 2] + GRASP - after[:, 2]) < 0.022
    # Fingers around a block stop at it; commanded further, they grip.
    stops = (between | (gripped >= 0)) & (now.q[:, 6] > 0.9 * BLOCK_SIZE)
    q[:, 6] = np.where(stops, np.maximum(q[:, 6], BLOCK_SIZE), q[:, 6])
    carried = (gripped >= 0) & (q[:, 6] < HELD_OPENING)
    rows = np.flatnonzero(carried)
    blocks[rows, gripped[rows], :3] += after[rows] - before[rows]
    low = np.flatnonzero((gripped >= 0) & ~carried)  # let go: it falls to what lies below
    if len(low):
        fallen, base = blocks[low, gripped[low]], now.only(low).base
        on_base = np.hypot(*(fallen[:, :2] - base[:, :2]).T) < HALF
        blocks[low, gripped[low], 2] = np.where(on_base, base[:, 2] + BLOCK_SIZE, HALF)
    for kind, side in (("push-left", 1), ("push-right", -1)):
        pushed = np.flatnonzero((now.kind == KINDS.index(kind)) & (after[:, 2] < 0.045))
        block = blocks[pushed, now.first[pushed]]
        gap = side * (block[:, 1] - after[pushed, 1])
        met = (np.abs(block[:, 0] - after[pushed, 0]) < 0.035) & (gap > 0.0) & (gap < 0.032)
        blocks[pushed[met], now.first[pushed[met]], 1] = after[pushed[met], 1] + side * 0.032
    return replace(now, q=q, blocks=blocks)
