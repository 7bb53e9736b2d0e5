"""The table-top's trials: seeded lists of them, a user's own sentences, and what to swap a task for.

Knows tasks and wordings; refuses to know physics.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from control.errors import ConfigError
from control.robot import Episode
from sim import tasks
from sim.judging import LIMIT_S
from sim.options import seed_number
from sim.placement import place_blocks
from sim.scene import BLOCK_SIZE, COLOURS
from sim.tasks import KINDS, Split, Task

SYNTAX = "touch red, pick red, bin red, push-left red, push-right red, or stack red on blue"
_REACH = BLOCK_SIZE / 2 + 0.012  # m: a finger whose middle is nearer to a block's centre than this may meet the block


def drawn(seed: int, count: int, kinds: str, wordings: str) -> list[Episode]:
    """`count` episodes of each kind; those of a kind do not depend on which others are asked for. ConfigError."""
    if count < 1:
        raise ConfigError(f"expected at least 1 episode a task, got {count}")
    return [
        _episode(scene, task, text)
        for kind in tasks.named(kinds)
        for scene, task, text in tasks.episodes(_seed_of(seed, kind), count, split_named(wordings), [kind])
    ]


def read_wordings(file: Path) -> list[tuple[Task, str]]:
    """The lines `task: sentence` of a file; empty lines and what follows a # are skipped. ConfigError with the line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--wordings-file {file} cannot be read: {error}") from None
    found: list[tuple[Task, str]] = []
    for number, line in enumerate(lines, 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        name, colon, sentence = line.partition(":")
        if not colon or not sentence.strip():
            raise ConfigError(f"{file}:{number}: expected `task: sentence`, got '{line}'")
        try:
            found.append((task_named(name), " ".join(sentence.split())))
        except ConfigError as error:
            raise ConfigError(f"{file}:{number}: {error}") from None
    if not found:
        raise ConfigError(f"{file} has no line `task: sentence`, where task is {SYNTAX}")
    return found


def task_named(name: str) -> Task:
    """The task of `pick red` or `stack red on blue`. Raises ConfigError naming the syntax."""
    words = name.split()
    kind, colours = (words[0] if words else ""), [word for word in words[1:] if word != "on"]
    expected = ["stack", *colours[:1], "on", *colours[1:]] if kind == "stack" else [kind, *colours]
    count = 2 if kind == "stack" else 1
    known = kind in KINDS and len(colours) == count == len(set(colours)) and set(colours) <= set(COLOURS)
    if not known or words != expected:
        raise ConfigError(f"'{name.strip()}' is no task: expected {SYNTAX}, with the colours {', '.join(COLOURS)}")
    return Task(kind, *colours)


def given(file: Path, seed: int, count: int, kinds: str | None) -> list[Episode]:
    """`count` episodes of each kind in the file, every sentence as often as `count` allows. Raises ConfigError."""
    lines = read_wordings(file)
    if count < 1:
        raise ConfigError(f"expected at least 1 episode a task, got {count}")
    there = [kind for kind in KINDS if any(task.kind == kind for task, _ in lines)]
    chosen = there if kinds is None else list(tasks.named(kinds))
    if missing := [kind for kind in chosen if kind not in there]:
        raise ConfigError(f"{file} has no sentence for {', '.join(missing)}; it has {', '.join(there)}")
    listed = []
    for kind in chosen:
        rng = np.random.default_rng([_seed_of(seed, kind), 0x0C11])
        own = [line for line in lines if line[0].kind == kind]
        listed += [_episode(int(rng.integers(2**31)), *own[i % len(own)]) for i in range(count)]
    return listed


def another(episode: Episode, kinds: str, wordings: str) -> Episode:
    """Another task in the same scene: of another block, and of any of the kinds."""
    rng = np.random.default_rng([episode.seed, 0x54A9])
    old = tasks.parse(episode.meaning)
    assert old is not None
    choices = [task for task in tasks.every(tasks.named(kinds)) if task.colour != old.colour]
    by_kind = sorted({task.kind for task in choices})
    kind = by_kind[rng.integers(len(by_kind))]
    own = [task for task in choices if task.kind == kind]
    task = own[rng.integers(len(own))]
    return _episode(episode.seed, task, tasks.sample_wording(rng, task, split_named(wordings)))


def chance(kind: str) -> dict[str, float]:
    """At most this succeeds without looking, or listening.

    `empty`: the right kind of task with any of its blocks. `frozen_image`: the named block lies, within a finger's
    width, where it lay in another scene; both blocks of a stack.
    """
    rng = np.random.default_rng(0)
    here, there = (place_blocks(rng, 4000)[:, 0, :2] for _ in range(2))
    rate = float((np.linalg.norm(here - there, axis=1) < _REACH).mean())
    return {"empty": 1 / len(tasks.every([kind])), "frozen_image": rate**2 if kind == "stack" else rate}


def split_named(wordings: str) -> Split:
    if wordings not in ("seen", "unseen"):
        raise ConfigError(f"--wordings takes seen or unseen, got '{wordings}'")
    return wordings


def _episode(scene: int, task: Task, text: str) -> Episode:
    return Episode(scene, task.kind, text, tasks.wordings(task, "seen")[0], LIMIT_S[task.kind])


def _seed_of(seed: int, kind: str) -> int:
    """Other scenes for every kind."""
    return int(np.random.SeedSequence([seed_number(seed), KINDS.index(kind)]).generate_state(1)[0])
