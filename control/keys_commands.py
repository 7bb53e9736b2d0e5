"""The command `keys`. Imports stay inside: no other command starts slower."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from control.address import BusAddress

app = typer.Typer()


@app.command(rich_help_panel="Prepare")
def keys(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make; it must not exist yet.")],
    client: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another machine that may watch and command, a laptop. May be repeated."),
    ] = None,
) -> None:
    """Make the keys of a bus on a network: a folder for the robot's machine, one for a remote encoder's, and clients'.

    With `bus.keys` the bus is encrypted, and lets in only these machines.
    """
    from control.keys import ENCODER, ROBOT, make_keys

    machines = make_keys(out, client or [])
    where = out.resolve()
    uses = {ROBOT: "the robot's machine", ENCODER: "the encoder's machine, if that is another; may not command"}
    typer.echo("one folder a machine; on each, `bus.keys` names its own (an absolute path, or relative to the config):")
    for name in machines:
        typer.echo(f"  {where / name}  {uses.get(name, 'may watch and command')}")
    typer.echo(f"copy the others over ssh, then remove them here: scp -rp {where / ENCODER} USER@HOST:saccade-keys")
    typer.echo("who has a .key_secret is let in. To shut a machine out, remove its .key everywhere and start again")


def check_keys(bus: BusAddress) -> list[str]:
    """What the keys of a bus are, in words. Raises KeyFileError when they cannot be used."""
    from control.keys import load_keys

    if bus.keys is None:
        return []
    keys = load_keys(Path(bus.keys))
    others = ", ".join(sorted(keys.known.keys() - {keys.name}))
    is_used = any(address.startswith("tcp://") for address in (bus.address, bus.encoder or ""))
    idle = "" if is_used else "; not used, since no address of this bus is tcp"
    return [f"keys of '{keys.name}', which knows {others}{idle}"]
