"""The episodes of the policy that is being trained, one scene at a time, and now and then how it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sim.rollouts import Collector, Policy, Scene, successes

TABLES = 8  # side by side in a collecting process
EXPERT_SHARE = 0.3  # chances a second that the expert takes over for a while
TOLD_EVERY = 120  # tasks


class OwnEpisodes:
    """Collects with whatever policy it is given next. `log` is told, after `title`, how often that alone did its task.

    Tables are set only when the first scene is asked for.
    """

    def __init__(
        self,
        seed: int,
        kinds: Sequence[str],
        max_age_ms: float,
        log: Callable[[str], None],
        title: str,
        kind: type[Collector] = Collector,
    ) -> None:
        self._seed, self._kinds, self._max_age_ms = seed, kinds, max_age_ms
        self._log, self._title, self._kind = log, title, kind
        self._collector: Collector | None = None
        self._scenes: Iterator[Scene] = iter(())
        self._outcomes: list[tuple[str, float, bool]] = []

    def scene(self, policy: Policy) -> Scene:
        """The next scene that is over, driven by this policy from now on."""
        if self._collector is None:
            self._collector = self._kind(policy, self._seed, TABLES, self._kinds, self._max_age_ms, EXPERT_SHARE)
            self._scenes = self._collector.scenes()
        self._collector.policy = policy
        scene = next(self._scenes)
        self._outcomes += scene.outcomes
        if len(self._outcomes) >= TOLD_EVERY:
            self._log(f"  {self._title}: {successes(self._outcomes)}")
            self._outcomes = []
        return scene
