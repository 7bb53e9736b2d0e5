"""How fast weights follow their gradients, and how slowly the weights that are kept follow them."""

from __future__ import annotations

import math

WARM_UP_STEPS = 100
LONGEST_DECAY = 0.998


def learning_rate(highest: float, step: int, done: float) -> float:
    """A warm-up over the first steps, then a cosine that falls while `done` goes from 0 to 1."""
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return highest * min(1.0, (step + 1) / WARM_UP_STEPS) * (0.02 + 0.98 * falling)


def average_decay(count: float) -> float:
    """Of an exponential average after `count` values: short at first, so that it is not the random start."""
    return min(LONGEST_DECAY, (1.0 + count) / (10.0 + count))
