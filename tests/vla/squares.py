"""A training task small enough for a test: go to the coloured square that the instruction names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from control.messages import RobotSpec

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220)}
WORDINGS = tuple(f"{verb} the {colour} block" for verb in ("pick up", "go to") for colour in COLOURS)
STATES = ("j1", "j2", "j3", "j4", "j5", "j6", "gripper")
HORIZON, PERIOD_S = 8, 0.1
FACTS = ("x_m", "y_m")


@dataclass(frozen=True, slots=True, eq=False)
class SquaresTruth:
    uv: dict[str, np.ndarray]
    visible: dict[str, np.ndarray]
    facts: np.ndarray
    turn: dict[str, np.ndarray] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SquaresRehearsal:
    facts: np.ndarray
    states: np.ndarray
    feature_age_ms: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class SquaresBatch:
    images: dict[str, np.ndarray]
    image_index: np.ndarray
    instructions: list[str]
    states: np.ndarray
    feature_age_ms: np.ndarray
    targets: np.ndarray
    truth: SquaresTruth | None
    windows: np.ndarray | None = None
    rehearsal: SquaresRehearsal | None = None


def robot(views: int = 5, side: int = 112) -> RobotSpec:
    return RobotSpec(
        name="squares",
        cameras={f"view{index}": (side, side) for index in range(views)},
        state_names=STATES,
        action_names=STATES,
        action_low=np.full(7, -3.0),
        action_high=np.full(7, 3.0),
        max_velocity=np.full(7, 2.0),
        action_period_s=PERIOD_S,
    )


def batches(seed: int, size: int, views: int = 5, side: int = 112, acting: int = 1) -> Iterator[SquaresBatch]:
    """One sample a frame. Each view shows the table (0.4 x 0.4 m) with an offset of its own; squares may leave it."""
    rng = np.random.default_rng(seed)
    names = list(COLOURS)
    shifts = np.random.default_rng(7).uniform(-0.15, 0.15, (views, 2))
    half = side // 14
    while True:
        spots = rng.uniform(0.05, 0.95, (size, len(names), 2))
        chosen = rng.integers(len(names), size=size)
        instructions = [WORDINGS[rng.integers(2) * 3 + index] for index in chosen]
        images, uv, visible = {}, {}, {}
        for view in range(views):
            frames = np.full((size, side, side, 3), 128, dtype=np.uint8)
            frames += rng.integers(0, 12, (size, side, side, 3), dtype=np.uint8)
            for sample in range(size):
                for index, name in enumerate(names):
                    u, v = ((spots[sample, index] + shifts[view]) * side).astype(int)
                    frames[sample, max(0, v - half) : max(0, v + half), max(0, u - half) : max(0, u + half)] = COLOURS[
                        name
                    ]
            place = spots[np.arange(size), chosen] + shifts[view]
            images[f"view{view}"] = frames
            uv[f"view{view}"] = place.astype(np.float32)[:, None]
            visible[f"view{view}"] = ((place >= 0) & (place < 1)).all(axis=1)[:, None]
        position = np.zeros((size, 1, 3), dtype=np.float32)
        position[:, 0, :2] = (spots[np.arange(size), chosen] - 0.5) * 0.4
        states = rng.normal(0, 0.5, (size, acting, 7)).astype(np.float32)
        goal = np.zeros((size, 1, 1, 7), dtype=np.float32)
        goal[:, 0, 0, :2] = position[:, 0, :2] * 5
        fractions = (np.arange(1, HORIZON + 1, dtype=np.float32) / HORIZON)[:, None]
        targets = states[:, :, None] + fractions * (goal - states[:, :, None])
        ages = rng.uniform(0, 600, (size, acting)).astype(np.float32)
        facts = position[:, 0, :2]
        rehearsal = SquaresRehearsal(facts, states[:, 0], ages[:, 0], targets[:, 0])
        truth = SquaresTruth(uv, visible, facts)
        yield SquaresBatch(images, np.arange(size), instructions, states, ages, targets, truth, rehearsal=rehearsal)
