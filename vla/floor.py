"""The least time a forward can take on this machine: its products over the measured peak, or its weights over the
bandwidth where that is more.

FLOPs come in closed form from the geometry, 2 for a multiplication with its addition, for products and attention;
attention counts every query with every key, as torch's counter does. Peaks are measured here, with large square
products in the same process, so the floor is one that this machine has reached.

Letters: N patches of an image, T tokens, D width of the language model, W width of the vision tower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from vla.quantised import float_product, has_int8_products, int_product
from vla.sizes import CHANNELS, MERGE, PATCH, patch_grid

WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "fp8": 1.0, "int4": 0.5}


@dataclass(frozen=True, slots=True)
class Work:
    """FLOPs of one forward, and how many weights its products read."""

    vision_products: float
    vision_attention: float
    language_products: float
    language_attention: float
    vision_weights: int
    language_weights: int

    @property
    def flop(self) -> float:
        return self.vision_products + self.vision_attention + self.language_products + self.language_attention


@dataclass(frozen=True, slots=True)
class Peaks:
    """What this machine reaches: FLOP/s of a product by precision, bytes/s of reading memory."""

    flop_per_s: dict[str, float]
    bytes_per_s: float


def work(
    config: Any,
    images: Sequence[tuple[int, int]],
    sequences: Sequence[tuple[int, int]],
    language_layers: int | None = None,
    temporal: int = 1,
) -> Work:
    """Of encoding images of these sizes in pixels and (queries, keys) tokens of each sequence.

    With kept keys there are fewer queries than keys. `temporal` is 2 for the published first layer, which reads a still
    image twice, and 1 for the folded one.
    """
    vision, text = config.vision_config, config.text_config
    width, inner = vision.hidden_size, vision.intermediate_size
    block = 4 * width**2 + 3 * width * inner  # q, k, v, proj; gate, up, down
    merger = (width * MERGE**2) ** 2 + width * MERGE**2 * vision.out_hidden_size
    patch = CHANNELS * PATCH**2 * temporal * width
    vision_products = vision_attention = 0.0
    whole = len(set(vision.fullatt_block_indexes) & set(range(vision.depth)))
    for size in images:
        down, across = patch_grid(*size)
        count = down * across
        vision_products += 2 * count * (patch + vision.depth * block) + 2 * (count // MERGE**2) * merger
        reach = vision.window_size // PATCH
        windows = sum(
            (min(reach, down - top) * min(reach, across - left)) ** 2
            for top in range(0, down, reach)
            for left in range(0, across, reach)
        )
        vision_attention += 4 * width * (whole * count**2 + (vision.depth - whole) * windows)
    layers = text.num_hidden_layers if language_layers is None else language_layers
    keys = text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    layer = 2 * text.hidden_size * (text.hidden_size + keys) + 3 * text.hidden_size * text.intermediate_size
    tokens = sum(queries for queries, _ in sequences)
    pairs = sum(queries * reach for queries, reach in sequences)
    return Work(
        vision_products,
        vision_attention,
        2.0 * tokens * layers * layer,
        4.0 * pairs * text.hidden_size * layers,
        (vision.depth * block + merger + patch) if images else 0,
        layers * layer if tokens else 0,
    )


def floor_ms(work: Work, peaks: Peaks, vision: str, language: str) -> float:
    """Milliseconds with the products of tower and language model in these precisions; attention is never under 16 bit.

    4-bit weights are unpacked and multiplied in bf16.
    """

    def seconds(flop: float, precision: str) -> float:
        return flop / peaks.flop_per_s["bf16" if precision == "int4" else precision]

    def attention(precision: str) -> str:
        return precision if precision == "fp32" else "bf16"

    computing = (
        seconds(work.vision_products, vision)
        + seconds(work.vision_attention, attention(vision))
        + seconds(work.language_products, language)
        + seconds(work.language_attention, attention(language))
    )
    weights = work.vision_weights * WEIGHT_BYTES[vision] + work.language_weights * WEIGHT_BYTES[language]
    return 1000 * max(computing, weights / peaks.bytes_per_s)


def measure_peaks(device: torch.device, precisions: Iterable[str]) -> Peaks:
    """The best of several large square products in each precision that runs here, and of a large copy."""
    side = 8192 if device.type == "cuda" else 2048
    found: dict[str, float] = {}
    for precision in precisions:
        try:
            product = _square_product(precision, side, device)
            found[precision] = 2 * side**3 / _best_s(product, device)
        except (RuntimeError, NotImplementedError, AttributeError):  # no such kernel here
            continue
    source = torch.empty((2**30 if device.type == "cuda" else 2**28) // 4, device=device).fill_(1.0)
    target = torch.empty_like(source)
    copied = 2 * source.numel() * 4
    return Peaks(found, copied / _best_s(lambda: target.copy_(source), device))


def _square_product(precision: str, side: int, device: torch.device) -> Callable[[], object]:
    if precision in ("fp32", "bf16"):
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        x, w = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        return lambda: F.linear(x, w)
    if precision == "int8":
        a, b = (torch.randint(-127, 128, (side, side), device=device, dtype=torch.int8) for _ in range(2))
        product = int_product if device.type == "cuda" or has_int8_products() else float_product
        return lambda: product(a, b)
    if precision == "fp8":
        if device.type != "cuda":
            raise NotImplementedError("fp8 products need a CUDA GPU")
        c, d = (torch.randn(side, side, device=device).to(torch.float8_e4m3fn) for _ in range(2))
        rows, columns = torch.ones(side, 1, device=device), torch.ones(1, side, device=device)
        return lambda: torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
            c, d.t(), scale_a=rows, scale_b=columns, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    raise ValueError(f"unknown precision '{precision}', known: {', '.join(WEIGHT_BYTES)}")


def _best_s(call: Callable[[], object], device: torch.device, least: int = 3, budget_s: float = 0.4) -> float:
    best, spent, count = float("inf"), 0.0, 0
    call()
    while count < least or (spent < budget_s and count < 100):
        synchronize(device)
        began = time.perf_counter_ns()
        call()
        synchronize(device)
        took = (time.perf_counter_ns() - began) / 1e9
        best, spent, count = min(best, took), spent + took, count + 1
    return best


def synchronize(device: torch.device) -> None:
    """Waits for the device; on a CPU nothing is ever left undone."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
