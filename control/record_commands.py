"""`record`: what a user types to keep a run. Imports stay inside the command, so that no other one starts slower."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from control.commands import DEFAULT_CONFIG, ConfigOption, ParentOption, SetOption, process

app = typer.Typer()
OutOption = Annotated[Path, typer.Option(metavar="FILE.mcap", help="Where the recording goes; it must not exist yet.")]
ImagesOption = Annotated[
    Literal["jpeg", "webp"], typer.Option(help="jpeg for real cameras; webp keeps every bit, best on simulated ones.")
]
QualityOption = Annotated[int, typer.Option(min=1, max=100, help="Of jpeg, always 4:4:4.")]


@app.command(rich_help_panel="Learn")
def record(
    out: OutOption,
    live: Annotated[bool, typer.Option("--live", help="The run that goes on, as it is on the bus.")] = False,
    seconds: Annotated[float | None, typer.Option(metavar="S", min=0.1, help="End by itself after this long.")] = None,
    images: ImagesOption = "jpeg",
    quality: QualityOption = 95,
    config: ConfigOption = DEFAULT_CONFIG,
    set_: SetOption = None,
    parent: ParentOption = 0,
) -> None:
    """Keep a run in an MCAP file: images, state, actions, features and cycles, for Foxglove, training and replay."""
    if not live:
        raise typer.BadParameter("what to record? --live takes the run that goes on", param_hint="--live")
    record_the_run(out, seconds, images, quality, config, set_, parent)


def record_the_run(
    out: Path,
    seconds: float | None,
    images: Literal["jpeg", "webp"],
    quality: int,
    config: Path,
    set_: list[str] | None,
    parent: int,
) -> None:
    """`record --live`, for whichever command has these options."""
    from rich.console import Console
    from rich.markup import escape

    from control.recorder import record_live
    from control.recording_images import ImageCodec

    settings, stopped = process("recorder", config, set_, parent)
    with Console(stderr=True).status("") as shown:
        line = record_live(
            settings,
            out,
            seconds,
            stopped,
            images=ImageCodec(images, quality),
            show=lambda text: shown.update(escape(text)),
        )
    typer.echo(line)
