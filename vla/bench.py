"""`bench encode`: every way of encoding on this machine, timed, counted and compared in one run.

Timed are whole encodes, camera frames in the host's memory to features on the device: waited for, warm, medians. What
happens once - building, quantising, compiling, capturing, tokenising, the instruction's prefix - is outside of that and
stated as `prepare_s`. On a CPU, whose speed others disturb, the rows of a scene are timed in turns; on a GPU one after
another, so that only one model fills the memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from vla.bench_build import Models, prepare
from vla.bench_report import Cell, References, rows
from vla.bench_steps import Scene, Step, steps
from vla.census import PeakMemory, held_mb, take_census
from vla.errors import DeviceFault
from vla.floor import measure_peaks, synchronize
from vla.geometry import GEOMETRIES, geometry_config
from vla.precision import Precision

VIEWS = (5, 3, 1)
SIZES = ((360, 640), (224, 224))
SMALL_SIZE = (112, 112)  # what the embedded policy sees
SMALL_GEOMETRIES = ("embedded", "tiny")
LEAST_REPEATS, MOST_REPEATS = 3, 50
SAMPLING_S = {"cpu": 60.0, "cuda": 3.0}  # for the rows that are timed in turns, beyond the least repeats
QUICK_S = 172.0  # of a whole run with --quick, by what is known when a row is begun
COMPILE_S = 35.0  # a guess at the first of them, from two cores
TIMING = (
    "camera frames in host memory to features on the device, synchronised, warm; loading, quantising, compiling and"
    " capturing are in prepare_s and in no other figure"
)


def measure_encode(
    geometry: str,
    device: torch.device,
    *,
    quick: bool = False,
    views: Sequence[int] = VIEWS,
    sizes: Sequence[tuple[int, int]] | None = None,
    only: Sequence[str] = (),
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The report of `bench encode`, to which the caller adds where it was measured. `sizes` are (height, width).

    `only` keeps the steps with one of these words in their names, and the first step, which the others are compared
    with. `quick` takes five views of 224x224 alone (for a small geometry 112x112 too) and under three minutes on two
    cores.
    """
    if geometry not in GEOMETRIES:
        raise DeviceFault(f"geometry '{geometry}' is unknown: expected one of {', '.join(GEOMETRIES)}")
    small = geometry in SMALL_GEOMETRIES
    if quick:
        views, sizes = VIEWS[:1], SIZES[1:] + (SMALL_SIZE,) * small
    scenes = [Scene(count, *size) for count in views for size in sizes or SIZES + (SMALL_SIZE,) * small]
    exact: Precision = "fp32" if small and device.type == "cpu" else "bf16"
    bench = _Bench(geometry, device, quick, log)
    peaks = measure_peaks(device, ("fp32", "bf16", "int8", "fp8"))
    every = steps(device, exact)
    chosen = [
        step
        for step in every
        if not only or step is every[0] or any(word.lower() in step.name.lower() for word in only)
    ]
    cells = bench.run(scenes, chosen)
    config = geometry_config(geometry)
    return {
        "geometry": geometry,
        "sizes": {
            "vision": [config.vision_config.depth, config.vision_config.hidden_size],
            "language": [config.text_config.num_hidden_layers, config.text_config.hidden_size],
        },
        "weights": "random, the same in every row",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "timing": TIMING,
        "order": "in turns" if device.type == "cpu" else "one row after another",
        "peak_tflop_per_s": {name: value / 1e12 for name, value in peaks.flop_per_s.items()},
        "bandwidth_gb_per_s": peaks.bytes_per_s / 1e9,
        "took_s": bench.passed_s(),
        "rows": rows(cells, peaks, bench.references),
    }


class _Bench:
    """One run. Holds the models of the rows at hand, the clock of `--quick`, and the references."""

    def __init__(self, geometry: str, device: torch.device, quick: bool, log: Callable[[str], None]) -> None:
        self._device, self._quick, self._log = device, quick, log
        self._models = Models(geometry, device)
        self._began_ns = time.perf_counter_ns()
        self._once_s = 0.0  # what one encode of each row so far takes
        self._compile_s = [COMPILE_S]
        self.references: References = {}

    def passed_s(self) -> float:
        return (time.perf_counter_ns() - self._began_ns) / 1e9

    @torch.inference_mode()
    @torch._dynamo.config.patch(recompile_limit=1000)  # else the graphs of a run would count against one limit of 8
    def run(self, scenes: Sequence[Scene], chosen: Sequence[Step]) -> list[Cell]:
        """All cells, scene by scene, in the order of the steps."""
        cells = [Cell(step, scene) for scene in scenes for step in chosen]
        for cell in cells:
            cell.reason = cell.step.obstacle(cell.scene, self._device, self._quick)
        able = [cell for cell in cells if not cell.reason]
        self._refer(scenes, {step.reference for step in chosen if step.stock and step.precision == "fp32"})
        if self._device.type == "cpu":
            together = [[cell for cell in able if cell.scene == scene] for scene in scenes]
        else:
            together = [[cell] for step in chosen for cell in able if cell.step is step]
        for index, group in enumerate(together):
            self._measure(group)
            self._models.release([cell.step.model for later in together[index + 1 :][:1] for cell in later])
        return cells

    def _refer(self, scenes: Sequence[Scene], known: set[str]) -> None:
        """Float32 features of the layouts that no row gives."""
        steps = [Step("reference", "fp32", stock=layout) for layout in ("concatenated", "batch") if layout not in known]
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            for step in steps:
                for scene in scenes:
                    features = prepare(step, scene, self._models).encode()
                    self.references[scene, step.reference] = features.float().cpu()
        except (DeviceFault, torch.OutOfMemoryError) as error:
            self._log(f"no cosines, since the float32 model does not fit: {error}")
        finally:
            torch.set_float32_matmul_precision(precision)
        if self._device.type == "cuda":
            self._models.release()

    def _measure(self, cells: list[Cell]) -> None:
        """Prepares these cells and times them in turns."""
        for cell in cells:
            try:
                self._prepare(cell)
            except DeviceFault as error:
                cell.reason = str(error)
            except torch.OutOfMemoryError:
                cell.reason = "the device has too little free memory for it"
            except Exception as error:  # whatever a compiler or a foreign kernel raises: it becomes the row's reason
                cell.reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            if cell.reason:
                cell.prepared = None
                self._log(f"{cell.title}: not run: {cell.reason}")
        ready = [cell for cell in cells if not cell.reason]
        self._sample(ready)
        for cell in ready:
            cell.prepared = None
            self._log(
                f"{cell.title}: {np.median(cell.times_ms):.1f} ms ({len(cell.times_ms)} times,"
                f" prepared in {cell.prepare_s:.1f} s)"
            )

    def _prepare(self, cell: Cell) -> None:
        began_s = self.passed_s()
        if self._quick and began_s + self._ahead_s(cell) > QUICK_S:
            raise DeviceFault(f"left out: with it --quick would take over {QUICK_S:.0f} s, {began_s:.0f} are gone")
        prepared = cell.prepared = prepare(cell.step, cell.scene, self._models)
        cell.tokens, cell.work = prepared.tokens, prepared.work
        seen: list[torch.Tensor] = []
        began_plain_s = self.passed_s()
        cell.census = take_census(lambda: seen.append(prepared.plain()))
        self._once_s += self.passed_s() - began_plain_s
        if self._device.type == "cuda":
            memory = PeakMemory(self._device)
            memory.start()  # before a graph is captured: it takes what it works in once and for all
            prepared.encode()
            self._add_memory(cell, memory)
        if self._device.type == "cuda" or prepared.encode is not prepared.plain:
            seen.append(prepared.encode())
        cell.features = seen[-1].float().cpu()
        if cell.step.stock and cell.step.precision == "fp32":
            self.references.setdefault((cell.scene, cell.step.reference), cell.features)
        cell.prepare_s = self.passed_s() - began_s
        if cell.step.compile_mode != "eager":
            self._compile_s.append(cell.prepare_s)

    def _ahead_s(self, cell: Cell) -> float:
        """What is at least still to be done when this row is taken in."""
        return self._once_s + (float(np.mean(self._compile_s)) if cell.step.compile_mode != "eager" else 5.0)

    def _sample(self, cells: list[Cell]) -> None:
        until_s = self.passed_s() + SAMPLING_S[self._device.type]
        if self._quick:
            until_s = min(until_s, QUICK_S - LEAST_REPEATS * self._once_s)
        pending = list(cells)
        while pending:
            for cell in pending:
                memory = PeakMemory(self._device) if cell.peak_mb is None else None
                if memory is not None:  # on a CPU only now: compiling, too, takes memory of this process
                    memory.start()
                cell.times_ms.append(self._time(cell))
                if memory is not None:
                    self._add_memory(cell, memory)
            enough = MOST_REPEATS if self.passed_s() < until_s else LEAST_REPEATS
            if self._quick and self.passed_s() > QUICK_S:
                enough = 1  # only where others take the machine's time; the table says how many there were
            pending = [cell for cell in pending if len(cell.times_ms) < enough]

    @staticmethod
    def _add_memory(cell: Cell, memory: PeakMemory) -> None:
        added = memory.added_mb()
        assert cell.prepared is not None
        cell.peak_mb = None if added is None else added + held_mb(cell.prepared.model)

    def _time(self, cell: Cell) -> float:
        assert cell.prepared is not None
        synchronize(self._device)
        began = time.perf_counter_ns()
        cell.prepared.encode()
        synchronize(self._device)
        return (time.perf_counter_ns() - began) / 1e6
