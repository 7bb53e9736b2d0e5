"""What the table-top can be asked for: wordings, their meaning, and balanced lists of episodes.

Knows English for one kind of task, touching a block. Refuses to know physics. Text it does not understand gives None,
never a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sim.options import seed_number
from sim.scene import COLOURS

Split = Literal["seen", "unseen"]

_TOUCH = {
    "seen": (
        "touch the {colour} block",
        "touch the {colour} cube",
        "touch the {colour} one",
        "tap the {colour} block",
        "tap on the {colour} cube",
        "reach for the {colour} block",
        "reach out and touch the {colour} cube",
        "put your finger on the {colour} cube",
        "put your finger on the {colour} block",
        "go to the {colour} one and touch it",
        "move to the {colour} block and touch it",
        "please touch the {colour} block",
        "can you touch the {colour} cube",
        "now the {colour} block, tap it",
        "press on the {colour} block",
        "poke the {colour} cube",
    ),
    "unseen": (
        "please tap the {colour} cube once",
        "reach over to the {colour} one",
        "rest a finger on top of the {colour} block",
        "find the {colour} cube and give it a touch",
        "could you poke the {colour} block for me",
        "i want you to touch the cube that is {colour}",
        "go and press the {colour} cube",
        "the {colour} one, touch that",
    ),
}
_TOUCH_WORDS = {
    *("touch", "touches", "touching", "tap", "taps", "tapping", "reach", "reaches", "reaching"),
    *("press", "pressing", "poke", "poking", "finger", "fingers", "fingertip", "fingertips"),
}
_NOUNS = {"block", "cube", "one"}
# All that may stand around them. A word that is not here ("but", "next", "away") may turn the meaning around.
_PLAIN_WORDS = {
    *("a", "again", "and", "arm", "at", "can", "could", "do", "find", "for", "give", "go", "gripper", "hand", "i"),
    *("is", "it", "its", "just", "kindly", "let", "lets", "lightly", "me", "move", "now", "of", "on", "once", "out"),
    *("over", "please", "put", "quickly", "gently", "slowly", "carefully", "rest", "robot", "softly", "that", "the"),
    *("then", "this", "tip", "to", "top", "up", "us", "want", "would", "you", "your"),
}


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to do with one block."""

    kind: str
    colour: str


def parse(text: str) -> Task | None:
    """The task that a text asks for; None where it names no colour, two colours or two things, or has other words."""
    words = re.findall(r"\w+", text.lower().replace("'", "").replace("\u2019", ""))
    colours = {word for word in words if word in COLOURS}
    things = [word for word in words if word in _NOUNS]
    if len(colours) != 1 or len(things) > 1 or not _TOUCH_WORDS.intersection(words):
        return None
    if not colours | _TOUCH_WORDS | _NOUNS | _PLAIN_WORDS >= set(words):
        return None
    return Task("touch", colours.pop())


def wordings(colour: str, split: Split) -> tuple[str, ...]:
    """Every wording of touching the block of that colour; `unseen` ones are kept from training."""
    if colour not in COLOURS:
        raise ValueError(f"colour must be one of {', '.join(COLOURS)}, got '{colour}'")
    if split not in _TOUCH:
        raise ValueError(f"split must be one of {', '.join(_TOUCH)}, got '{split}'")
    return tuple(template.format(colour=colour) for template in _TOUCH[split])


def sample_instruction(rng: np.random.Generator, colour: str | None = None, split: Split = "seen") -> tuple[Task, str]:
    """A random wording, of a random colour unless one is given."""
    colour = colour or COLOURS[rng.integers(len(COLOURS))]
    choices = wordings(colour, split)
    return Task("touch", colour), choices[rng.integers(len(choices))]


def episodes(seed: int, count: int, split: Split = "seen") -> list[tuple[int, Task, str]]:
    """`count` episodes (seed of the scene, task, text) in random order, as many of each colour as `count` allows."""
    rng = np.random.default_rng([seed_number(seed), 0x7A5C])
    colours = [COLOURS[i % len(COLOURS)] for i in range(count)]
    rng.shuffle(colours)
    return [(int(rng.integers(2**31)), *sample_instruction(rng, colour, split)) for colour in colours]
