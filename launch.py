#!/usr/bin/env python3
"""The command line of Saccade, and the only file that knows all three folders. Each command: parse, build, call.

Imports stay inside the commands: an operator's `say` loads no model code, and the supervisor no torch.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from control.bench_commands import app as control_bench
from control.commands import (
    DEFAULT_CONFIG,
    ROOT,
    ConfigOption,
    ParentOption,
    ReportOption,
    SetOption,
    config_words,
    load,
    process,
)
from control.commands import app as control_commands
from control.drill.commands import drill_app
from control.keys_commands import app as keys_command
from control.keys_commands import check_keys
from control.memory import return_large_blocks
from control.page_commands import app as page_command
from control.profile_commands import app as profile_command
from control.record_commands import app as export_command
from control.replay_commands import replay_app
from control.soak_commands import app as soak_command
from control.top_commands import app as top_command
from sim.record_commands import TASKS
from sim.record_commands import app as record_command
from vla.bench_commands import bench
from vla.commands import adapted, check_encoder, encoder_options
from vla.commands import app as vla_commands
from vla.parts import load_parts
from vla.training.train_command import train_app

if TYPE_CHECKING:
    from control.config import Config

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
app.add_typer(page_command)
app.add_typer(keys_command)
app.add_typer(profile_command)
app.add_typer(vla_commands)
app.add_typer(record_command)
app.add_typer(export_command)
app.add_typer(soak_command)
app.add_typer(top_command)
app.add_typer(replay_app(load_parts))
bench.add_typer(control_bench)
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
    tasks: Annotated[str, typer.Option(metavar="NAMES", help=f"Of --episodes, with commas: {TASKS}.")] = "all",
    episode_s: Annotated[float, typer.Option(metavar="S", min=1.0, help="Length of an episode.")] = 15.0,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights", help="The backbone's geometry without its weights, for latency work; moves nothing."
        ),
    ] = False,
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE.mcap", help="Keep everything in a recording. If that fails, the robot goes on."),
    ] = None,
    page: Annotated[bool, typer.Option(help="Serve the run on a page for a browser; see `page` in the config.")] = True,
    report: ReportOption = None,
) -> None:
    """Start robot, encoder and controller, watch them, and end them in order on Ctrl-C or SIGTERM."""
    from control.child import Child, python_command
    from control.console import RunConsole
    from control.discovery import REMOTE
    from control.environment import environment
    from control.host import stop_on_signals
    from control.page_commands import find_missing
    from control.recorder import check_new
    from control.report import RunFigures, check_writable, write_report
    from control.script import Script
    from control.supervisor import RECORDER, Supervisor

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
    if record:
        check_new(record)
    where = environment()
    texts = [say] if say else []
    if episodes:
        from sim.tasks import episodes as sample_episodes
        from sim.tasks import named

        texts = [text for _, _, text in sample_episodes(seed or 0, episodes, "seen", named(tasks))]
    stopped = stop_on_signals()
    started_ns = time.monotonic_ns()
    bus = settings.bus.build()
    arguments = config_words(config, overrides)
    names = [("robot", "robot"), ("encoder", "encoder"), ("controller", "control")]
    children = [
        Child(name, python_command(Path(__file__).resolve(), subcommand, arguments))
        for name, subcommand in names
        if not (name == "robot" and settings.robot.name == REMOTE) and not (name == "encoder" and settings.bus.encoder)
    ]
    if record:
        words = ["--live", "--out", str(record), *arguments]
        children.insert(0, Child(RECORDER, python_command(Path(__file__).resolve(), "record", words), is_vital=False))
    missing = find_missing() if page else ""
    if page and not missing:
        children.append(Child("page", python_command(Path(__file__).resolve(), "page", arguments), is_vital=False))
    return_large_blocks()
    figures = RunFigures(1000 / settings.control.rate_hz, settings.view_period_ms, started_ns)
    console = RunConsole()
    if missing:
        console.line(f"       run | no page: {missing}")
    script = Script(bus, texts, episode_s if episodes else float("inf"))
    supervisor = Supervisor(
        bus,
        children,
        script,
        figures,
        max_encoder_restarts=settings.run.max_encoder_restarts,
        restart_backoff_s=settings.run.restart_backoff_s,
        start_timeout_s=settings.run.start_timeout_s,
        encoder_hung_s=settings.encoder_hung_s,
        show=console.line,
        show_status=console.status,
        is_terminal=console.is_terminal,
    )
    code = supervisor.run(stopped, duration)
    used = settings.model_dump(mode="json")
    for section, key in (("encoder", "policy"), ("encoder", "smoothing"), ("bus", "keys")):
        if used[section][key] is not None:  # no path of this machine stands in a report
            used[section][key] = os.path.relpath(used[section][key], ROOT)
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
    spec = adapted(settings, load_spec(folder))
    head = load_head(folder, settings.encoder.random_weights)
    running = Controller(
        settings.bus.build(),
        head,
        settings.loop_settings(),
        clock=MonotonicClock(),
        realtime=settings.control.realtime,
        find_misfits=spec.fits,
        needed_cameras=spec.needed_cameras,
    )
    running.run(stopped)


@app.command(rich_help_panel="Prepare")
def check(config: ConfigOption = DEFAULT_CONFIG, set_: SetOption = None) -> None:
    """Check config, policy and robot against each other without starting anything, and print the derived budgets."""
    from control.budgets import budgets

    settings = load(config, set_)
    for line in [*budgets(settings), *check_keys(settings.bus.build()), *_check_policy(settings)]:
        typer.echo(line)
    typer.echo("all well")


@app.command(name="eval", rich_help_panel="Prepare")
def evaluate(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Tasks of the robot, with commas: touch,pick; push for both sides; all."),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, metavar="N", help="Seeded episodes a task at each age.")] = 40,
    feature_age: Annotated[
        str | None,
        typer.Option(
            metavar="MS,MS",
            show_default="measured, and 600 and 1000 where the config allows them",
            help="Feature ages to charge, in ms: multiples of 10 under freshness.hold_after_ms. `measured` is what a"
            " live run comes to on this machine: the median encode time of this policy, and on top the longer of"
            " another encode and the time between two views, rounded up.",
        ),
    ] = None,
    wordings: Annotated[str, typer.Option(help="seen in training, or unseen.")] = "unseen",
    wordings_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Your own sentences instead, one `task: sentence` a line, # for comments. A task is written like"
            " `pick red`, `push-left blue`, `stack red on blue`.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the list of episodes.")] = 1000,
    controls: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            show_default="as many as --episodes, 40 at most",
            help="Episodes a task for each control, at the youngest age: another instruction in mid-task, no words,"
            " a frozen image of another scene, and, as information, one of this scene. 0: none.",
        ),
    ] = None,
    expert: Annotated[bool, typer.Option("--expert", help="The scripted expert on the same episodes, too.")] = False,
    workers: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Processes, of one thread each.")] = 1,
    failures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For each failed episode: how things stood (JSON), what was seen (PNG)."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw all against feature age.")] = None,
    report: ReportOption = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Report of another evaluation: its figures stand beside these."),
    ] = None,
    shard: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Success of a policy in closed loop, in lockstep at an exact feature age: the same loop and safety gate as live.

    Any robot can be evaluated that resets and judges itself (control/robot.py: Evaluates).
    """
    from sim.eval_session import Asked, Session
    from sim.evaluate import Lockstep
    from vla.policy_spec import identify

    settings = load(config, set_)
    if settings.encoder.random_weights:
        raise typer.BadParameter("eval needs a trained policy: encoder.random_weights moves nothing")
    asked = Asked(
        tasks, wordings, wordings_file, episodes, seed, feature_age, controls, expert, failures, plot, report, against
    )
    robot, options = settings.robot, settings.encoder
    lockstep = Lockstep(settings.loop_settings(), settings.watchdog_ns, robot.history_samples, robot.host_hz)
    session = Session(asked, robot.name, robot.options, lockstep)
    _check_policy(settings)
    folder = Path(options.policy)

    def load_policy() -> tuple[Any, Any]:
        import torch

        from vla.assemble import load_encoder
        from vla.policy import load_head

        torch.set_num_threads(1)
        encoder = load_encoder(folder, options.device, 1, options=encoder_options(settings))
        encoder.warm_up()
        return encoder, load_head(folder)

    if shard is not None:
        session.work(shard, load_policy)
        return
    arguments = [str(Path(__file__).resolve()), "eval", *config_words(config, set_)]
    about = {"policy": identify(folder), "precision": options.precision, "device": options.device, "robot": robot.name}
    session.lead(load_policy, workers, arguments, about, typer.echo)


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


def _sentences(seed: int) -> list[str]:
    """Tasks of the simulator, as it words them in training."""
    from sim.tasks import episodes, named

    return [text for _, _, text in episodes(seed, 50, "seen", named("all"))]


def _source(tasks: str, max_age_ms: float) -> Any:
    from sim.source import TabletopSource
    from sim.tasks import named

    return TabletopSource(named(tasks), max_age_ms=max_age_ms)


app.add_typer(train_app(_source, TASKS))
app.add_typer(drill_app(_check_policy, _sentences))


def main() -> None:
    from control.errors import SaccadeError
    from control.plain_text import printable_lines

    try:
        app()
    except SaccadeError as error:
        typer.echo(printable_lines(f"error: {error}"), err=True)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
