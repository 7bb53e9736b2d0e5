"""`soak`. Imports stay inside the command: no other starts slower."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from control.commands import DEFAULT_CONFIG, ROOT, ConfigOption, ReportOption, SetOption, config_words, load

app = typer.Typer()
MOST_MISSED, MOST_GROWTH = 0.001, 0.02


@app.command(rich_help_panel="Measure")
def soak(
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    minutes: Annotated[float, typer.Option(min=0.2, help="From the first cycle on.")] = 60.0,
    restart_every: Annotated[float, typer.Option(metavar="S", min=5.0, help="The encoder is killed so often.")] = 240.0,
    settled: Annotated[
        float, typer.Option(metavar="S", min=0.0, help="Growth counts from this time of a process on.")
    ] = 300.0,
    episode_s: Annotated[float, typer.Option(metavar="S", min=1.0, help="A new instruction so often.")] = 15.0,
    report: ReportOption = None,
) -> None:
    """A long run with page, recorder and instructions, its encoder killed every few minutes: does anything grow?

    Exits with 1 where more than 0.1 % of the ticks are missed, or a process grows by more than 2 %.
    """
    import shutil
    import tempfile

    from rich.markup import escape

    from control.console import text_console
    from control.environment import environment
    from control.host import stop_on_signals
    from control.plain_text import printable
    from control.report import check_writable, write_report
    from control.soak import Soak, broken, read_report

    settings = load(config, set_)
    check_writable(report)
    stopped = stop_on_signals()
    folder = Path(tempfile.mkdtemp(prefix="saccade-soak-"))
    seconds = 60 * minutes
    words = config_words(config, set_)
    words += ["--set", "page.port=0", "--set", "run.max_encoder_restarts=10000"]
    words += [
        "--duration",
        str(seconds),
        "--episodes",
        str(int(seconds / episode_s) + 2),
        "--episode-s",
        str(episode_s),
    ]
    words += ["--record", str(folder / "soak.mcap"), "--report", str(folder / "run.json")]
    held = Soak(ROOT / "launch.py", words, settings.bus.build(), settled, restart_every)
    console = text_console()
    try:
        with console.status("") as shown:
            code = held.run(seconds, stopped, lambda text: shown.update(escape(text)))
        found = held.result() | {"run": read_report(folder / "run.json"), "exit_code": code}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sentences = broken(found, MOST_MISSED, MOST_GROWTH)
    if code:
        sentences.append(f"the run ended with code {code}")
    for name, process in found["processes"].items():
        memory, fds = (" to ".join(str(value) for value in process[key]) for key in ("rss_mb", "descriptors"))
        console.print(f"{name:>10}: {memory} MiB, descriptors {fds}, started {process['starts']} times")
    for span in ("first_tenth", "last_tenth"):
        late, age = found[span]["lateness_ms"], found[span]["feature_age_ms"]
        if late and age:
            console.print(
                f"{span.replace('_', ' ')}: lateness p50 {late['p50']:.2f}, p99 {late['p99']:.2f} ms;"
                f" feature age p50 {age['p50']:.0f}, p99 {age['p99']:.0f} ms"
            )
    missed = f"{found['missed_ticks']} of {found['cycles']} ticks missed"
    console.print(f"{missed}, encoder killed {held.kills} times, {held.stops.total()} stops")
    for reason, count in held.stops.items():
        console.print(f"stopped {count} times: {escape(printable(reason))}")
    for sentence in sentences:
        console.print(f"BROKEN: {sentence}")
    write_report(report, found | {"broken": sentences} | environment())
    raise typer.Exit(1 if sentences else 0)
