"""Episodes without cameras, for a head that is told the facts."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from sim import facts, own_episodes, practice, tasks
from sim.cameras import Cameras
from sim.practice import Told, rehearsals
from sim.tasks import KINDS
from tests.sim.test_rollouts import Knows

pytestmark = pytest.mark.usefixtures("can_render")


@pytest.fixture(autouse=True)
def nothing_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(cameras: Cameras) -> None:
        raise AssertionError("rendered")

    monkeypatch.setattr(Cameras, "render", refuse)


def test_rehearsals_come_without_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(practice, "_FIRST", 2)
    made = list(itertools.islice(rehearsals(0, ("pick",), 50, 8, 1000.0, lambda: None, print), 3))
    assert all(one.facts.shape == (50, len(facts.NAMES)) and one.targets.shape == (50, 8, 7) for one in made)
    assert all((one.facts[:, : len(KINDS)].argmax(1) == KINDS.index("pick")).all() for one in made)
    again = next(rehearsals(0, ("pick",), 50, 8, 1000.0, lambda: None, print))
    assert np.array_equal(again.states, made[0].states)


def test_a_policy_is_told_the_facts_of_its_task_and_its_episodes_are_practised_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(practice, "_FIRST", 1)
    monkeypatch.setattr(practice, "_EVERY", 1)
    monkeypatch.setattr(own_episodes, "TABLES", 2)
    monkeypatch.setattr(own_episodes, "TOLD_EVERY", 2)
    monkeypatch.setattr(own_episodes, "EXPERT_SHARE", 0.0)
    told: list[np.ndarray] = []
    lines: list[str] = []

    class Listens(Knows):
        def act(self, tokens: np.ndarray, states: np.ndarray, age_ms: np.ndarray) -> np.ndarray:
            kinds = [tasks.KINDS.index(table.task.kind) for table in self.collector.tables]
            assert tokens[:, : len(tasks.KINDS)].argmax(axis=1).tolist() == kinds
            told.append(tokens)
            return super().act(tokens, states, age_ms)

    policy = Listens()
    began = Told.__init__

    def begin(self: Told, *arguments: object, **options: object) -> None:
        began(self, *arguments, **options)  # type: ignore[arg-type]
        policy.collector = self

    monkeypatch.setattr(Told, "__init__", begin)
    list(itertools.islice(rehearsals(0, ("touch", "pick"), 20, 8, 300.0, lambda: policy, lines.append), 9))
    assert told and told[0].shape == (2, len(facts.NAMES))
    assert lines and all(line.startswith("  told the facts: ") for line in lines)
    counts = np.array([pair.split(" of ") for line in lines for pair in re.findall(r"\d+ of \d+", line)], dtype=int)
    assert counts[:, 0].sum() >= 0.8 * counts[:, 1].sum() > 0
