"""`bench loop`, `wire`, `watchers` and `stop`: the benchmarks that need no model. `launch.py` puts them beside vla/'s.

Imports stay inside the commands, so that no operator's command starts slower.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from control.commands import DEFAULT_CONFIG, ConfigOption, ReportOption, SetOption, config_words, load

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer()
_WIDTH = 150  # of tables that go to a file


@app.command(name="loop")
def bench_loop(
    rates: Annotated[str, typer.Option(metavar="HZ,HZ", help="Rates of the loop.")] = "10,50,100",
    loads: Annotated[str, typer.Option(metavar="NAMES", help="idle, busy (every core computes), or both.")] = (
        "idle,busy"
    ),
    duration: Annotated[float, typer.Option(metavar="S", min=0.5, help="Of every rate under every load.")] = 10.0,
    report: ReportOption = None,
) -> None:
    """How exactly a loop is paced: our grid beside relative sleep, re-based sleep and catch-up, all at once."""
    from rich.markup import escape

    from control.bench_loop import measure_loop, notes, parse_loads, parse_rates, tables
    from control.environment import environment
    from control.report import check_writable, write_report

    wanted, loaded = parse_rates(rates), parse_loads(loads)
    check_writable(report)
    where = environment()
    console, progress = _consoles()
    with progress.status("") as shown:
        found = measure_loop(wanted, loaded, duration, lambda text: shown.update(escape(text)))
    for table in tables(found):
        console.print(table)
    for line in notes(found):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    write_report(report, found | where)


@app.command(name="wire")
def bench_wire(
    transports: Annotated[str, typer.Option(metavar="NAMES", help="ipc, tcp (loopback), or both.")] = "ipc,tcp",
    duration: Annotated[
        float, typer.Option(metavar="S", min=0.1, help="Of every message over every transport, paced and unpaced each.")
    ] = 3.0,
    report: ReportOption = None,
) -> None:
    """How long features and frames take from process to process over the bus, and how many go through."""
    from rich.markup import escape

    from control.bench_wire import cases, measure_wire, notes, parse_transports, table
    from control.environment import environment
    from control.report import check_writable, write_report

    wanted = parse_transports(transports)
    check_writable(report)
    where = environment()
    console, progress = _consoles()
    with progress.status("") as shown:
        found = measure_wire(cases(), wanted, duration, lambda text: shown.update(escape(text)))
    console.print(table(found))
    for line in notes(found):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    write_report(report, found | where)


@app.command(name="stop")
def bench_stop(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    count: Annotated[int, typer.Option(min=1, help="How often to stop and resume.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the moments within a period.")] = 0,
    report: ReportOption = None,
) -> None:
    """How long STOP takes on the run that goes on, from a client to the held command leaving the controller."""
    from control.bench_stop import measure_stop
    from control.environment import environment
    from control.host import stop_on_signals
    from control.report import check_writable, write_report

    settings = load(config, set_)
    check_writable(report)
    console, progress = _consoles()
    with progress.status("") as shown:
        found = measure_stop(
            settings.bus.build(), count, seed, stop_on_signals(), lambda done: shown.update(f"{done} of {count}")
        )
    for name, what in (("sent_ms", "the action left the controller"), ("heard_ms", "it was heard by another process")):
        times = ", ".join(f"{key} {value:.2f}" for key, value in found[name].items())
        console.print(f"stop until {what}: {times} ms, of {found['count']}", highlight=False)
    write_report(report, found | {"period_ms": 1000 / settings.control.rate_hz} | environment())


@app.command(name="watchers")
def bench_watchers(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    rounds: Annotated[int, typer.Option(min=1, help="Each has a block of every kind.")] = 6,
    duration: Annotated[float, typer.Option(metavar="S", min=2, help="Of every block.")] = 20.0,
    say: Annotated[str, typer.Option(help="What the run is told to do.")] = "touch the red block",
    report: ReportOption = None,
) -> None:
    """What page, recorder and profiler cost the loop: a run with all of them beside it and with none, in turn."""
    import tempfile

    from rich.markup import escape

    from control.bench_watchers import Watchers, notes, ratio_table, table
    from control.environment import environment
    from control.host import stop_on_signals
    from control.page_commands import find_missing
    from control.report import check_writable, write_report

    settings = load(config, set_)
    if missing := find_missing():
        raise typer.BadParameter(f"no page to measure: {missing}")
    check_writable(report)
    where, stopped = environment(), stop_on_signals()
    console, progress = _consoles()
    with progress.status("") as shown, tempfile.TemporaryDirectory(prefix="saccade-bench-") as folder:
        watchers = Watchers(settings.bus.build(), config_words(config, set_), say, Path(folder))
        found = watchers.measure(rounds, duration, stopped, lambda text: shown.update(escape(text)))
    for grid in (table(found), ratio_table(found)):
        console.print(grid)
    for line in notes(found):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    write_report(report, found | where)


def _consoles() -> tuple[Console, Console]:
    """Where tables go, and where progress is shown."""
    from rich.console import Console

    console = Console()
    return (console if console.is_terminal else Console(width=_WIDTH)), Console(stderr=True)
