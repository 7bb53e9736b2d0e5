"""`drill`. What the robot does meanwhile, and whether policy and robot fit, this folder is told.

Imports stay inside the command, so that no other one starts slower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from control.commands import DEFAULT_CONFIG, ROOT, ConfigOption, ReportOption, SetOption, config_words, load

if TYPE_CHECKING:
    from control.config import Config


def drill_app(check_policy: Callable[[Config], object], own_sentences: Callable[[int], list[str]]) -> typer.Typer:
    """The command. `check_policy` raises a SaccadeError for a policy that does not fit the robot; `own_sentences` are
    tasks of the config's robot, drawn by a seed.
    """
    app = typer.Typer()

    @app.command(rich_help_panel="Measure")
    def drill(
        config: ConfigOption = DEFAULT_CONFIG,
        set_: SetOption = None,
        say: Annotated[
            list[str] | None,
            typer.Option(help="What the robot does meanwhile; may be repeated. The simulator's own tasks otherwise."),
        ] = None,
        faults: Annotated[int, typer.Option(metavar="N", min=1, help="How many, of all kinds in turn.")] = 100,
        quick: Annotated[bool, typer.Option("--quick", help="One of each kind instead, in a few minutes.")] = False,
        only: Annotated[
            str | None,
            typer.Option(metavar="WORDS", help="Only kinds with one of these words, with commas: killed,camera."),
        ] = None,
        seed: Annotated[int, typer.Option(min=0, help="Of the first fault; each next one counts up.")] = 0,
        workers: Annotated[
            int, typer.Option(min=1, max=64, metavar="N", help="Processes, each with a robot and buses of its own.")
        ] = 1,
        report: ReportOption = None,
        part: Annotated[str | None, typer.Option(hidden=True)] = None,
    ) -> None:
        """Break everything on purpose, in real processes, and see who notices, what moves and what recovers.

        Exits with 1 when a promise was broken. Not for a robot that anybody stands beside.
        """
        from control.drill.session import Asked
        from control.drill.session import drill as hold_drill
        from control.drill.workers import Part
        from control.host import stop_on_signals

        settings = load(config, set_)
        check_policy(settings)
        asked = Asked(None if quick else faults, only, seed, workers, Part.parse(part) if part else None, report)
        code = hold_drill(
            settings,
            ROOT / "launch.py",
            config_words(config, set_),
            say or own_sentences(seed),
            asked,
            stop_on_signals(),
            typer.echo,
        )
        raise typer.Exit(code)

    return app
