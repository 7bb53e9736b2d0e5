"""`profile`: where the time of each cycle went, and how old the features were. Imports stay inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from control.commands import DEFAULT_CONFIG, ConfigOption, ReportOption, SetOption, load

app = typer.Typer()

_PIPE_WIDTH = 120  # of tables that go to a file or another program


@app.command(rich_help_panel="Measure")
def profile(
    recording: Annotated[
        Path | None, typer.Argument(metavar="FILE.mcap", help="A recording. Without it: the run that goes on.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    duration: Annotated[
        float | None,
        typer.Option(metavar="S", min=0.5, max=3600, show_default="10", help="How long to listen to a run."),
    ] = None,
    report: ReportOption = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw feature age, its parts, both rates, histograms.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write a Chrome trace, which ui.perfetto.dev opens.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Show beside it a profile that --report wrote.")
    ] = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Only measure what the stamps cost a cycle; needs no run.")
    ] = False,
) -> None:
    """Where the time of each cycle went, and how old the features were: of the run that goes on, or of a recording.

    Feature age is split into camera, queue, the stages of the encode, transport and cache, and they add up.

    A live profile is one more listener on the bus: nobody waits for it.

    Of a recording, the ladder drawn is the --config's.
    """
    from rich.console import Console
    from rich.markup import escape

    from control.console import text_console
    from control.environment import environment
    from control.host import stop_on_signals
    from control.profile_cost import measure_cost
    from control.profile_figures import check_file, load_profile
    from control.profile_figures import profile as figures_of
    from control.profile_plot import check_plot, draw
    from control.profile_source import live, recorded
    from control.profile_tables import compared_counts, comparison, cost_line, summary, table
    from control.profile_trace import write_trace
    from control.report import write_report

    if recording and duration is not None:
        raise typer.BadParameter("--duration is of a live run; a recording is profiled whole")
    if cost and (recording or duration is not None or plot or trace or against):
        raise typer.BadParameter("--cost measures by itself: it goes with --config, --set and --report only")
    settings = load(config, set_)
    other = load_profile(against) if against else None
    files = [file.resolve() for file in (recording, report, plot, trace) if file]
    if len(set(files)) < len(files):
        raise typer.BadParameter("the recording, --report, --plot and --trace must be different files")
    for option, file in (("--report", report), ("--trace", trace)):
        check_file(option, file)
    check_plot(plot)
    console = text_console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    period_ms = 1000 / settings.control.rate_hz
    if cost:
        spent = measure_cost(period_ms)
        console.print(cost_line(spent))
        write_report(report, {"cost": spent, **environment()})
        return
    if recording:
        samples = recorded(recording)
    else:
        stopped = stop_on_signals()
        with Console(stderr=True).status("") as shown:
            samples = live(settings.bus.build(), duration or 10.0, stopped, lambda line: shown.update(escape(line)))
    result = figures_of(samples, settings.freshness.build()) | environment()
    if not recording:  # of this machine, after the measurement
        result["cost"] = measure_cost(result["period_ms"] or period_ms, cycles=300)
    console.print(table(result, console.width))
    for line in summary(result):
        console.print(escape(line))
    if other is not None:
        console.print()
        console.print(comparison(result, other, str(against), console.width))
        for line in compared_counts(result, other):
            console.print(escape(line))
    write_report(report, result)
    if trace:
        write_trace(trace, samples, environment())
    if plot:
        draw(result, samples, plot)
