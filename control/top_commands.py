"""`top`. Imports stay inside the command: no other starts slower."""

from __future__ import annotations

from typing import Annotated

import typer

from control.commands import DEFAULT_CONFIG, ConfigOption, SetOption, load

app = typer.Typer()
_WIDTH = 120  # where there is no terminal
_NICENESS = 5  # an onlooker yields to everything that moves the robot


@app.command(rich_help_panel="Operate")
def top(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    once: Annotated[bool, typer.Option("--once", help="Look for a second and a half, print, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON; without --once an object a second.")] = False,
) -> None:
    """Watch the run that goes on: rates, feature age, timing, mode and reasons, limits, memory. q ends it.

    It only listens, so it changes nothing in the run; it waits for a run that is still to come.

    Where there is no terminal it prints a line a second.
    """
    from rich.console import Console

    from control.give_way import give_way
    from control.host import stop_on_signals
    from control.top import Top

    settings = load(config, set_)
    give_way(_NICENESS)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    shown = Top(settings.bus.build(), settings.freshness.build(), console, as_json=as_json)
    stopped = stop_on_signals()
    if once:
        shown.once(stopped)
    else:
        shown.run(stopped)
