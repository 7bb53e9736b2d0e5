"""`export`, and the part of `record` that keeps the run that goes on. Imports stay inside: no command starts slower."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from control.commands import process

app = typer.Typer()
_NICENESS = 5  # and no more (see give_way.py): as a group it skipped half of the captures on a loaded machine


@app.command(rich_help_panel="Learn")
def export(
    recordings: Annotated[
        list[Path], typer.Argument(metavar="RECORDING...", help="Files, or folders with all their *.mcap.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the dataset; it must not exist yet.")],
    only_successes: Annotated[
        bool, typer.Option("--only-successes", help="Leave out episodes that were not judged a success.")
    ] = False,
) -> None:
    """Recordings as a LeRobot dataset (v3.0), so that other trainers can use them."""
    from rich.console import Console
    from rich.markup import escape

    from control.errors import ConfigError
    from control.lerobot import export as export_lerobot

    files = [file for path in recordings for file in (sorted(path.rglob("*.mcap")) if path.is_dir() else [path])]
    if not files:
        raise ConfigError(f"no *.mcap in {', '.join(map(str, recordings))}; `launch.py record` writes them")
    with Console(stderr=True).status("") as shown:
        done = export_lerobot(files, out, only_successes=only_successes, show=lambda text: shown.update(escape(text)))
    typer.echo(f"{out}: {done.episodes:,} episodes, {done.rows:,} rows from {len(files):,} files, LeRobot v3.0")
    if done.dropped:
        typer.echo(f"{done.dropped:,} actions were left out: no state or image within 500 ms before them")
    if done.pauses:
        typer.echo(f"{done.pauses:,} pauses (HOLD, missed ticks) cut an episode in two")
    for line in done.lost:
        typer.echo(line)


def record_the_run(
    out: Path,
    seconds: float | None,
    images: Literal["jpeg", "webp"],
    quality: int,
    config: Path,
    set_: list[str] | None,
    parent: int,
) -> None:
    """The run that goes on, into one file, until a signal or for `seconds`. Part of a run where there is a `parent`."""
    from rich.console import Console
    from rich.markup import escape

    from control.memory import return_large_blocks
    from control.recorder import record_live
    from control.recording_images import ImageCodec

    return_large_blocks()
    settings, stopped = process("recorder", config, set_, parent)
    if parent:
        os.nice(_NICENESS)
    with Console(stderr=True).status("") as shown:
        line = record_live(
            settings,
            out,
            seconds,
            stopped,
            images=ImageCodec(images, quality),
            waits_for_robot=bool(parent),
            show=lambda text: shown.update(escape(text)),
        )
    typer.echo(line)
