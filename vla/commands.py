"""The commands that need vla/ but no robot of ours: the encoder process, and how fast encoder and head are.

Imports stay inside the commands, so that no operator's command loads torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from control.commands import DEFAULT_CONFIG, ConfigOption, ParentOption, ReportOption, SetOption, load, process

if TYPE_CHECKING:
    from control.config import Config
    from vla.assemble import EncoderOptions
    from vla.policy_spec import PolicySpec

app = typer.Typer()
bench = typer.Typer(
    name="bench",
    help="Measure: how fast the encoder and the head are, and what a precision changes.",
    no_args_is_help=True,
)
ChartOption = Annotated[Path | None, typer.Option("--chart", metavar="FILE.png", help="Draw the bars.")]


@app.command(rich_help_panel="Processes")
def encoder(config: ConfigOption = DEFAULT_CONFIG, set_: SetOption = None, parent: ParentOption = 0) -> None:
    """The encoder alone: camera frames and the instruction in, features out, as fast as it can."""
    settings, stopped = process("encoder", config, set_, parent)
    from vla.service import run_encoder

    options = settings.encoder
    run_encoder(
        settings.bus.build(),
        Path(options.policy),
        device=options.device,
        threads=options.threads,
        random_weights=options.random_weights,
        options=encoder_options(settings),
        max_rate_hz=options.max_rate_hz,
        stopped=stopped,
    )


@bench.command(name="encode")
def bench_encode(
    geometry: Annotated[
        Literal["3b", "mid", "embedded"] | None,
        typer.Option(help="Model size, with random weights.", show_default="3b on a GPU, mid on a CPU"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda if there is a GPU")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.", show_default="all cores")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Five views of 224x224 alone, in under 3 minutes.")] = False,
    chart: ChartOption = None,
    report: ReportOption = None,
) -> None:
    """One encode in every way, from the stock forward to the full engine: time, speed-up, cosine, counts, floor."""
    import os

    import torch
    from rich.console import Console

    from control.environment import environment
    from control.report import check_writable, write_report
    from vla.assemble import find_device
    from vla.bench import measure_encode
    from vla.bench_report import check_chart, draw, notes, tables

    check_writable(report)
    check_chart(chart)
    place = find_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    console = Console()
    figures = measure_encode(
        geometry or ("3b" if place.type == "cuda" else "mid"), place, quick=quick, log=lambda line: console.print(line)
    )
    for table in tables(figures):
        console.print(table)
    for line in notes(figures):
        console.print(line, soft_wrap=True)
    if chart:
        draw(figures, chart)
    write_report(report, figures | environment())


@bench.command(name="head")
def bench_head(config: ConfigOption = DEFAULT_CONFIG, set_: SetOption = None, report: ReportOption = None) -> None:
    """One action chunk from the configured policy's head, and from one of the 3B policy's sizes, on one CPU thread."""
    import torch
    from rich.console import Console

    from control.environment import environment
    from control.report import check_writable, write_report
    from vla.bench_head import head_table, measure_head

    settings = load(config, set_)
    check_writable(report)
    torch.set_num_threads(1)
    figures = measure_head(Path(settings.encoder.policy), settings.encoder.random_weights)
    Console().print(head_table(figures))
    write_report(report, figures | environment())


def adapted(settings: Config, spec: PolicySpec) -> PolicySpec:
    """The policy as the config's overrides make it; see `PolicySpec.adapted`."""
    options = settings.encoder
    cameras = None if options.cameras is None else tuple(options.cameras)
    return spec.adapted(cameras, options.model_image_size, options.language_layers, trained=not options.random_weights)


def encoder_options(settings: Config) -> EncoderOptions:
    """The config's section `encoder` as the encoder takes it."""
    from vla.assemble import EncoderOptions

    options = settings.encoder
    return EncoderOptions(
        precision=options.precision,
        quantise_vision=options.quantise_vision,
        smoothing=None if options.smoothing is None else Path(options.smoothing),
        attention=options.attention,
        compile_mode=options.compile,
        cuda_graph=options.cuda_graph,
        reuse_views=tuple(options.reuse_views),
        reuse_max_age_ms=options.reuse_max_age_ms,
        reuse_threshold=options.reuse_threshold,
        cameras=None if options.cameras is None else tuple(options.cameras),
        image_size=options.model_image_size,
        language_layers=options.language_layers,
    )
