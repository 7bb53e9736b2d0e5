"""A head with another readout that goes on from a trained one: what has the same name keeps its weights.

So facts can be added to a policy, or told differently, without learning all the others again. What is new is read as
0 at first, whatever is seen, and counts for nothing in the trunk until training finds a use for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vla.errors import TrainingFault
from vla.head import SCALES, TrainedHead


@torch.no_grad()
def go_on_from(new: TrainedHead, old: TrainedHead, new_readout: Sequence[str], old_readout: Sequence[str]) -> None:
    """Weights and normalisation of `old` into `new`. Raises TrainingFault where more than the readout differs."""
    assert new.readout is not None and old.readout is not None
    rows = [(i, old_readout.index(name)) for i, name in enumerate(new_readout) if name in old_readout]
    columns = _inputs(new, new_readout), _inputs(old, old_readout)
    kept = dict(old.state_dict())
    wanted = new.state_dict()
    first, last = "trunk.0.weight", f"readout.{len(new.readout) - 1}"
    by_row = (f"{last}.weight", f"{last}.bias", "value_mean", "value_std")
    others = (kept.keys() | wanted.keys()) - {first, *by_row}
    if differs := [name for name in others if _shape(kept, name) != _shape(wanted, name)]:
        raise TrainingFault(f"cannot go on from a head of another kind or size: {', '.join(sorted(differs))} differ")
    merged = {first: _columns(wanted[first], kept[first], *columns)}
    merged |= {name: _rows(wanted[name], kept[name], rows) for name in by_row}
    merged["value_std"][merged["value_std"] == 0.0] = 1.0
    new.load_state_dict(kept | merged)


def _inputs(head: TrainedHead, readout: Sequence[str]) -> list[str]:
    """A name for every input of the trunk, in its order; see `TrainedHead.context`."""
    places = [name for name in readout if "." in name and name.rpartition(".")[2] in head.state_names]
    off = [f"off {name} {scale}" for scale in SCALES for name in places]
    window = head.state_dict()["trunk.0.weight"].shape[1] - len(readout) - len(head.state_names) - 1 - len(off)
    states = [f"state {name}" for name in head.state_names]
    return [*readout, *states, "age", *off, *(f"window {i}" for i in range(window))]


def _columns(new: torch.Tensor, old: torch.Tensor, new_names: list[str], old_names: list[str]) -> torch.Tensor:
    out = torch.zeros_like(new)
    for column, name in enumerate(new_names):
        if name in old_names:
            out[:, column] = old[:, old_names.index(name)]
    return out


def _rows(new: torch.Tensor, old: torch.Tensor, rows: Sequence[tuple[int, int]]) -> torch.Tensor:
    out = torch.zeros_like(new)
    for here, there in rows:
        out[here] = old[there]
    return out


def _shape(state: dict[str, torch.Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None
