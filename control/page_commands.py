"""The command `page`, and whether its extra is there. Imports stay inside: no other command starts slower."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

import typer

from control.commands import DEFAULT_CONFIG, ConfigOption, ParentOption, SetOption, process
from control.errors import ConfigError, SaccadeError

if TYPE_CHECKING:
    from control.config import Config

app = typer.Typer()
_NICENESS = 10  # the page gives way to the processes that move the robot
_NEEDED = ("aiohttp", "PIL")


def find_missing() -> str:
    """Why there can be no page, empty when there can."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    return f"it needs {' and '.join(missing)}: pip install 'saccade[page]'" if missing else ""


@app.command(rich_help_panel="Operate")
def page(config: ConfigOption = DEFAULT_CONFIG, set_: SetOption = None, parent: ParentOption = 0) -> None:
    """The run that goes on, in a browser. `run` starts this by itself; alone it joins a run without a page."""
    if missing := find_missing():
        raise ConfigError(f"no page: {missing}")
    settings, stopped = process("page", config, set_, parent)
    from control.address import announced
    from control.give_way import give_way
    from control.page import Page

    give_way(_NICENESS)

    options, rungs = settings.page, settings.freshness
    bus = settings.bus.build()
    serving = Page(
        bus,
        host=options.host,
        port=options.port,
        require_token=options.require_token,
        image_hz=options.image_hz,
        ladder_ms=(rungs.slow_after_ms, rungs.hold_after_ms, rungs.stop_after_ms),
        period_ms=1000 / settings.control.rate_hz,
        links=_links(settings),
    )
    with announced(bus, "page"):
        serving.run(stopped)


def _links(settings: Config) -> list[dict[str, Any]]:
    """The shape of the robot, where it is installed here and tells it."""
    from control.clock import MonotonicClock
    from control.discovery import REMOTE, make_robot
    from control.page_arm import drawable

    if settings.robot.name == REMOTE:
        return []
    try:
        return drawable(make_robot(settings.robot.name, MonotonicClock(), settings.robot.options))
    except SaccadeError as error:
        logging.getLogger("page").warning("the arm is not drawn: %s", error)
        return []
