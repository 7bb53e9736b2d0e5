"""The loss curve of a training as a picture and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vla.training.place import written


def save_curve(rows: Sequence[dict[str, float]], file: Path) -> str:
    """Writes FILE.json, and FILE.png where matplotlib is installed; returns a line that says which."""
    with written(file.with_suffix(".json")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".json").write_text(json.dumps(list(rows)), encoding="utf-8")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return f"loss curve: {file.with_suffix('.json')}; its picture needs matplotlib: pip install 'saccade[bench]'"
    names = sorted({name for row in rows for name in row} - {"step", "minutes"})
    losses, held_out = ([name for name in names if name.startswith("held_out_") is wanted] for wanted in (False, True))
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, chosen, title in ((axes[0], losses, "training losses"), (axes[1], held_out, "held out")):
        for name in chosen:
            points = [(row["minutes"], row[name]) for row in rows if name in row]
            axis.plot(*zip(*points, strict=True), label=name.removeprefix("held_out_"), linewidth=1.2)
        axis.set(title=title, xlabel="minutes", yscale="log")
        axis.grid(alpha=0.3, which="both")
        if chosen:
            axis.legend(fontsize=8)
    with written(file.with_suffix(".png")):
        figure.savefig(file.with_suffix(".png"), dpi=110)
    return f"loss curve: {file.with_suffix('.png')}"
