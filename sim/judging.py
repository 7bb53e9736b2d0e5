"""Whether a touch task is done, from what the gripper touches in every physics step. Pure; refuses to know physics."""

from __future__ import annotations

from collections.abc import Sequence

from sim.tasks import Task

RELEASE_STEPS = 100  # 0.2 s without contact: contacts chatter while a finger leaves a block


class TouchJudge:
    """Success is the named block touched before any other. The first touch decides, and the verdict stays.

    `touching` is what the gripper touches as the task begins: there the named block counts, and another one counts only
    after the gripper left it, for the task before may have ended on it.
    """

    def __init__(self, task: Task | None = None, touching: Sequence[str] = ()) -> None:
        self.task = task
        self.verdict: bool | None = None if task is None else False
        self.touched: list[str] = []
        self._held_over = {colour: RELEASE_STEPS for colour in touching if task is None or colour != task.colour}
        self.watch(touching)

    def watch(self, touching: Sequence[str]) -> None:
        """Once a physics step, with the blocks that the gripper touches in it."""
        if not touching and not self._held_over:
            return
        for colour in list(self._held_over):
            self._held_over[colour] = RELEASE_STEPS if colour in touching else self._held_over[colour] - 1
            if self._held_over[colour] == 0:
                del self._held_over[colour]
        new = [colour for colour in touching if colour not in self._held_over and colour not in self.touched]
        if self.task is not None and new and not self.touched:
            self.verdict = new == [self.task.colour]
        self.touched += new
