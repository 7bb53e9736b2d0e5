"""Whether a task is done, from where the blocks are and what the hand touches. Pure; refuses to know physics.

touch: the named block is touched before any other; the first touch decides. pick: lifted 10 cm and kept there for a
second. bin: inside the walls, and let go. push: 8 cm to that side and never lifted. stack: on the other block, let go
and at rest for half a second. A verdict of True stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sim.scene import BIN_CENTRE, BIN_HEIGHT, BIN_SIZE, BLOCK_SIZE
from sim.tasks import Task

RELEASE_STEPS = 100  # 0.2 s without contact: contacts chatter while a finger leaves a block
LIFT, PUSH, OFF_TABLE = 0.10, 0.08, 0.015  # m
_KEEP_S = {"pick": 1.0, "bin": 0.3, "push-left": 0.0, "push-right": 0.0, "stack": 0.5}
LIMIT_S = {"touch": 12.0, "pick": 15.0, "bin": 20.0, "push-left": 18.0, "push-right": 18.0, "stack": 25.0}


class TaskJudge:
    """Judges one task from its beginning.

    `touching` is what the hand touches as the task begins: there the named block counts, and another one counts only
    after the hand left it, for the task before may have ended on it. `blocks` is {colour: centre (3,)} at that moment.
    """

    def __init__(
        self, task: Task | None = None, touching: Sequence[str] = (), blocks: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self.task = task
        self.verdict: bool | None = None if task is None else False
        self.touched: list[str] = []  # in the order of the first touch
        self._held_over = {colour: RELEASE_STEPS for colour in touching if task is None or colour != task.colour}
        self._start = None if task is None or blocks is None else blocks[task.colour].copy()
        self._was_lifted = False
        self._kept_s = 0.0
        self.watch(touching)

    @property
    def is_over(self) -> bool:
        """Whether nothing can change the verdict any more."""
        return self.verdict is True or (self.task is not None and self.task.kind == "touch" and bool(self.touched))

    def watch(self, touching: Sequence[str]) -> None:
        """Once a physics step, with the blocks that the hand touches in it."""
        if not touching and not self._held_over:
            return
        for colour in list(self._held_over):
            self._held_over[colour] = RELEASE_STEPS if colour in touching else self._held_over[colour] - 1
            if self._held_over[colour] == 0:
                del self._held_over[colour]
        new = [colour for colour in touching if colour not in self._held_over and colour not in self.touched]
        if self.task is not None and self.task.kind == "touch" and new and not self.touched:
            self.verdict = new == [self.task.colour]
        self.touched += new

    def look(self, blocks: Mapping[str, np.ndarray], touching: Sequence[str], passed_s: float) -> None:
        """A few times a second or more, with where the blocks are, `passed_s` after the look before."""
        if self.task is None or self.task.kind == "touch" or self.verdict:
            return
        block = blocks[self.task.colour]
        self._was_lifted |= bool(block[2] > BLOCK_SIZE / 2 + OFF_TABLE)
        self._kept_s = self._kept_s + passed_s if self._is_there(block, blocks, touching) else -passed_s
        self.verdict = self._kept_s >= _KEEP_S[self.task.kind] - 1e-9

    def _is_there(self, block: np.ndarray, blocks: Mapping[str, np.ndarray], touching: Sequence[str]) -> bool:
        assert self.task is not None
        match self.task.kind:
            case "pick":
                return bool(block[2] > BLOCK_SIZE / 2 + LIFT and self.task.colour in touching)
            case "bin":
                inside = np.abs(block[:2] - BIN_CENTRE).max() < BIN_SIZE / 2
                return bool(inside and block[2] < BIN_HEIGHT + BLOCK_SIZE / 2 and self.task.colour not in touching)
            case "stack":
                assert self.task.on is not None
                offset = block - blocks[self.task.on]
                on = np.hypot(offset[0], offset[1]) < BLOCK_SIZE / 2 and abs(offset[2] - BLOCK_SIZE) < 0.006
                return bool(on and self.task.colour not in touching)
        assert self._start is not None
        moved = block - self._start
        far = moved[1] if self.task.kind == "push-left" else -moved[1]
        return bool(far >= PUSH and abs(moved[0]) < far and not self._was_lifted)
