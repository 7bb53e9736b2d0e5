"""`launch.py drill` from its options to its report."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from control.clock import MonotonicClock
from control.config import Config
from control.discovery import REMOTE, make_robot
from control.drill.campaign import Outcome, campaign
from control.drill.faults import KINDS, Kind, one_of_each
from control.drill.report import result, table
from control.drill.rig import Rig
from control.environment import environment
from control.errors import ConfigError
from control.report import check_writable, write_report

EXIT_KEPT, EXIT_BROKEN = 0, 1


def drill(
    settings: Config,
    launcher: Path,
    arguments: Sequence[str],
    instructions: Sequence[str],
    count: int | None,
    only: str | None,
    seed: int,
    report: Path | None,
    stopped: Callable[[], bool],
    show: Callable[[str], None],
) -> int:
    """The exit code. `count` None: one fault of each kind. Raises ConfigError for what cannot be drilled."""
    if settings.robot.name == REMOTE:
        raise ConfigError("drill starts the robot host itself: robot.name 'remote' cannot be drilled")
    kinds = _chosen(one_of_each(seed) if count is None else KINDS, only)
    check_writable(report)
    spec = make_robot(settings.robot.name, MonotonicClock(), settings.robot.options).spec
    folder = Path(tempfile.mkdtemp(prefix="saccade-drill-"))
    outcomes: list[Outcome] = []
    rig = Rig(settings, spec, launcher, arguments, instructions, folder, stopped)
    try:
        show(f"starting: {len(kinds)} kinds of faults, {count or len(kinds)} faults, seed {seed}")
        rig.start()
        first = seed if count is not None else 0
        for outcome in campaign(rig, kinds, range(first, first + (count or len(kinds))), stopped):
            outcomes.append(outcome)
            show(_line(outcome))
    finally:
        rig.close()
        shutil.rmtree(folder, ignore_errors=True)
    Console(soft_wrap=True, width=max(120, Console().width)).print(table(outcomes))
    found = result(outcomes)
    show(f"{len(outcomes)} faults, {found['promises_broken']} promises broken")
    write_report(report, found | environment())
    return EXIT_BROKEN if found["promises_broken"] else EXIT_KEPT


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
        parts.append(f"{outcome.detected_by} after {outcome.detect_ms:.0f} ms: {outcome.detected_as[:90]}")
    if outcome.held_ms is not None:
        parts.append(f"held after {outcome.held_ms:.0f} ms")
    if outcome.recover_ms is not None:
        parts.append(f"well again after {outcome.recover_ms:.0f} ms")
    if outcome.broken:
        parts.append("BROKEN: " + "; ".join(outcome.broken))
    return " · ".join(parts)
