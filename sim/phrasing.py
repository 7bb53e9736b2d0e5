"""Other ways to say a seen sentence, for training: the words stay those of seen sentences, their order and choice vary.

Sixteen sentences a task are soon known by heart, each by one word: a policy trained on nothing else read "tap on it" as
stacking, for "on" had never stood in another sentence with a comma. A variation that is one of the unseen sentences, or
does not mean the task any more, is not used.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np

from sim.tasks import Task, parse, wordings

_NOUNS = ("block", "cube", "one")
_BEFORE_THE = {  # interchangeable in front of "the"
    "touch": ("touch", "tap", "tap on", "press", "press on", "poke"),
    "pick": ("pick up", "lift", "lift up", "grab", "grasp", "raise"),
    "bin": ("put", "place", "drop", "throw"),
    "push": ("push", "slide", "shove", "nudge"),
    "stack": ("stack", "put", "place", "set"),
}
_BEFORE_IT = {"touch": ("touch", "tap", "tap on", "press", "press on", "poke"), "pick": ("lift", "raise")}
_ONTO = ("on", "onto", "on top of")
_SIDES = ("{0}", "to the {0}", "over to the {0}", "toward the {0}", "to the {0} side", "toward the {0} side")
_FRONT = ("please ", "can you ", "now ", "go and ")
_BACK = (" please", " for me")


def varied(rng: np.random.Generator, task: Task, text: str) -> str:
    """A seen sentence said a little differently, or as it is."""
    kind = "push" if task.kind.startswith("push") else task.kind
    new = re.sub(r"\b(block|cube|one)\b", lambda match: _pick(rng, match[0], _NOUNS, 0.4), text)
    for after, choices in (("the", _BEFORE_THE[kind]), ("it", _BEFORE_IT.get(kind, ()))):
        if choices:
            longest_first = "|".join(sorted(choices, key=len, reverse=True))
            pattern = rf"\b({longest_first})(?= {after}\b)"
            new = re.sub(pattern, lambda match, among=choices: _pick(rng, match[0], among, 0.6), new, count=1)
    if kind == "stack":
        new = re.sub(r"\b(on top of|onto|on)\b", lambda match: _pick(rng, match[0], _ONTO, 0.6), new)
    if kind == "bin":
        new = re.sub(r"\b(bin|box)\b", lambda match: _pick(rng, match[0], ("bin", "box"), 0.5), new)
        new = re.sub(r"\b(in|into)(?= the\b)", lambda match: _pick(rng, match[0], ("in", "into"), 0.5), new)
    if kind == "push" and rng.random() < 0.6:
        side = task.kind.removeprefix("push-")
        new = re.sub(rf"(over )?(to|toward) the {side}( side)?$|\b{side}$", _any(rng, _SIDES).format(side), new)
    if rng.random() < 0.25:
        new = re.sub(rf"^([a-z ]+?) (the {task.colour} \w+)\b", r"\2, \1 it", new)
        new = re.sub(r"\b(pick|lift) up it\b", r"\1 it up", new)
    if rng.random() < 0.35 and not new.startswith(_FRONT) and not new.startswith("the "):
        new = _any(rng, _FRONT) + new
    elif rng.random() < 0.3 and new.startswith("the ") and "," in new:
        new = "now " + new
    if rng.random() < 0.25 and not new.endswith(_BACK) and not new.startswith("please"):
        new += _any(rng, _BACK)
    return new if new not in _unseen(task) and parse(new) == task else text


def _pick(rng: np.random.Generator, word: str, choices: tuple[str, ...], chance: float) -> str:
    return _any(rng, choices) if rng.random() < chance else word


def _any(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


@lru_cache(maxsize=256)
def _unseen(task: Task) -> frozenset[str]:
    return frozenset(wordings(task, "unseen"))
