"""`record`: demonstrations from the scripted expert of the table-top, or the run that goes on, as recordings.

Imports stay inside the command, so that no other one starts slower.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from control.commands import DEFAULT_CONFIG, ROOT, ConfigOption, ParentOption, ReportOption, SetOption, load
from control.record_commands import record_the_run

if TYPE_CHECKING:
    from sim.demonstration_files import Plan
    from sim.demonstration_workers import Made

TASKS = "touch, pick, bin, push (push-left and push-right), stack; or all"  # sim.tasks.KINDS, in words

app = typer.Typer()


@app.command(rich_help_panel="Learn")
def record(
    out: Annotated[Path, typer.Option(metavar="DIR|FILE", help="Folder of the demonstrations; a file with --live.")],
    episodes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="So many demonstrations of the scripted expert.")
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Instead: the run that goes on, as it is on the bus.")] = False,
    tasks: Annotated[str, typer.Option(metavar="NAMES", help=f"With commas: {TASKS}.")] = "all",
    wordings: Annotated[
        Literal["seen", "unseen", "all"], typer.Option(help="Sentences for training, those kept from it, or both.")
    ] = "seen",
    seed: Annotated[int, typer.Option(min=0, help="Of scenes, sentences and noise.")] = 0,
    workers: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Processes, of one thread each.")] = 1,
    noise: Annotated[
        float, typer.Option(metavar="RAD", min=0.0, max=0.2, help="Deviation of the noise on executed angles.")
    ] = 0.01,
    detours: Annotated[
        float,
        typer.Option(
            metavar="SHARE", min=0.0, max=1.0, help="Time off the expert's path: misjudged blocks, more noise, errands."
        ),
    ] = 0.0,
    anywhere: Annotated[
        float, typer.Option(metavar="SHARE", min=0.0, max=1.0, help="Episodes that begin anywhere, not at home.")
    ] = 0.0,
    camera_hz: Annotated[int, typer.Option(min=1, max=100, help="Images a second of each camera.")] = 10,
    state_hz: Annotated[
        int, typer.Option(min=10, max=500, help="States a second: a multiple of 10 and of --camera-hz.")
    ] = 50,
    per_file: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Episodes a file.")] = 25,
    images: Annotated[
        Literal["jpeg", "webp"] | None,
        typer.Option(show_default="webp; jpeg with --live", help="webp keeps every bit, best on simulated cameras."),
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of jpeg, always 4:4:4.")] = 95,
    seconds: Annotated[
        float | None, typer.Option(metavar="S", min=0.1, help="With --live: end after this long.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    report: ReportOption = None,
    parent: ParentOption = 0,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Keep demonstrations or a run as MCAP files: images, state, actions, labels, for Foxglove, training and replay.

    Demonstrations are repeatable, and resumable: the same command again makes only what is missing.
    """
    if worker:
        from control.host import stop_on_signals
        from sim.demonstration_workers import work

        return work(out, stop_on_signals())
    if live and episodes:
        raise typer.BadParameter("--live and --episodes exclude each other")
    if live:
        return record_the_run(out, seconds, images or "jpeg", quality, config, set_, parent)
    if not episodes:
        raise typer.BadParameter("what to record? --episodes N of the scripted expert, or --live, the run that goes on")
    if seconds:
        raise typer.BadParameter("--seconds needs --live; demonstrations are counted with --episodes")
    from sim.demonstration_files import Plan
    from sim.tasks import named

    plan = Plan(
        episodes,
        named(tasks),
        wordings,
        seed,
        per_file,
        images or "webp",
        quality,
        camera_hz,
        state_hz,
        noise,
        detours,
        anywhere,
        _cameras(config, set_),
    )
    _demonstrate(plan, out, workers, report)


def _cameras(config: Path, overrides: list[str] | None) -> dict[str, tuple[int, int]]:
    """Of the robot that the config describes: a policy is trained on the images that it will get."""
    from control.clock import FakeClock
    from control.discovery import make_robot
    from control.errors import ConfigError

    robot = load(config, overrides).robot
    if robot.name != "tabletop":
        raise ConfigError(f"--episodes needs robot.name tabletop, which has a scripted expert, got '{robot.name}'")
    return make_robot(robot.name, FakeClock(), robot.options).spec.cameras


def _demonstrate(plan: Plan, out: Path, workers: int, report: Path | None) -> None:
    from control.environment import environment
    from control.host import stop_on_signals
    from control.progress import Progress
    from control.report import check_writable, write_report
    from sim.demonstration_workers import record as record_all

    check_writable(report)
    stopped = stop_on_signals()
    command = [sys.executable, str(ROOT / "launch.py"), "record", "--worker", "--out", str(out)]
    with Progress(plan.episodes, "episodes") as progress:

        def show(done: int, written: int) -> None:
            progress.show(done, f"{written / 1e6:,.1f} MB in whole files")

        made = record_all(plan, out, workers, command, show, stopped)
    figures = _figures(plan, made, workers)
    for line in _lines(out, plan, made, figures):
        typer.echo(line)
    write_report(report, figures | environment())
    if made.was_stopped:
        raise typer.Exit(1)


def _figures(plan: Plan, made: Made, workers: int) -> dict[str, Any]:
    import dataclasses

    success: dict[str, dict[str, int]] = {}
    for index, (_, task, _) in enumerate(plan.drawn()):
        if index in made.outcomes:
            row = success.setdefault(task.kind, {"episodes": 0, "successes": 0})
            row["episodes"] += 1
            row["successes"] += made.outcomes[index]
    return {
        "episodes": len(made.outcomes),
        "files": made.files,
        "bytes": made.files_bytes,
        "success": {kind: success[kind] for kind in plan.kinds if kind in success},
        "made_now": made.new_episodes,
        "seconds": made.seconds,
        "workers": workers,
        "plan": dataclasses.asdict(plan),
    }


def _lines(out: Path, plan: Plan, made: Made, figures: dict[str, Any]) -> list[str]:
    count, done = len(made.outcomes), sum(made.outcomes.values())
    each = f", {made.files_bytes / count / 1000:,.0f} KB an episode" if count else ""
    lines = [f"{out}: {count:,} episodes in {made.files:,} files, {made.files_bytes / 1e6:,.1f} MB{each}"]
    if count:
        rows = figures["success"].items()
        kinds = ", ".join(f"{kind} {row['successes']}/{row['episodes']}" for kind, row in rows)
        lines.append(f"expert: {done:,} of {count:,} done ({100 * done / count:.1f} %): {kinds}")
    if made.new_episodes:
        rate = made.new_episodes / made.seconds
        lines.append(
            f"made {made.new_episodes:,} in {made.seconds:,.0f} s: {rate:.1f} episodes/s, {figures['workers']} workers"
        )
    elif not made.was_stopped:
        lines.append("all of it was there already")
    if made.was_stopped:
        lines.append(f"stopped: {plan.episodes - count:,} episodes are missing; the same command goes on")
    return lines
