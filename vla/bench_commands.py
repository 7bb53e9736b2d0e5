"""`launch.py bench ...`: how fast encoder and head are, and what a precision changes.

Imports stay inside the commands, so that no operator's command loads torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from control.commands import DEFAULT_CONFIG, ConfigOption, ReportOption, SetOption, load
from vla.commands import encoder_options

if TYPE_CHECKING:
    from control.captures import Captures
    from control.config import Config
    from vla.encoder import QwenEncoder

bench = typer.Typer(
    name="bench",
    help="Measure encoder, head, precision, pacing, bus, STOP, and what looking on costs.",
    no_args_is_help=True,
)
WIDTH = 170  # of tables that go to a file
DRAWN_SEED = 2_000_000  # away from the scenes of training
_VISIBLE = ("encoder.compile=eager", "encoder.cuda_graph=false", "encoder.reuse_views=[]")  # every layer can be seen
_PLAIN = (*_VISIBLE, "encoder.smoothing=null", "encoder.quantise_vision=false", "encoder.attention=sdpa")
FramesOption = Annotated[
    Path | None,
    typer.Option("--frames", metavar="FILE.npz", help="Captures of your robot.", show_default="scenes it draws"),
]
CountOption = Annotated[int, typer.Option(min=1, max=4096, help="Scenes to draw where no --frames are given.")]


@bench.command(name="encode")
def bench_encode(
    geometry: Annotated[
        Literal["3b", "mid", "embedded"] | None,
        typer.Option(help="Model size, with random weights.", show_default="3b on a GPU, mid on a CPU"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda if there is a GPU")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="all cores")] = None,
    views: Annotated[
        list[int] | None, typer.Option(min=1, max=5, help="Numbers of views.", show_default="5, 3 and 1")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", metavar="WxH", help="Camera sizes.", show_default="640x360 and 224x224"),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="WORD", help="Rows with this in their name, beside the first.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Five views of 224x224 alone, in under 3 minutes.")] = False,
    chart: Annotated[Path | None, typer.Option("--chart", metavar="FILE.png", help="Draw the bars.")] = None,
    report: ReportOption = None,
) -> None:
    """One encode in every way, from the stock forward to the full engine: time, speed-up, cosine, counts, floor."""
    import os

    import torch
    from rich.console import Console

    from control.environment import environment
    from control.report import check_writable, write_report
    from vla.assemble import find_device
    from vla.bench import VIEWS, measure_encode
    from vla.bench_report import check_chart, draw, notes, tables

    if quick and (views or size):
        raise typer.BadParameter("--quick has views and a size of its own: leave out --views and --size")
    check_writable(report)
    check_chart(chart)
    place = find_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    figures = measure_encode(
        geometry or ("3b" if place.type == "cuda" else "mid"),
        place,
        quick=quick,
        views=tuple(dict.fromkeys(views or VIEWS)),
        sizes=list(dict.fromkeys(map(_size, size))) if size else None,
        only=tuple(only or ()),
        log=lambda line: console.print(line, markup=False, highlight=False),
    )
    for table in tables(figures):
        console.print(table)
    for line in notes(figures):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
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


@bench.command(name="frames")
def bench_frames(
    out: Annotated[Path, typer.Option(metavar="FILE.npz", help="Where the captures go.")],
    count: Annotated[int, typer.Option(min=1, max=4096, help="How many captures.")] = 32,
    every: Annotated[float, typer.Option(metavar="S", min=0.0, help="Seconds between two of a live run.")] = 0.5,
    draw: Annotated[bool, typer.Option("--draw", help="Scenes of a simulator, not of the run.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
) -> None:
    """Captures for `bench accuracy` and `bench calibrate`: what the cameras of the run that goes on see."""
    from rich.console import Console

    from control.captures import collect
    from control.host import stop_on_signals
    from control.report import check_writable

    settings = load(config, set_)
    check_writable(out)
    if draw:
        seen = _captures(settings, None, count)
    else:
        with Console(stderr=True).status("listening") as shown:
            seen = collect(
                settings.bus.build(),
                count,
                every,
                stop_on_signals(),
                lambda number: shown.update(f"{number} of {count}"),
            )
    seen.save(out)
    typer.echo(f"{out}: {len(seen)} captures of {', '.join(seen.images)}")


@bench.command(name="accuracy")
def bench_accuracy(
    frames: FramesOption = None,
    count: CountOption = 32,
    against: Annotated[Literal["bf16", "fp32"], typer.Option(help="The plain model to compare with.")] = "bf16",
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    report: ReportOption = None,
) -> None:
    """What the configured precision changes: features of each view, layers and actions, against the config's limits."""
    from rich.console import Console

    from control.environment import environment
    from control.progress import Progress
    from control.report import check_writable, write_report
    from vla.accuracy import Limits, compare, table
    from vla.policy import load_head

    settings, plain = (
        load(config, [*(set_ or []), *keys]) for keys in (_VISIBLE, [*_PLAIN, f"encoder.precision={against}"])
    )
    check_writable(report)
    captures = _captures(settings, frames, count)
    options = settings.encoder
    reference, candidate = _load_encoder(plain), _load_encoder(settings)
    head = load_head(Path(options.policy), options.random_weights)
    names = (against, _described(settings))
    with Progress(len(captures), "captures") as progress:
        found = compare(
            reference,
            candidate,
            captures,
            head,
            Limits(**options.accuracy.model_dump()),
            names,
            lambda done: progress.show(done, " beside ".join(names)),
        )
    Console().print(table(found))
    typer.echo(found.verdict())
    source = "drawn" if frames is None else frames.name
    write_report(report, found.as_json() | {"policy": reference.policy_id, "frames": source} | environment())
    raise typer.Exit(0 if found.passed else 1)


@bench.command(name="calibrate")
def bench_calibrate(
    out: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="For the config's encoder.smoothing.")],
    frames: FramesOption = None,
    count: CountOption = 32,
    alpha: Annotated[float, typer.Option(help="Towards 0 outliers stay in activations, towards 1 in weights.")] = 0.5,
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
) -> None:
    """Smoothing factors for int8 and fp8: moves outliers from the activations into the weights, exactly."""
    from control.report import check_writable
    from vla import smoothing

    if not 0 < alpha < 1:
        raise typer.BadParameter(f"--alpha lies between 0 and 1, got {alpha:g}: 0.5 suits most models")
    device = load(config, set_).encoder.device
    plain = "fp32" if device == "cpu" else "bf16"  # what a GPU that runs int8 has room for
    settings = load(config, [*(set_ or []), *_PLAIN, f"encoder.precision={plain}"])
    check_writable(out)
    captures = _captures(settings, frames, count)
    encoder = _load_encoder(settings)

    def look() -> None:
        for index, text in enumerate(captures.instructions):
            encoder.pooled(captures.frames(index), text)

    factors = smoothing.calibrate(encoder.backbone, look, vision=True, alpha=alpha)
    smoothing.save(out, factors, encoder.policy_id, alpha, len(captures))
    typer.echo(
        f"{len(factors)} products smoothed over {len(captures)} captures: set encoder.smoothing to {out.resolve()}"
    )


def _size(text: str) -> tuple[int, int]:
    """(height, width) of `640x360`."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and all(28 <= int(side) <= 4096 for side in (width, height))):
        raise typer.BadParameter(f"--size takes WIDTHxHEIGHT in pixels like 640x360, from 28 to 4096, got '{text}'")
    return int(height), int(width)


def _load_encoder(settings: Config) -> QwenEncoder:
    import torch

    from vla.assemble import load_encoder

    options = settings.encoder
    torch.set_num_threads(options.threads)
    return load_encoder(Path(options.policy), options.device, 1, options.random_weights, encoder_options(settings))


def _captures(settings: Config, file: Path | None, count: int) -> Captures:
    """One's own captures, or scenes that a simulated robot draws."""
    from control.captures import load_captures
    from control.clock import MonotonicClock
    from control.discovery import REMOTE, make_robot
    from control.robot import Draws

    if file is not None:
        return load_captures(file)
    name, options = settings.robot.name, settings.robot.options
    robot = None if name == REMOTE else make_robot(name, MonotonicClock(), options)
    if not isinstance(robot, Draws):
        raise typer.BadParameter(
            f"robot '{settings.robot.name}' cannot draw scenes: give --frames FILE.npz, which `bench frames` writes"
            " beside a run"
        )
    return robot.draw(DRAWN_SEED, count)


def _described(settings: Config) -> str:
    options = settings.encoder
    quantised = options.precision in ("int8", "fp8")
    parts = [
        options.precision,
        "vision tower too" if options.quantise_vision and quantised else "",
        "smoothed" if options.smoothing else "",
    ]
    return ", ".join(part for part in parts if part)
