#!/usr/bin/env python3
"""The command line of Saccade, and the only file that knows all three folders. Each command: parse, build, call.

Imports stay inside the commands: an operator's `say` loads no model code, and the supervisor no torch.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from control.commands import DEFAULT_CONFIG, ROOT, ConfigOption, ParentOption, ReportOption, SetOption, load, process
from control.commands import app as control_commands
from control.record_commands import app as export_command
from sim.record_commands import app as record_command
from vla.bench_commands import bench
from vla.commands import adapted, check_encoder, encoder_options
from vla.commands import app as vla_commands

if TYPE_CHECKING:
    from control.config import Config

HORIZON = 8  # rows of a trained chunk

app = typer.Typer(
    name="saccade",
    help="Run vision-language-action policies on robots: a slow encoder looks, a 10 Hz loop never waits for it.",
    epilog="Exit codes: 0 done, 1 not possible now or a limit not held, 2 wrong usage or config, 3 ended in STOP,"
    " 4 a process died.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(control_commands)
app.add_typer(vla_commands)
app.add_typer(record_command)
app.add_typer(export_command)
app.add_typer(bench, rich_help_panel="Measure")


@app.command(rich_help_panel="Run")
def run(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    say: Annotated[str | None, typer.Option(help="First instruction.")] = None,
    duration: Annotated[
        float | None, typer.Option(metavar="S", min=0.1, help="End this long after the first RUN cycle.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the simulated scene.")] = None,
    episodes: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Instead of --say: N seeded tasks of the simulator, the blocks placed anew for each.",
        ),
    ] = 0,
    episode_s: Annotated[float, typer.Option(metavar="S", min=1.0, help="Length of an episode.")] = 15.0,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights", help="The backbone's geometry without its weights, for latency work; moves nothing."
        ),
    ] = False,
    report: ReportOption = None,
) -> None:
    """Start robot, encoder and controller, watch them, and end them in order on Ctrl-C or SIGTERM."""
    from control.child import Child, python_command
    from control.console import RunConsole
    from control.discovery import REMOTE
    from control.environment import environment
    from control.host import stop_on_signals
    from control.report import RunFigures, check_writable, write_report
    from control.script import Script
    from control.supervisor import Supervisor

    if say and episodes:
        raise typer.BadParameter("--say and --episodes exclude each other")
    overrides = list(set_ or [])
    if seed is not None:
        overrides.append(f"robot.options.seed={seed}")
    if episodes:
        overrides.append("robot.options.reset_on_instruction=true")
    if random_weights:
        overrides.append("encoder.random_weights=true")
    settings = load(config, overrides)
    _check_policy(settings)
    check_writable(report)
    where = environment()
    texts = [say] if say else []
    if episodes:
        from sim.tasks import episodes as sample_episodes

        texts = [text for _, _, text in sample_episodes(seed or 0, episodes, "seen")]
    stopped = stop_on_signals()
    started_ns = time.monotonic_ns()
    bus = settings.bus.build()
    arguments = ["--config", str(config), *(word for item in overrides for word in ("--set", item))]
    names = [("robot", "robot"), ("encoder", "encoder"), ("controller", "control")]
    children = [
        Child(name, python_command(Path(__file__).resolve(), subcommand, arguments))
        for name, subcommand in names
        if not (name == "robot" and settings.robot.name == REMOTE) and not (name == "encoder" and settings.bus.encoder)
    ]
    figures = RunFigures(1000 / settings.control.rate_hz, settings.view_period_ms, started_ns)
    console = RunConsole()
    script = Script(bus, texts, episode_s if episodes else float("inf"))
    supervisor = Supervisor(
        bus,
        children,
        script,
        figures,
        max_encoder_restarts=settings.run.max_encoder_restarts,
        restart_backoff_s=settings.run.restart_backoff_s,
        start_timeout_s=settings.run.start_timeout_s,
        show=console.line,
        show_status=console.status,
        is_terminal=console.is_terminal,
    )
    code = supervisor.run(stopped, duration)
    used = settings.model_dump(mode="json")
    for key in ("policy", "smoothing"):  # no path of this machine stands in a report
        if used["encoder"][key] is not None:
            used["encoder"][key] = os.path.relpath(used["encoder"][key], ROOT)
    result = supervisor.result() | {"config": used, **where}
    console.summary(result)
    write_report(report, result)
    raise typer.Exit(code)


@app.command(name="control", rich_help_panel="Processes")
def controller(config: ConfigOption = DEFAULT_CONFIG, set_: SetOption = None, parent: ParentOption = 0) -> None:
    """The controller alone: newest state and features to an action, at a fixed rate, whatever the others do."""
    settings, stopped = process("controller", config, set_, parent)
    import torch

    from control.clock import MonotonicClock
    from control.controller import Controller
    from vla.policy import load_head
    from vla.policy_spec import load_spec

    torch.set_num_threads(1)
    folder = Path(settings.encoder.policy)
    head = load_head(folder, settings.encoder.random_weights)
    running = Controller(
        settings.bus.build(),
        head,
        settings.loop_settings(),
        clock=MonotonicClock(),
        realtime=settings.control.realtime,
        find_misfits=adapted(settings, load_spec(folder)).fits,
    )
    running.run(stopped)


@app.command(rich_help_panel="Prepare")
def check(config: ConfigOption = DEFAULT_CONFIG, set_: SetOption = None) -> None:
    """Check config, policy and robot against each other without starting anything, and print the derived budgets."""
    from control.budgets import budgets

    settings = load(config, set_)
    for line in [*budgets(settings), *_check_policy(settings)]:
        typer.echo(line)
    typer.echo("all well")


@app.command(rich_help_panel="Prepare")
def train(
    out: Annotated[Path, typer.Option(help="Policy folder to write.")],
    minutes: Annotated[float, typer.Option(min=0.01, help="Training time on one CPU core, with rendering.")] = 50.0,
    batch_size: Annotated[int, typer.Option(min=2, max=1024)] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of scenes and weights.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a policy that lies there already.")] = False,
) -> None:
    """Train the embedded policy on the simulator: backbone, pooling and head, end to end, from nothing else."""
    import itertools

    import torch

    from control.clock import FakeClock
    from sim import tasks
    from sim.demonstrations import PERIOD_S, sample_batches
    from sim.tabletop import TabletopRobot
    from vla.train import train as train_policy

    torch.set_num_threads(1)
    train_policy(
        batches=sample_batches(seed, batch_size, HORIZON),
        validation_batches=list(itertools.islice(sample_batches(seed + 1_000_000, 64, HORIZON), 3)),
        out_folder=out,
        robot=TabletopRobot(FakeClock()).spec,
        horizon=HORIZON,
        period_s=PERIOD_S,
        wordings=[text for colour in tasks.COLOURS for text in tasks.wordings(colour, "seen")],
        max_minutes=minutes,
        seed=seed,
        log=typer.echo,
        name="tabletop",
        overwrite=overwrite,
    )


@app.command(name="eval", rich_help_panel="Prepare")
def evaluate(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    episodes: Annotated[int, typer.Option(min=1, metavar="N", help="Seeded episodes at each feature age.")] = 40,
    feature_age: Annotated[str, typer.Option(metavar="MS,MS", help="Feature ages to charge, in ms.")] = "100,300,500",
    wordings: Annotated[str, typer.Option(help="seen in training, or unseen.")] = "unseen",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the list of episodes.")] = 1000,
    report: ReportOption = None,
) -> None:
    """Success of a policy in the simulator, in lockstep, at any feature age: the same loop and safety gate as live."""
    import torch
    from rich.progress import track

    from control.environment import environment
    from control.report import check_writable, write_report
    from sim import evaluate as judging
    from sim import tasks
    from vla.assemble import load_encoder
    from vla.policy import load_head

    if wordings not in ("seen", "unseen"):
        raise typer.BadParameter(f"--wordings takes seen or unseen, got '{wordings}'")
    try:
        ages_ms = [float(word) for word in feature_age.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--feature-age takes numbers of ms like 100,300, got '{feature_age}'") from None
    settings = load(config, set_)
    if settings.robot.name != "tabletop" or settings.encoder.random_weights:
        raise typer.BadParameter("eval needs robot.name tabletop and a trained policy: it judges tasks of that table")
    _check_policy(settings)
    check_writable(report)
    for age_ms in ages_ms:
        judging.check_lockstep(settings.loop_settings(), age_ms)
    torch.set_num_threads(settings.encoder.threads)
    folder = Path(settings.encoder.policy)
    encoder, head = (
        load_encoder(folder, settings.encoder.device, 1, options=encoder_options(settings)),
        load_head(folder),
    )
    drawn = tasks.episodes(seed, episodes, wordings)
    success: dict[str, object] = {}
    for age_ms in ages_ms:
        shown = track(drawn, f"age {age_ms:g} ms", transient=True)
        outcomes = judging.run_episodes(
            encoder, head, settings.loop_settings(), settings.robot.options, shown, age_ms, settings.watchdog_ns
        )
        row = success[f"{age_ms:g}"] = judging.summarise(outcomes)
        typer.echo(judging.describe(age_ms, row))
    figures = {"policy": head.policy_id, "wordings": wordings, "seed": seed, "success": success}
    write_report(report, figures | environment())


def _check_policy(settings: Config) -> list[str]:
    """What policy and robot are, in words. Raises MismatchError when they do not fit."""
    from control.clock import MonotonicClock
    from control.discovery import REMOTE, make_robot
    from control.errors import MismatchError
    from control.safety import Limits
    from vla.policy_spec import identify, verify

    folder = Path(settings.encoder.policy)
    spec = adapted(settings, verify(folder, settings.encoder.random_weights))
    policy_id = identify(folder, settings.encoder.random_weights)
    check_encoder(settings, spec)
    lines = [f"policy {policy_id} ({spec.name}): cameras {', '.join(spec.cameras)}"]
    if 0 < round(spec.feature_age_ms[1]) < settings.freshness.hold_after_ms:
        lines.append(
            f"note: RUN is allowed up to {settings.freshness.hold_after_ms:g} ms of feature age,"
            f" the policy was trained up to {spec.feature_age_ms[1]:.0f} ms"
        )
    if settings.robot.name == REMOTE:
        return [*lines, "robot: remote; its host is checked when it speaks"]
    robot = make_robot(settings.robot.name, MonotonicClock(), settings.robot.options)
    Limits.of(robot.spec, 1.0, settings.safety.workspace, settings.safety.allow_unlimited)
    problems = spec.fits(robot.spec)
    if problems:
        raise MismatchError(
            f"policy {settings.encoder.policy} does not fit robot '{robot.spec.name}': " + "; ".join(problems)
        )
    return [
        *lines,
        f"robot '{robot.spec.name}': {len(robot.spec.action_names)} actions, {len(robot.spec.cameras)} cameras",
    ]


def main() -> None:
    from control.errors import SaccadeError

    try:
        app()
    except SaccadeError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
