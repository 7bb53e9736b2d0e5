"""`launch.py eval` from what was asked for to the report: checks first, then episodes here or in worker processes.

Asks for encoder and head through a function, so that it knows no model, and loads none before all else is known to
be well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from control.clock import FakeClock
from control.discovery import REMOTE, make_robot
from control.environment import environment
from control.errors import ConfigError
from control.head import ActionHead
from control.host import end_on_sigterm
from control.progress import Progress
from control.report import check_writable, write_report
from control.robot import Evaluates, ReadsWordings
from sim import eval_plots, eval_tables, eval_workers, failures
from sim.eval_against import compare, load_report
from sim.evaluate import FrameEncoder, Lockstep, Outcome
from sim.evaluation import Job, figures, live_age_ms, measure_encode_ms, plan, run_jobs

LoadPolicy = Callable[[], tuple[FrameEncoder, ActionHead]]

MEASURED = "measured"
OLDER_MS = (600.0, 1000.0)  # beside the measured one, where nobody says which
MOST_CONTROLS = 40  # an episode that fails lasts as long as it may, and controls should fail


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of `launch.py eval`, one by one."""

    tasks: str | None
    wordings: str
    wordings_file: Path | None
    episodes: int
    seed: int
    feature_age: str | None
    controls: int | None
    expert: bool
    failures: Path | None
    plot: Path | None
    report: Path | None
    against: Path | None = None

    @property
    def control_episodes(self) -> int:
        return min(self.episodes, MOST_CONTROLS) if self.controls is None else self.controls

    @property
    def arguments(self) -> list[str]:
        """The same again for a worker, without what only the parent writes, and without the ages."""
        words = ["--wordings", self.wordings, "--episodes", str(self.episodes), "--seed", str(self.seed)]
        words += ["--controls", str(self.control_episodes), *(["--expert"] if self.expert else [])]
        for option, value in (
            ("--tasks", self.tasks),
            ("--wordings-file", self.wordings_file),
            ("--failures", self.failures),
        ):
            words += [] if value is None else [option, str(value)]
        return words


class Session:
    """One evaluation. Raises ConfigError for what cannot be measured, before anything is loaded."""

    def __init__(self, asked: Asked, robot_name: str, robot_options: dict[str, Any], lockstep: Lockstep) -> None:
        self._asked, self._lockstep, self._clock = asked, lockstep, FakeClock()
        self._ages_ms, self._measures = ages_named(asked.feature_age, lockstep.loop.freshness.hold_after_ms)
        for age_ms in [*self._ages_ms, *([0.0] if self._measures else [])]:
            lockstep.check(age_ms)
        self._robot = _robot(robot_name, robot_options, self._clock)
        self._episodes = self._draw()
        check_writable(asked.report)
        eval_plots.check_plot(asked.plot)
        failures.check_folder(asked.failures)
        self._other = load_report(asked.against) if asked.against else None
        self._plan(self._ages_ms or [0.0])

    def _draw(self) -> list[Any]:
        asked, robot = self._asked, self._robot
        if asked.wordings_file is None:
            return robot.episodes(asked.seed, asked.episodes, asked.tasks or "all", asked.wordings)
        if not isinstance(robot, ReadsWordings):
            raise ConfigError(
                f"--wordings-file: robot '{robot.spec.name}' reads no sentences of others (control.robot.ReadsWordings)"
            )
        return robot.wordings_of(asked.wordings_file, asked.seed, asked.episodes, asked.tasks)

    def _plan(self, ages_ms: Sequence[float]) -> list[Job]:
        asked = self._asked
        return plan(
            self._robot,
            self._episodes,
            ages_ms,
            controls=asked.control_episodes,
            tasks=",".join(dict.fromkeys(episode.task for episode in self._episodes)),
            wordings=asked.wordings,
            expert=asked.expert,
        )

    def work(self, shard: str, load_policy: LoadPolicy) -> None:
        """A share of the episodes, told line by line on stdout."""
        first, of = eval_workers.shard_of(shard)
        if self._measures:
            raise ConfigError("--shard needs ages in ms: every worker would measure another one")
        jobs = list(enumerate(self._plan(self._ages_ms)))[first::of]
        policy = load_policy()
        with self._connected():
            for number, outcome in self._run(jobs, *policy):
                eval_workers.tell(number, outcome)

    def lead(
        self,
        load_policy: LoadPolicy,
        workers: int,
        arguments: Sequence[str],
        about: dict[str, Any],
        show: Callable[[str], None],
    ) -> None:
        """All episodes, the tables, and what files were asked for. `about` is what the report says of the policy."""
        with contextlib.ExitStack() as on_exit:
            policy = load_policy() if self._measures or workers == 1 else None
            if policy is not None:
                on_exit.enter_context(self._connected())
            age, ages_ms = self._charged(policy, show)
            jobs = self._plan(ages_ms)
            show(f"feature ages {', '.join(f'{age_ms:g}' for age_ms in ages_ms)} ms; {len(jobs)} episodes in all")
            if workers == 1:
                assert policy is not None
                told = self._run(list(enumerate(jobs)), *policy)
            else:
                on_exit.close()
                policy = None  # its memory is for the workers
                given = [*arguments, *self._asked.arguments, "--feature-age", ",".join(f"{age:g}" for age in ages_ms)]
                end_on_sigterm()
                told = eval_workers.outcomes_of(eval_workers.commands_for(workers, given), show)
            try:
                outcomes = _collected(jobs, told)
            except KeyboardInterrupt:
                show("interrupted: no figures were written")
                raise
        result = figures(self._robot, jobs, outcomes) | about | {"feature_age": age} | self._circumstances()
        if self._other is not None:
            assert self._asked.against is not None
            result["against"] = compare(result, self._other, self._asked.against.name)
        console = Console(width=None if Console().is_terminal else 160)
        for table in eval_tables.tables(result):  # before the files: where these cannot be written it is all there is
            console.print(table)
        write_report(self._asked.report, result)
        if self._asked.plot is not None:
            eval_plots.draw(result, self._asked.plot, self._other)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        self._robot.connect()
        try:
            yield
        finally:
            self._robot.close()

    def _run(
        self, jobs: Sequence[tuple[int, Job]], encoder: FrameEncoder, head: ActionHead
    ) -> Iterator[tuple[int, Outcome]]:
        folder = self._asked.failures
        witness = None if folder is None else lambda job: failures.FailedEpisode(folder, job)
        return run_jobs(jobs, self._robot, self._clock, encoder, head, self._lockstep, witness)

    def _charged(
        self, policy: tuple[FrameEncoder, ActionHead] | None, show: Callable[[str], None]
    ) -> tuple[dict[str, Any], list[float]]:
        """What the report says of the ages, and all of them, the youngest first."""
        if not self._measures:
            definition = "as given: from a frame's capture to every tick that acts on it"
            return {"definition": definition}, sorted(set(self._ages_ms))
        assert policy is not None
        age = self._measure(policy[0])
        show(
            f"feature age of a live run here: {age['measured_ms']:g} ms (median encode {age['encode_ms']:.1f} ms,"
            f" {age['between_features_ms']:.1f} ms to the next features)"
        )
        self._lockstep.check(age["measured_ms"])
        return age, sorted({*self._ages_ms, age["measured_ms"]})

    def _measure(self, encoder: FrameEncoder) -> dict[str, Any]:
        encode_ms = measure_encode_ms(encoder, self._robot, self._episodes[0], self._clock)
        view_ms = self._lockstep.loop.view_period_ms
        return {
            "definition": "median encode + the longer of encode and the time between two views, rounded up to 10 ms",
            "measured_ms": live_age_ms(encode_ms, view_ms),
            "encode_ms": encode_ms,
            "between_features_ms": max(encode_ms, view_ms),
        }

    def _circumstances(self) -> dict[str, Any]:
        asked, freshness = self._asked, self._lockstep.loop.freshness
        file = asked.wordings_file
        return {
            "seed": asked.seed,
            "wordings": asked.wordings if file is None else file.name,
            "units": {"time_s": "s", "path": "m of the tool, or of the joints", "jerk": "rad/s^3 at the control rate"},
            "freshness_ms": {"slow_after": freshness.slow_after_ms, "hold_after": freshness.hold_after_ms},
            **environment(),
        }


def ages_named(text: str | None, hold_after_ms: float) -> tuple[list[float], bool]:
    """The ages in ms, and whether the measured one is wanted too. Raises ConfigError for anything else."""
    if text is None:
        return [age_ms for age_ms in OLDER_MS if age_ms < hold_after_ms], True
    words = [word.strip() for word in text.split(",")]
    try:
        ages_ms = [float(word) for word in words if word != MEASURED]
    except ValueError:
        raise ConfigError(
            f"--feature-age takes numbers of ms like 100,300 and the word {MEASURED}, got '{text}'"
        ) from None
    return ages_ms, MEASURED in words


def _robot(name: str, options: dict[str, Any], clock: FakeClock) -> Any:
    """The robot on this clock. Raises ConfigError for one that cannot be evaluated."""
    if name == REMOTE:
        raise ConfigError("eval needs a robot on a simulated clock, which a remote one is not: set robot.name")
    robot = make_robot(name, clock, options)
    if not isinstance(robot, Evaluates):
        raise ConfigError(
            f"robot '{name}' cannot be evaluated: it lacks some of reset, begin, judge, is_over and episodes"
            " (control.robot.Evaluates)"
        )
    return robot


def _collected(jobs: Sequence[Job], told: Iterator[tuple[int, Outcome]]) -> list[Outcome]:
    """The outcomes in the order of the jobs, and how far it is meanwhile."""
    outcomes: dict[int, Outcome] = {}
    done = 0
    with Progress(len(jobs), "episodes") as progress:
        for number, outcome in told:
            outcomes[number] = outcome
            done += outcome.success and not jobs[number].kind
            tried = sum(not jobs[i].kind for i in outcomes)
            progress.show(len(outcomes), f"{done} of {tried} done" if tried else "controls")
    return [outcomes[number] for number in range(len(jobs))]
