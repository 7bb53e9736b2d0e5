"""`replay`: a recording through encoder and head again. Which ones, a loader says that this folder is given.

Imports stay inside the command, so that no other one starts slower.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from control.commands import DEFAULT_CONFIG, ConfigOption, ReportOption, SetOption, load

if TYPE_CHECKING:
    from control.config import Config
    from control.head import ActionHead
    from control.messages import RobotSpec
    from control.replay import Encodes

Loader = Callable[["Config", "RobotSpec"], tuple["Encodes", "ActionHead"]]


def replay_app(load_parts: Loader) -> typer.Typer:
    """The command. `load_parts` builds encoder and head of a config's policy, and raises a SaccadeError where that does
    not fit the robot of a recording."""
    app = typer.Typer()

    @app.command(rich_help_panel="Measure")
    def replay(
        recording: Annotated[Path, typer.Argument(metavar="FILE.mcap", help="Of `run --record` or `record`.")],
        policy: Annotated[
            Path | None, typer.Option(metavar="DIR", help="Another policy than the config's.", show_default=False)
        ] = None,
        realtime: Annotated[
            bool,
            typer.Option(
                "--realtime",
                help="With the recorded spacing: the encoder takes what is newest when it is free, as in a live run."
                " Otherwise in lockstep: each tick gets the very capture it acted on, at the recorded feature age.",
            ),
        ] = False,
        config: ConfigOption = DEFAULT_CONFIG,
        set_: SetOption = None,
        report: ReportOption = None,
    ) -> None:
        """Feed a recording through encoder and head again; how features and actions differ from the recorded ones.

        With another policy (--policy) or precision (--set encoder.precision=fp32): what it would have done there.
        """
        chosen = [] if policy is None else [f"encoder.policy={json.dumps(str(policy.resolve()))}"]
        _replay(load_parts, load(config, [*(set_ or []), *chosen]), recording, realtime, report)

    return app


def _replay(load_parts: Loader, settings: Config, file: Path, realtime: bool, report_file: Path | None) -> None:
    from rich.console import Console
    from rich.markup import escape

    from control.clock import MonotonicClock
    from control.console import text_console
    from control.environment import environment
    from control.errors import ConfigError
    from control.host import stop_on_signals
    from control.recording_reader import read_recording
    from control.replay import Actor, in_lockstep, in_wall_clock_time
    from control.replay_report import lines, report, table
    from control.replay_robot import check_has
    from control.replay_ticks import recorded_ticks
    from control.report import check_writable, write_report

    check_writable(report_file)
    topics = ("frames", "state", "instruction", "action", "features", "cycle")
    recording = read_recording(file, topics)
    check_has(recording, "frames", "state", "instruction", "action")
    ticks, left_out = recorded_ticks(recording, settings.watchdog_ns)
    if not ticks:
        why = "; ".join(f"{count} x {reason}" for reason, count in left_out.most_common(3))
        raise ConfigError(f"recording {file} holds no tick that can be replayed: {why}")
    encoder, head = load_parts(settings, recording.spec)
    act = Actor(recording, head, settings.loop_settings())
    stopped = stop_on_signals()
    console = Console(stderr=True)
    with console.status("") as shown:

        def show(done: int) -> None:
            shown.update(escape(f"{file.name}: {done:,} of {len(ticks):,} ticks"))

        if realtime:
            replayed = in_wall_clock_time(recording, ticks, encoder, act, MonotonicClock(), stopped, show)
        else:
            replayed = in_lockstep(recording, ticks, encoder, act, stopped, show)
    found = report(recording, replayed, left_out, head.policy_id)
    options = settings.encoder
    found |= {
        "pace": "wall-clock" if realtime else "lockstep",
        "precision": options.precision,
        "device": options.device,
        "was_stopped": len(replayed) < len(ticks),
    }
    out = text_console()
    if found["actions"]:
        out.print(table(found))
    for line in lines(found):
        out.print(escape(line))
    write_report(report_file, found | environment())
    if found["was_stopped"] or not found["ticks"]["compared"]:
        raise typer.Exit(1)
