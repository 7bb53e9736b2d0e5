"""Sentences that are said a little differently in training."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest

from sim import tasks
from sim.phrasing import varied


def variations(count: int = 12) -> Iterator[tuple[tasks.Task, str, str]]:
    rng = np.random.default_rng(0)
    for task in tasks.every():
        for text in tasks.wordings(task, "seen"):
            for _ in range(count):
                yield task, text, varied(rng, task, text)


def test_a_variation_means_the_same_is_never_an_unseen_sentence_and_uses_no_other_words() -> None:
    words = {word for text in tasks.all_wordings("seen") for word in re.findall(r"\w+", text)}
    unseen = set(tasks.all_wordings("unseen"))
    for task, text, new in variations():
        assert tasks.parse(new) == task, (text, new)
        assert new not in unseen and set(re.findall(r"\w+", new)) <= words, new


def test_sentences_become_many() -> None:
    for task in (tasks.Task("touch", "red"), tasks.Task("push-left", "red"), tasks.Task("stack", "red", "blue")):
        assert len({new for one, _, new in variations() if one == task}) > 100


@pytest.mark.parametrize(
    "example",
    [
        "the red block, tap on it",
        "can you lift the red cube",
        "the red one, place it into the box",
        "slide the red one left",
    ],
)
def test_forms_that_people_use_are_among_them(example: str) -> None:
    assert example in {new for _, _, new in variations(150) if "red" in new and "," in new or new == example}


def test_the_same_draws_give_the_same_sentence() -> None:
    task = tasks.Task("bin", "blue")
    first, again = ([varied(np.random.default_rng(5), task, "put the blue block in the bin")] for _ in range(2))
    assert first == again
