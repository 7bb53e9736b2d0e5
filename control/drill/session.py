"""`launch.py drill` from its options to its report."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from control.clock import MonotonicClock
from control.config import Config
from control.discovery import REMOTE, make_robot
from control.drill.campaign import Outcome, campaign
from control.drill.faults import CLOCK, KINDS, Kind, one_of_each
from control.drill.report import result, summary, table, write
from control.drill.rig import Rig
from control.drill.wall_clock import find_compiler
from control.drill.workers import Part, run_parts
from control.environment import environment
from control.errors import ConfigError, NotRunning
from control.report import check_writable

EXIT_KEPT, EXIT_BROKEN = 0, 1


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of a drill. `faults` None: one of each kind. `part`: only every so manyth of them, for one worker."""

    faults: int | None
    only: str | None
    seed: int
    workers: int
    part: Part | None
    report: Path | None


def drill(
    settings: Config,
    launcher: Path,
    arguments: Sequence[str],
    instructions: Sequence[str],
    asked: Asked,
    stopped: Callable[[], bool],
    show: Callable[[str], None],
) -> int:
    """The exit code. `arguments` are config and overrides as words. Raises ConfigError for what cannot be drilled."""
    if settings.robot.name == REMOTE:
        raise ConfigError("drill starts the robot host itself: robot.name 'remote' cannot be drilled")
    kinds = _chosen(one_of_each(asked.seed) if asked.faults is None else KINDS, asked.only)
    left_out = [f"{kind.target}: {kind.name}" for kind in kinds if kind.target == CLOCK and find_compiler() is None]
    kinds = [kind for kind in kinds if f"{kind.target}: {kind.name}" not in left_out]
    if not kinds:
        raise ConfigError(f"nothing to drill without a C compiler: {', '.join(left_out)}")
    check_writable(asked.report)
    count = asked.faults or len(kinds)
    first = asked.seed if asked.faults is not None else 0
    if asked.part is None:
        show(f"{len(kinds)} kinds of faults, {count} faults, seed {asked.seed}, workers {asked.workers}")
        for kind in left_out:
            show(f"left out: {kind}, since there is no C compiler")
    seeds = range(first, first + count)
    began_s = time.monotonic()
    if asked.workers > 1 and asked.part is None:
        outcomes = run_parts(launcher, [*arguments, *_words(asked, instructions)], asked.workers, stopped, show)
    else:
        mine = seeds if asked.part is None else asked.part.of(seeds)
        outcomes = _one_rig(settings, launcher, arguments, instructions, kinds, mine, stopped, show)
    found = result(outcomes) | {
        "seed": asked.seed,
        "workers": asked.workers,
        "minutes": (time.monotonic() - began_s) / 60,
        "left_out": left_out,
    }
    if asked.part is None:
        Console(soft_wrap=True, width=max(120, Console().width)).print(table(outcomes))
        for line in summary(found):
            show(line)
    if len(outcomes) < (count if asked.part is None else len(asked.part.of(seeds))):
        show(f"ended after {len(outcomes)} faults")
    write(asked.report, found | environment())
    return EXIT_BROKEN if found["promises_broken"] else EXIT_KEPT


def _one_rig(
    settings: Config,
    launcher: Path,
    arguments: Sequence[str],
    instructions: Sequence[str],
    kinds: Sequence[Kind],
    seeds: Sequence[int],
    stopped: Callable[[], bool],
    show: Callable[[str], None],
) -> list[Outcome]:
    spec = make_robot(settings.robot.name, MonotonicClock(), settings.robot.options).spec
    folder = Path(tempfile.mkdtemp(prefix="saccade-drill-"))
    outcomes: list[Outcome] = []
    try:
        with closing(Rig(settings, spec, launcher, arguments, instructions, folder, stopped)) as rig:
            rig.start()
            for outcome in campaign(rig, kinds, seeds, stopped):
                outcomes.append(outcome)
                show(_line(outcome))
    except NotRunning as error:
        if not outcomes:
            raise
        outcomes[-1].broken.append(f"no run could be started after it: {error}")
        show(_line(outcomes[-1]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def _words(asked: Asked, instructions: Sequence[str]) -> list[str]:
    """The same drill for a worker."""
    words = ["--seed", str(asked.seed)]
    words += ["--quick"] if asked.faults is None else ["--faults", str(asked.faults)]
    words += ["--only", asked.only] if asked.only else []
    return [*words, *(word for text in instructions for word in ("--say", text))]


def _chosen(kinds: Sequence[Kind], only: str | None) -> list[Kind]:
    words = [word.strip() for word in (only or "").split(",") if word.strip()]
    chosen = [kind for kind in kinds if not words or any(word in f"{kind.target} {kind.name}" for word in words)]
    if not chosen:
        known = ", ".join(sorted({kind.name for kind in kinds} | {kind.target for kind in kinds}))
        raise ConfigError(f"--only {only}: no kind of fault has such a word; the words are {known}")
    return chosen


def _line(outcome: Outcome) -> str:
    """One fault as it is over."""
    parts = [f"{outcome.seed:>5}  {outcome.target}: {outcome.kind}"]
    if outcome.detect_ms is not None:
        parts.append(f"{outcome.detected_by} after {outcome.detect_ms:.0f} ms: {outcome.detected_as}")
    if outcome.held_ms is not None:
        parts.append(f"held after {outcome.held_ms:.0f} ms")
    if outcome.recover_ms is not None:
        parts.append(f"well again after {outcome.recover_ms:.0f} ms")
    if outcome.broken:
        parts.append("BROKEN: " + "; ".join(outcome.broken))
    return " · ".join(parts)
