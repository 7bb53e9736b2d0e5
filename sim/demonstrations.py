"""Endless labelled samples from the table-top: what a policy sees, the state it acts in, and what the expert does.

Every sample is a scene of its own. The images are rendered at one arm pose; the acting state lies `feature_age_ms`
later on a plausible path, because a slow encoder's features are that old when they are acted on. The chunk is the
expert's from the acting state. Poses cover the expert's path and much off it: cloning only the path fails off it.

Letters: N samples, H horizon. Refuses to know networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from control.clock import FakeClock
from sim import expert, kinematics, tasks
from sim.options import seed_number
from sim.placement import place_blocks
from sim.scene import BIN_CENTRE, BIN_HEIGHT, BIN_SIZE, BLOCK_SIZE, CAMERAS, COLOURS, block_corner_radius
from sim.tabletop import HOME, TabletopRobot

PERIOD_S = 0.1
_SUBSTEP_S = 0.02  # resolution of the path that the acting state is taken from
_LAG_S = 0.05  # first-order lag of the servos: kv / kp of the scene
_DEEPEST_OVERLAP = 0.002  # m, of a rendered pose
# How the arm stands when the cameras look. The shares add up to 1.
_POSES = {"path": 0.40, "near": 0.30, "anywhere": 0.24, "home": 0.06}
# Where the arm was going while the features grew old: the named block, another one, or nowhere in particular.
_GOINGS = {"named": 0.75, "other": 0.15, "drift": 0.10}


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """N independent samples. `target_*` is the ground truth about the named block, in the order of `instructions`."""

    images: dict[str, np.ndarray]  # camera -> (N, height, width, 3) uint8 RGB
    instructions: list[str]
    states: np.ndarray  # (N, 7) float32, when the policy acts
    feature_age_ms: np.ndarray  # (N,) float32, from the images to the acting state
    targets: np.ndarray  # (N, H, 7) float32, the expert's chunk from the acting state
    target_uv: dict[str, np.ndarray]  # camera -> (N, 2) float32: the block's centre, u right, v down, in [0, 1)
    target_visible: dict[str, np.ndarray]  # camera -> (N,) bool; where False, uv is clipped into the image
    target_position: np.ndarray  # (N, 3) float32, m


def _choices(rng: np.random.Generator, shares: dict[str, float], count: int) -> np.ndarray:
    return rng.choice(list(shares), size=count, p=list(shares.values()))


def _roll(rng: np.random.Generator, q: np.ndarray, block: np.ndarray, duration_s: np.ndarray) -> np.ndarray:
    """The arm (N, 7) some time (N,) further on the expert's way to `block` (N, 3), behind lagging, noisy servos."""
    q = q.copy()
    goal = q.copy()
    for i in range(round(float(duration_s.max(initial=0.0)) / _SUBSTEP_S)):
        if i % round(PERIOD_S / _SUBSTEP_S) == 0:
            goal = expert.next_target(q, block, PERIOD_S, press=0.0)
            goal[:, :6] += rng.normal(0.0, 0.006, goal[:, :6].shape)
        moving = (duration_s > i * _SUBSTEP_S)[:, None]
        q += np.where(moving, (goal - q) * (1 - np.exp(-_SUBSTEP_S / _LAG_S)), 0.0)
    return np.clip(q, kinematics.LOW, kinematics.HIGH)


def _lowest_tip(tip: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """The height (N,) over which the tip is clear of what lies under it: table, bin or a block."""
    distance = np.linalg.norm(blocks[:, :, :2] - tip[:, None, :2], axis=-1)
    over_block = (distance < block_corner_radius() + 0.016).any(axis=1)
    over_bin = (np.abs(tip[:, :2] - BIN_CENTRE) < BIN_SIZE / 2 + 0.02).all(axis=1)
    return np.where(over_block, BLOCK_SIZE, np.where(over_bin, BIN_HEIGHT + 0.005, 0.006))


def _anywhere(rng: np.random.Generator, blocks: np.ndarray) -> np.ndarray:
    """Tool roughly down, tip anywhere over the table, low more often than high."""
    n = len(blocks)
    tip = rng.uniform((0.15, -0.35, 0.0), (0.60, 0.35, 1.0), (n, 3))
    tip[:, 2] = 0.40 * tip[:, 2] ** 1.5
    tip[:, 2] = np.maximum(tip[:, 2], _lowest_tip(tip, blocks) + 0.003)
    q = kinematics.tool_down(tip, rng.uniform(0.0, 0.08, n))
    crooked = rng.random((n, 1)) < 0.5
    return q + crooked * rng.normal(0.0, (0.05, 0.10, 0.10, 0.25, 0.15, 0.35, 0.0), (n, 7))


def _near(rng: np.random.Generator, blocks: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Tool down, a few centimetres above, on or beside `block` (N, 3)."""
    n = len(blocks)
    tip = block.copy()
    tip[:, :2] += rng.normal(0.0, 0.025, (n, 2)) * rng.uniform(0.0, 2.0, (n, 1))
    tip[:, 2] = rng.uniform(0.0, 1.0, n) ** 1.5 * 0.13
    tip[:, 2] = np.maximum(tip[:, 2], _lowest_tip(tip, blocks) + 0.0005)
    q = kinematics.tool_down(tip, np.where(rng.random(n) < 0.7, expert.GRIPPER, rng.uniform(0.0, 0.08, n)))
    return q + rng.normal(0.0, (0.0, 0.0, 0.0, 0.02, 0.02, 0.10, 0.0), (n, 7))


def _poses(rng: np.random.Generator, blocks: np.ndarray, named: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Arm poses (N, 7) for the cameras, from the mixture above. `named`, `other`: block centres (N, 3)."""
    n = len(blocks)
    kind = _choices(rng, _POSES, n)[:, None]
    block = np.where(rng.random((n, 1)) < 0.72, named, other)
    home = HOME + rng.normal(0.0, 0.04, (n, 7)) * (1, 1, 1, 1, 1, 1, 0.1)
    start = np.where(rng.random((n, 1)) < 0.35, home, _anywhere(rng, blocks))
    path = _roll(rng, start, block, rng.uniform(0.1, 1.6, n))
    q = np.select(
        [kind == "path", kind == "near", kind == "home"],
        [path, _near(rng, blocks, block), home],
        _anywhere(rng, blocks),
    )
    return np.clip(q, kinematics.LOW, kinematics.HIGH)


def _acting_states(
    rng: np.random.Generator, q: np.ndarray, blocks: np.ndarray, named: np.ndarray, other: np.ndarray, age_s: np.ndarray
) -> np.ndarray:
    """The arm (N, 7) `age_s` after it was seen at `q`, with measurement noise."""
    n = len(q)
    going = _choices(rng, _GOINGS, n)[:, None]
    block = np.where(going == "other", other, named)
    drift = q + rng.normal(0.0, 0.25, (n, 7)) * (1, 1, 1, 0.5, 1, 0.5, 0.05) * age_s[:, None]
    later = np.where(going == "drift", drift, _roll(rng, q, block, age_s))
    later[:, :6] += rng.normal(0.0, 0.002, (n, 6))
    later = np.clip(later, kinematics.LOW, kinematics.HIGH)
    tip = kinematics.tip_position(later)
    sunk = tip[:, 2] < _lowest_tip(tip, blocks) - 0.006
    return np.where(sunk[:, None], q, later)


def sample_batches(
    seed: int,
    batch_size: int,
    horizon: int = 8,
    max_age_ms: float = 600.0,
    split: tasks.Split = "seen",
    cameras: Mapping[str, tuple[int, int]] | tuple[str, ...] = CAMERAS,
    image_size: tuple[int, int] = (112, 112),
) -> Iterator[Batch]:
    """Batches without end, the same for the same arguments. Five views of 112x112 cost 5 ms a sample on one core."""
    rng = np.random.default_rng([seed_number(seed), 0xDE30])
    robot = TabletopRobot(FakeClock(), cameras=cameras, image_size=image_size)
    return _batches(rng, robot, batch_size, horizon, max_age_ms, split)


def _batches(
    rng: np.random.Generator, robot: TabletopRobot, n: int, horizon: int, max_age_ms: float, split: tasks.Split
) -> Iterator[Batch]:
    robot.connect()
    while True:
        yield _sample(rng, robot, n, horizon, max_age_ms, split)


def _sample(
    rng: np.random.Generator, robot: TabletopRobot, n: int, horizon: int, max_age_ms: float, split: tasks.Split
) -> Batch:
    blocks = place_blocks(rng, n, separation=0.07)
    named_index = rng.integers(len(COLOURS), size=n)
    other_index = (named_index + rng.integers(1, len(COLOURS), size=n)) % len(COLOURS)
    named, other = blocks[range(n), named_index, :3], blocks[range(n), other_index, :3]
    q = _clear_poses(rng, robot, blocks, named, other)
    age_s = rng.uniform(0.0, max_age_ms / 1000, n)
    states = _acting_states(rng, q, blocks, named, other, age_s)

    cameras = robot.spec.cameras
    images = {name: np.empty((n, *size, 3), dtype=np.uint8) for name, size in cameras.items()}
    uv = {name: np.zeros((n, 2), dtype=np.float32) for name in cameras}
    visible = {name: np.zeros(n, dtype=bool) for name in cameras}
    for i in range(n):
        robot.pose(q[i], blocks[i])
        for name, image in robot.cameras.render().items():
            images[name][i] = image
            visible[name][i] = robot.cameras.sees(name, COLOURS[named_index[i]])
            uv[name][i] = np.clip(np.nan_to_num(robot.cameras.pixel(name, named[i]), nan=0.5), 0.0, 0.9999)
    return Batch(
        images=images,
        instructions=[tasks.sample_instruction(rng, COLOURS[index], split)[1] for index in named_index],
        states=states.astype(np.float32),
        feature_age_ms=(age_s * 1000).astype(np.float32),
        targets=expert.targets(states, named, horizon, PERIOD_S).astype(np.float32),
        target_uv=uv,
        target_visible=visible,
        target_position=named.astype(np.float32),
    )


def _clear_poses(
    rng: np.random.Generator, robot: TabletopRobot, blocks: np.ndarray, named: np.ndarray, other: np.ndarray
) -> np.ndarray:
    """Poses (N, 7) in which the arm overlaps nothing visibly; the last resort after ten draws is the home pose."""
    q = _poses(rng, blocks, named, other)
    wrong = np.arange(len(q))
    for _ in range(10):
        overlapping = []
        for i in wrong:
            robot.pose(q[i], blocks[i])
            if robot.deepest_arm_contact() > _DEEPEST_OVERLAP:
                overlapping.append(i)
        wrong = np.array(overlapping, dtype=int)
        if len(wrong) == 0:
            return q
        q[wrong] = _poses(rng, blocks[wrong], named[wrong], other[wrong])
    q[wrong] = HOME
    return q
