"""The scripted expert: for every task a law from what is, to where the finger tips should go next, in batches.

Stateless: what to do follows from joints and blocks alone, with no phase that is remembered, so it can label any state,
also those that only a learned policy visits, and it recovers from all of them. Closed form on numpy arrays; refuses to
know MuJoCo.

Letters: N situations. States and targets are (N, 7): six angles in rad and the gripper opening in m.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sim.kinematics import LOW, MAX_VELOCITY, tip_position, tool_down
from sim.scene import BIN_CENTRE, BIN_SIZE, BLOCK_SIZE, COLOURS
from sim.tasks import KINDS, Task

HALF = BLOCK_SIZE / 2
TRAVEL_HEIGHT = 0.115  # m, of the tip: 67 mm above the block tops
CARRY_HEIGHT = 0.150  # m, of the tip with a block between the fingers: its underside is 50 mm above the block tops
LIFT_HEIGHT = 0.200
# m, of the tip: above any that holds a block. Fingers half open in mid-air look like ones that have just gripped, until
# features show it: they rise to here while they open. A head that learnt to open on the way down stood at 0.12 m with
# fingers at 42 mm and features a second old (told the truth, 9 of 25 picks; 24 at 100 ms).
OPENING_HEIGHT = 0.225
RELEASE_HEIGHT = 0.105  # m, over the bin
PRESS = 0.004  # m, how far under the top face a touch aims, so that it touches for sure
GRASP = -0.010  # m, of the tip against the centre of the block that it grips
NARROW, OPEN, SQUEEZE, PUSHER = 0.008, 0.080, 0.020, 0.028  # m, openings: one narrow tip, wide, on a block, two points
HELD_OPENING = 0.058  # m: a block between the fingers, gripped
BEHIND = 0.046  # m, from the tip to the centre of the block that it is about to push
LEFT_BELOW = 0.045  # m, from a block that was let go to the fingers, before they move sideways
CLEAR = 0.068  # m, between the centres of two blocks that do not touch, however they are turned
ABOVE = 0.012  # m, over a block, where fingers wait that are not open yet or not centred
PUSH_LIMIT = 0.30  # m, of the block's y: there the push ends
_ARM_RAD_S, _ROLL_RAD_S, _GRIPPER_M_S = 1.2, 1.8, 0.14
PUSH_AHEAD = 0.035  # m, how far beyond itself the pushing tip aims
# Of what is left, a period. A law of high gain turns 5 mm of doubt into a choice between full speed up and down; a head
# that learnt from one (EASE 1, a funnel a third narrower) froze there: 3 of 46 picks, while touch did 47 of 52.
EASE = 0.4
# m: fingers that are turned 0.6 rad or more off the faces of a block squeeze its corners and stop at 65.1 to 66.9. Up
# to 0.55 they turn it to themselves, and close to 48.
ON_CORNERS = 0.0642
# rad: a step of turning on; the most around a block, then they rise and turn on to the end; the most as they go down.
TURN_ON, ROLL_MAX, ROLL_END, ROLL_ABOVE = 0.45, 1.86, 2.2, 0.3
# rad: every eighth of a turn there is a span of the roll in which the fingers close; between two of them they turn on.
# As long as they feel no faces, they drift through the span.
SPAN, SPAN_FROM, SPAN_EVERY, DRIFT = 0.39, -0.10, np.pi / 4, 0.15


@dataclass(frozen=True, slots=True, eq=False)
class Situation:
    """N times the table: joints, blocks, and what is asked for."""

    q: np.ndarray  # (N, 7)
    blocks: np.ndarray  # (N, 4, 4): x, y, z, yaw in the order of COLOURS
    kind: np.ndarray  # (N,) index into KINDS
    first: np.ndarray  # (N,) index into COLOURS
    second: np.ndarray  # (N,) the block to stack on; any other index where there is none

    @staticmethod
    def of(q: np.ndarray, blocks: np.ndarray, tasks: list[Task]) -> Situation:
        kind, first, second = (np.array(part) for part in zip(*(indices(task) for task in tasks), strict=True))
        return Situation(np.asarray(q, dtype=np.float64), np.asarray(blocks, dtype=np.float64), kind, first, second)

    def only(self, rows: np.ndarray) -> Situation:
        return Situation(self.q[rows], self.blocks[rows], self.kind[rows], self.first[rows], self.second[rows])

    @property
    def block(self) -> np.ndarray:
        return self.blocks[np.arange(len(self.q)), self.first]

    @property
    def base(self) -> np.ndarray:
        return self.blocks[np.arange(len(self.q)), self.second]


@dataclass(frozen=True, slots=True, eq=False)
class Goal:
    """Where the tip should go next, with which roll of the wrist and which opening."""

    tip: np.ndarray  # (N, 3)
    roll: np.ndarray  # (N,)
    opening: np.ndarray  # (N,)


def indices(task: Task) -> tuple[int, int, int]:
    """(kind, first, second) as numbers."""
    first = COLOURS.index(task.colour)
    return KINDS.index(task.kind), first, COLOURS.index(task.on) if task.on else (first + 1) % len(COLOURS)


def _smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def held(q: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Which block the fingers grip, (N,): an index into COLOURS, -1 for none."""
    closed = (q[:, 6] < HELD_OPENING) & (q[:, 6] > 0.6 * BLOCK_SIZE)
    return np.where(closed, _between(q, blocks), -1)


def _between(q: np.ndarray, blocks: np.ndarray, below: float = 0.022) -> np.ndarray:
    """Which block lies between the fingers, gripped or not, or up to `below` m under there, (N,): -1 for none."""
    tip = tip_position(q)
    offset = blocks[:, :, :3] - (tip[:, None] - (0.0, 0.0, GRASP))
    inside = (np.hypot(offset[..., 0], offset[..., 1]) < 0.024) & (offset[..., 2] < 0.022) & (offset[..., 2] > -below)
    return np.where(inside.any(axis=1), inside.argmax(axis=1), -1)


def _over(tip: np.ndarray, xy: np.ndarray, low: np.ndarray, travel: float, near: float, far: float) -> np.ndarray:
    """Along a funnel that is `travel` high far from `xy` and ends at `low` above it.

    A tip under the funnel rises before it moves sideways, so nothing is hit on the way.
    """
    offset = xy - tip[:, :2]
    height = low + (travel - low) * _smoothstep(np.hypot(offset[:, 0], offset[:, 1]), near, far)
    sideways = 1 - _smoothstep(height - tip[:, 2], 0.012, 0.045)
    return np.concatenate([tip[:, :2] + sideways[:, None] * offset, height[:, None]], axis=1)


def _turned(now: Situation, tip: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Toward `roll` only above the blocks: fingers that turn between them push one aside."""
    return now.q[:, 5] + (roll - now.q[:, 5]) * _smoothstep(tip[:, 2], 0.045, 0.065)


def _touch(now: Situation, tip: np.ndarray) -> Goal:
    goal = _over(tip, now.block[:, :2], now.block[:, 2] + HALF - PRESS, TRAVEL_HEIGHT, 0.010, 0.075)
    return Goal(goal, _turned(now, tip, np.zeros(len(tip))), np.full(len(tip), NARROW))


def _grip(now: Situation, tip: np.ndarray) -> Goal:
    """To the block with open fingers, around it, and closed; on corners open again, turned on, and closed again.

    The fingers open 1 cm wider than a block is from corner to corner, so they need not be turned to go down around it.
    How a block is turned is felt, not seen: on corners the fingers stop at 65 to 67 mm, on faces at 48. They drift as
    they close, and where a span of the roll ends without faces felt, they open and turn on to the next one: so the roll
    tells what was tried, and nothing is remembered. Laws that were not learnt: to the faces at once (wants to see how a
    block lies that is 17 pixels wide: hardly learnt in hours, 13 of 60 picks ended standing still between closing and
    turning); a span of 0.15 rad (a head that practised it closed nowhere: 8 of 20 told the truth); turning while the
    fingers loosen, with no span (it stood where that ends and closing begins, turning for good: 6 of 14); to turn on
    wherever 64 to 68 mm are read (a head read them on the way past: 21 of 25, hunting from span to span); to stop at
    1.5 rad and rise from there, slowly at first (it stood there: 18 of 25, and 23 with 75 minutes less).
    """
    block, roll, opening = now.block, now.q[:, 5], now.q[:, 6]
    low = np.maximum(block[:, 2] + GRASP, 0.010)
    distance = np.hypot(*(block[:, :2] - tip[:, :2]).T)
    closing = opening < 0.068
    around = np.where(closing, distance < 0.020, distance < 0.014) & (tip[:, 2] < low + 0.014) & (opening > 0.036)
    is_spent = np.abs(roll) > ROLL_MAX
    is_between = (roll - SPAN_FROM) % SPAN_EVERY > SPAN
    feels_none = around & (opening > ON_CORNERS)
    turning = feels_none & is_between | is_spent
    turn = np.where(turning, np.minimum(roll + TURN_ON, ROLL_END), roll + np.where(feels_none, DRIFT, 0.0))
    turn *= 1 - _smoothstep(tip[:, 2], 0.045, 0.065)  # above the blocks back to none
    unready = 1 - _smoothstep(opening, 0.062, 0.074)  # open before the fingers are down: else one lands on the block
    unready = np.maximum(unready, _smoothstep(distance, 0.004, 0.012))  # and centred: 6 mm are left beside a corner
    most = ROLL_MAX + (ROLL_ABOVE - ROLL_MAX) * _smoothstep(tip[:, 2], 0.030, 0.045)
    unready = np.maximum(unready, _smoothstep(np.abs(roll) - most, 0.0, 0.1))  # one that turned along: up, and back
    bottom = np.where(around & ~is_spent, low, low + unready * np.clip(block[:, 2] + HALF + ABOVE - low, 0.0, None))
    goal = _over(tip, block[:, :2], bottom, TRAVEL_HEIGHT, 0.010, 0.065)
    narrow = np.where(around, 0.0, 1 - _smoothstep(opening, HELD_OPENING, 0.0635))
    goal[:, 2] += narrow * (OPENING_HEIGHT - goal[:, 2])
    return Goal(goal, turn, np.where(around & ~turning, SQUEEZE, OPEN))


def _pick(now: Situation, tip: np.ndarray) -> Goal:
    grip = _grip(now, tip)
    has = (held(now.q, now.blocks) == now.first)[:, None]
    up = np.concatenate([tip[:, :2], np.full((len(tip), 1), LIFT_HEIGHT)], axis=1)
    return Goal(
        np.where(has, up, grip.tip),
        np.where(has[:, 0], now.q[:, 5], grip.roll),
        np.where(has[:, 0], SQUEEZE, grip.opening),
    )


def _carry(now: Situation, tip: np.ndarray, xy: np.ndarray, low: np.ndarray, near: float, done: np.ndarray) -> Goal:
    """Grip, carry over `xy`, lower to `low`, let go within `near` of it, and once `done` (N,) rise out of the way."""
    grip = _grip(now, tip)
    has = held(now.q, now.blocks) == now.first
    xy = xy + np.where(has[:, None], tip[:, :2] - now.block[:, :2], 0.0)  # the block is to be there, not the tip
    over = _over(tip, xy, low, CARRY_HEIGHT, 0.008, 0.065)
    there = (np.hypot(*(xy - tip[:, :2]).T) < near) & (tip[:, 2] < low + 0.010)
    away = np.concatenate([tip[:, :2], np.full((len(tip), 1), CARRY_HEIGHT)], axis=1)
    away[:, 2] = np.where(now.q[:, 6] > 0.066, away[:, 2], tip[:, 2])  # the fingers open before they rise
    return Goal(
        np.select([has[:, None], done[:, None]], [over, away], grip.tip),
        np.where(has | done, now.q[:, 5], grip.roll),
        np.select([has, done], [np.where(there, OPEN, SQUEEZE), OPEN], grip.opening),
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
    approach = _over(tip, start, low, TRAVEL_HEIGHT, 0.012, 0.045)
    # Turned and narrow before it is down: else a finger lands on the block.
    unready = np.maximum(_smoothstep(np.abs(roll - now.q[:, 5]), 0.25, 0.60), _smoothstep(now.q[:, 6], 0.040, 0.055))
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
    open_around = (_between(now.q, now.blocks, LEFT_BELOW) >= 0) & (now.q[:, 6] >= HELD_OPENING)
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
