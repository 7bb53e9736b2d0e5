"""`bench head`: how long the controller waits for an action, on one CPU thread.

Times whole calls of `act`, numpy in and numpy out, as the control loop makes them: of the configured policy's head, and
of a regression head of the 3B policy's sizes, whose backbone has no trained one yet.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table
from torch import nn

from control.head import ActionHead
from vla.head import RegressionHead, standing_window
from vla.policy import load_head
from vla.policy_spec import load_spec

LIMIT_MS = 2.0  # of the 100 ms of a control cycle
JOINTS = 7
LARGE = {"tokens": 5, "width": 2048, "horizon": 8}  # five views, concatenated, of Qwen2.5-VL-3B
_WARM_UPS = 50


def measure_head(folder: Path, random_weights: bool = False, calls: int = 2000) -> dict[str, Any]:
    """The report of `bench head` for the policy in this folder, to which the caller adds where it was measured.

    torch is to be set to one thread before, as it is in the controller.
    """
    spec = load_spec(folder)
    configured = load_head(folder, random_weights)
    names = [f"joint_{index}" for index in range(JOINTS)]
    torch.manual_seed(0)
    generic = RegressionHead(LARGE["tokens"], LARGE["width"], names, names, LARGE["horizon"], 0.1)
    generic.eval().requires_grad_(False)
    return {
        "threads": torch.get_num_threads(),
        "limit_ms": LIMIT_MS,
        "timing": "one call of act, numpy to numpy, warm, garbage collection off as in the controller",
        "rows": [
            _row(f"policy '{spec.name}'", configured, (spec.tokens, spec.width), calls),
            _row("3B sizes, random", generic, generic.feature_shape, calls),
        ],
    }


def head_table(report: dict[str, Any]) -> Table:
    """The report as a person reads it."""
    title = f"one action chunk, {report['rows'][0]['calls']} calls, CPU threads: {report['threads']}"
    grid = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for heading in ("head", "features", "chunk", "parameters", "p50 ms", "p95 ms", "max ms"):
        grid.add_column(heading, justify="left" if heading == "head" else "right", no_wrap=heading != "head")
    for row in report["rows"]:
        grid.add_row(
            escape(row["head"]),
            f"{row['tokens']} x {row['width']}",
            f"{row['chunk']} x {row['actions']}",
            f"{row['parameters']:,}",
            *(f"{row[key]:.3f}" for key in ("p50_ms", "p95_ms", "max_ms")),
        )
    return grid


def _row(name: str, head: ActionHead, shape: tuple[int, int], calls: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    features = [rng.standard_normal(shape, dtype=np.float32) for _ in range(8)]
    states = [rng.standard_normal(len(head.state_names)) for _ in range(8)]
    windows = [standing_window(head, state) for state in states]
    times_ms = np.empty(calls)
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for index in range(-_WARM_UPS, calls):
            tokens, state, window = features[index % 8], states[index % 8], windows[index % 8]
            began = time.perf_counter_ns()
            head.act(tokens, state, 150.0, window)
            if index >= 0:
                times_ms[index] = (time.perf_counter_ns() - began) / 1e6
    finally:
        if was_on:
            gc.enable()
    p50, p95 = np.percentile(times_ms, (50, 95))
    return {
        "head": name,
        "kind": type(head).__name__,
        "tokens": shape[0],
        "width": shape[1],
        "chunk": head.horizon,
        "actions": len(head.action_names),
        "parameters": sum(part.numel() for part in head.parameters()) if isinstance(head, nn.Module) else 0,
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "max_ms": float(times_ms.max()),
        "under_limit": bool(p95 < LIMIT_MS),
        "calls": calls,
    }
