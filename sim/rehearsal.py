"""Situations without pictures: what the action side practises on while the eyes are still learning.

The head acts on a few facts that it reads from the features. Given those facts straight from the simulator, blurred, it
can be taught on thousands of situations in the time that one batch of frames takes to encode: any tick of any episode,
for any task, with facts as old as features get.

Letters: B situations, F facts, T ticks, H horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim import expert, facts, tasks
from sim.situation import Situation, indices

_OTHER = 0.3  # of the situations are met under another task than the one that went on
_NOISE_RAD = 0.002


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """What happened, tick by tick: joints (T, 7), block poses (T, 4, 4), and the task as numbers (T, 3)."""

    states: np.ndarray
    blocks: np.ndarray
    asked: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Rehearsal:
    """B situations, each with what was known of it some time before."""

    facts: np.ndarray  # (B, F) float32
    states: np.ndarray  # (B, 7) float32
    feature_age_ms: np.ndarray  # (B,) float32
    targets: np.ndarray  # (B, H, 7) float32


def rehearse(
    rng: np.random.Generator,
    tracks: Sequence[Track],
    count: int,
    horizon: int,
    max_age_ms: float,
    tick_s: float,
    period_s: float,
    kinds: Sequence[str] = tasks.KINDS,
) -> Rehearsal:
    """`count` situations at random from the tracks, every track as likely; before its first tick each one stood.

    An arm waits for its first features. Without old ones at the start of a track, an opening of 45 mm and features a
    second old meant a block just gripped, always: heads stood above the block with half-open fingers (9 of 20 picks).
    """
    half = -(-count // 2)  # each is met at two ages: labels are what takes time
    chosen = rng.integers(len(tracks), size=half)
    ticks = (rng.random(half) * [len(tracks[i].states) for i in chosen]).astype(int)
    asked = np.array([tracks[i].asked[tick] for i, tick in zip(chosen, ticks, strict=True)])
    for row in np.flatnonzero(rng.random(half) < _OTHER):
        asked[row] = indices(tasks.sample_task(rng, kinds))
    now = _situation(tracks, chosen, ticks, asked)
    now.q[:, :6] += rng.normal(0.0, _NOISE_RAD, (half, 6))
    targets = expert.targets(now, horizon, period_s)
    again = np.tile(np.arange(half), 2)[:count]
    oldest = round(max_age_ms / 1000 / tick_s)
    ages = rng.integers(0, oldest + 1, count)
    before = _situation(tracks, chosen[again], np.maximum(ticks[again] - ages, 0), asked[again])
    return Rehearsal(
        facts.blurred(rng, before).astype(np.float32),
        now.q[again].astype(np.float32),
        (ages * tick_s * 1000).astype(np.float32),
        targets[again].astype(np.float32),
    )


def _situation(tracks: Sequence[Track], chosen: np.ndarray, ticks: np.ndarray, asked: np.ndarray) -> Situation:
    pairs = list(zip(chosen, ticks, strict=True))
    states = np.array([tracks[i].states[tick] for i, tick in pairs])
    return Situation(states, np.array([tracks[i].blocks[tick] for i, tick in pairs]), *asked.T)
