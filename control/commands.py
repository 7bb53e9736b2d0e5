"""The commands that need nothing but control/: the robot host, and what an operator says to a running controller.

Imports stay inside the commands, so that `say` starts fast. `launch.py` puts these beside the commands of the others;
the options that all of them share are named here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from control.plain_text import printable

if TYPE_CHECKING:
    from control.config import Config

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_CONFIG = ROOT / "configs" / "sim.yaml"

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="Config file.", show_default="configs/sim.yaml")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the config.")
]
ParentOption = Annotated[int, typer.Option("--parent", hidden=True)]
ReportOption = Annotated[Path | None, typer.Option("--report", metavar="FILE.json", help="Write all figures as JSON.")]

app = typer.Typer()


@app.command(rich_help_panel="Processes")
def robot(config: ConfigOption = DEFAULT_CONFIG, set_: SetOption = None, parent: ParentOption = 0) -> None:
    """The robot host alone: drives one robot, publishes its cameras and state, follows actions, holds by itself."""
    from control.clock import MonotonicClock
    from control.discovery import make_robot
    from control.host import RobotHost

    settings, stopped = process("robot", config, set_, parent)
    clock = MonotonicClock()
    options = settings.robot
    host = RobotHost(
        make_robot(options.name, clock, options.options),
        settings.bus.build(),
        clock=clock,
        host_hz=options.host_hz,
        state_hz=options.state_hz,
        camera_hz=options.camera_hz,
        watchdog_ns=settings.watchdog_ns,
        history_samples=options.history_samples,
        cameras=settings.cameras.build(),
    )
    host.run(stopped)


@app.command(rich_help_panel="Operate")
def say(
    text: Annotated[str, typer.Argument(help='What to do, for example "touch the red block".')],
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
) -> None:
    """Give the running controller a new instruction; answers when the robot acts on it, with the switch latency."""
    _command("say", config, set_, text)


@app.command(rich_help_panel="Operate")
def status(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """What the controller is doing, and why."""
    values = _command("status", config, set_, quiet=True)
    if as_json:
        typer.echo(json.dumps(values))
        return
    for name, value in values.items():
        shown = "" if value is None else round(value, 2) if isinstance(value, float) else printable(str(value))
        typer.echo(f"{name:>16}  {shown}")


@app.command(rich_help_panel="Operate")
def stop(config: ConfigOption = DEFAULT_CONFIG, set_: SetOption = None) -> None:
    """Stop the robot where it is, latched until `resume`. No replacement for the hardware's emergency stop."""
    _command("stop", config, set_)


@app.command(rich_help_panel="Operate")
def resume(config: ConfigOption = DEFAULT_CONFIG, set_: SetOption = None) -> None:
    """Leave STOP, if its cause is gone."""
    _command("resume", config, set_)


def load(config: Path, overrides: list[str] | None) -> Config:
    """The config of a file with its overrides; see `control.config.load_config`."""
    from control.config import load_config

    return load_config(config, overrides)


def config_words(config: Path, overrides: list[str] | None) -> list[str]:
    """The same config and overrides as words of a command line, for a process of this runtime."""
    return ["--config", str(config), *(word for item in overrides or [] for word in ("--set", item))]


def process(
    name: str, config: Path, overrides: list[str] | None, parent: int, dies_with_parent: bool = False
) -> tuple[Config, Callable[[], bool]]:
    """Config and stop condition of a process: a signal, or the end of the supervisor that started it. One that
    `dies_with_parent` is killed then, also where it hangs.
    """
    from control.child import die_with_parent
    from control.console import log_to_stderr
    from control.host import stop_on_signals

    log_to_stderr()
    if parent and dies_with_parent:
        die_with_parent()
    if parent:
        os.set_blocking(sys.stderr.fileno(), False)  # a supervisor that does not read must not stop the loop
    signalled = stop_on_signals()
    return load(config, overrides), lambda: signalled() or (parent != 0 and os.getppid() != parent)


def _command(verb: str, config: Path, overrides: list[str] | None, text: str = "", quiet: bool = False) -> dict:
    from control.command_bus import CommandClient

    settings = load(config, overrides)
    client = CommandClient(settings.bus.build())
    finish_s = settings.control.switch_max_ms / 1000 + 30.0
    reply = client.request(verb, text, answer_s=1.0, finish_s=finish_s)
    client.close()
    if not quiet:
        typer.echo(printable(reply.message))
    return reply.values
