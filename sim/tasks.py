"""What the table-top can be asked for: the tasks, what a text means, and balanced lists of episodes.

Knows English for six kinds of task. Refuses to know physics. Text it does not understand gives None, never a guess.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from control.errors import ConfigError
from sim.options import seed_number
from sim.scene import COLOURS
from sim.wordings import SEEN, UNSEEN

Split = Literal["seen", "unseen"]
KINDS = ("touch", "pick", "bin", "push-left", "push-right", "stack")
_TEMPLATES = {"seen": SEEN, "unseen": UNSEEN}

_NOUNS = {"block", "cube", "one"}
_BIN = {"bin", "box"}
_TOUCH = {
    *("touch", "touches", "touching", "tap", "taps", "tapping", "reach", "reaches", "reaching"),
    *("press", "pressing", "poke", "poking", "finger", "fingers", "fingertip", "fingertips"),
}
_PICK = {"pick", "lift", "raise", "grab", "grasp", "hold", "take", "off", "table"}
_PLACE = {"put", "place", "drop", "throw", "move", "goes", "in", "into", "with", "down", "set", *_BIN}
_ON = {"on", "onto"}
_PUSH = {"push", "slide", "shove", "nudge", "toward", "towards", "side", "left", "right"}
_STACK = {"stack", *_ON}
# All that may stand around them. A word that is not here ("but", "next", "away") may turn the meaning around.
_PLAIN = {
    *("a", "again", "and", "arm", "at", "can", "could", "do", "find", "for", "give", "go", "gripper", "hand", "i"),
    *("is", "it", "its", "just", "kindly", "let", "lets", "lightly", "me", "move", "now", "of", "on", "once", "out"),
    *("over", "please", "put", "quickly", "gently", "slowly", "carefully", "rest", "robot", "softly", "that", "the"),
    *("then", "this", "tip", "to", "top", "up", "us", "want", "would", "you", "your"),
    *_NOUNS,
    *COLOURS,
}
_REACH = {"reach", "reaching"}
# kind -> (words of which one must be there, words that may be there)
_GRAMMAR: dict[str, tuple[set[str], set[str]]] = {
    "touch": (_TOUCH, _PLAIN | _TOUCH | {"take", "with"}),
    "pick": (_PICK - {"off", "table", "take"} | {"take"}, _PLAIN | _PICK | _REACH),
    "bin": (_BIN, (_PLAIN | _PICK | _PLACE | _REACH) - {"out"}),
    "push": (_PUSH - {"toward", "towards", "side", "left", "right"} | {"move"}, _PLAIN | _PUSH | _REACH),
    "stack": (_STACK, _PLAIN | _PICK | _PLACE - _BIN | _STACK),
}


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to do with the block `colour`; `on` is the block to stack it on."""

    kind: str
    colour: str
    on: str | None = None


def parse(text: str) -> Task | None:
    """The task that a text asks for; None where it names too few or too many colours or things, or has other words."""
    words = re.findall(r"\w+", text.lower().replace("'", "").replace("\u2019", ""))
    used = set(words)
    colours = list(dict.fromkeys(word for word in words if word in COLOURS))
    kind = _kind(used, len(colours))
    if kind is None:
        return None
    needed, allowed = _GRAMMAR["push" if kind.startswith("push") else kind]
    if not used & needed or not used <= allowed or sum(word in _NOUNS for word in words) > len(colours):
        return None
    if kind != "stack":
        return Task(kind, colours[0])
    ons = [i for i, word in enumerate(words) if word in _ON]
    if len(ons) != 1 or [word for word in words[: ons[0]] if word in COLOURS] != colours[:1]:
        return None  # "on the red one put the blue one" and "red on blue on green" are not understood
    return Task("stack", colours[0], colours[1])


def _kind(used: set[str], colours: int) -> str | None:
    if colours == 2:
        return "stack"
    if colours != 1:
        return None
    sides = used & {"left", "right"}
    if used & _BIN:
        return "bin" if not sides else None
    if sides:
        return f"push-{sides.pop()}" if len(sides) == 1 else None
    is_pick = used & (_PICK - {"take", "off", "table"}) or {"take", "up"} <= used
    return "pick" if is_pick else "touch"


def named(kinds: str) -> tuple[str, ...]:
    """The kinds in a list with commas; `all` for every one, `push` for both sides. Raises ConfigError."""
    chosen: list[str] = []
    for word in kinds.split(","):
        match word.strip():
            case "all":
                chosen += KINDS
            case "push":
                chosen += ["push-left", "push-right"]
            case kind if kind in KINDS:
                chosen.append(kind)
            case other:
                raise ConfigError(f"unknown task '{other}'; known: {', '.join(KINDS)}, push for both sides, all")
    return tuple(dict.fromkeys(chosen))


def wordings(task: Task, split: Split) -> tuple[str, ...]:
    """Every wording of a task; `unseen` ones are kept from training. Raises ValueError naming what is known."""
    if task.colour not in COLOURS:
        raise ValueError(f"colour must be one of {', '.join(COLOURS)}, got '{task.colour}'")
    if split not in _TEMPLATES:
        raise ValueError(f"split must be one of {', '.join(_TEMPLATES)}, got '{split}'")
    if task.kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got '{task.kind}'")
    return tuple(template.format(first=task.colour, second=task.on) for template in _TEMPLATES[split][task.kind])


def every(kinds: Sequence[str] = KINDS) -> list[Task]:
    """Every task of these kinds, over the colours."""
    pairs = list(itertools.permutations(COLOURS, 2))
    return [
        task
        for kind in kinds
        for task in ([Task(kind, *pair) for pair in pairs] if kind == "stack" else [Task(kind, c) for c in COLOURS])
    ]


def all_wordings(split: Split, kinds: Sequence[str] = KINDS) -> list[str]:
    """What a tokenizer is made from."""
    return [text for task in every(kinds) for text in wordings(task, split)]


def sample_task(rng: np.random.Generator, kinds: Sequence[str] = KINDS) -> Task:
    """A random task, every kind as likely."""
    kind = kinds[int(rng.integers(len(kinds)))]
    first, second = rng.permutation(len(COLOURS))[:2]
    return Task(kind, COLOURS[first], COLOURS[second] if kind == "stack" else None)


def sample_wording(rng: np.random.Generator, task: Task, split: Split = "seen") -> str:
    """A random wording of a task."""
    choices = wordings(task, split)
    return choices[rng.integers(len(choices))]


def episodes(seed: int, count: int, split: Split = "seen", kinds: Sequence[str] = KINDS) -> list[tuple[int, Task, str]]:
    """`count` episodes (seed of the scene, task, text) in random order, as many of each task as `count` allows."""
    rng = np.random.default_rng([seed_number(seed), 0x7A5C])
    chosen: list[Task] = []
    while len(chosen) < count:
        by_kind = [list(rng.permutation(np.array(every([kind]), dtype=object))) for kind in kinds]
        longest = max(len(tasks) for tasks in by_kind)
        chosen += [tasks[i % len(tasks)] for i in range(longest) for tasks in by_kind]
    chosen = chosen[:count]
    order = rng.permutation(count)
    return [(int(rng.integers(2**31)), chosen[i], sample_wording(rng, chosen[i], split)) for i in order]
