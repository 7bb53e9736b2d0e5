"""Linear layers in 8 and 4 bit, each made from an `nn.Linear` and used in its place.

Knows how one layer is quantised and computed. What a machine can run, and what becomes of a whole model, is
precision.py's business.

Letters: M rows (tokens), K inputs, N outputs.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

SMALLEST_PEAK = 1e-30  # an all-zero row gets this scale instead of a division by zero; NaN passes through it
ALIGNMENT = 16  # K and N are padded to it with zeros, which is exact: CUDA's int8 takes multiples of 8, its fp8 of 16
LEAST_ROWS = 17  # of CUDA's int8 product
EXACT_INPUTS = 1024  # so many products of two 8-bit numbers add up to less than 2**24: exactly, in float32


class RowwiseLinear(nn.Module):
    """(..., K) -> (..., N) in the input's dtype, with a weight of one byte a value.

    Rows of the input and output channels of the weight are each scaled to `levels` by their absolute maximum. A row
    with NaN or infinity comes out NaN or infinite. Must not be cast: the scales are float32.
    """

    levels: float
    weight: torch.Tensor  # (N, K)
    scale: torch.Tensor  # (N,) float32
    bias: torch.Tensor  # (N,) float32

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        outputs, inputs = (-side % ALIGNMENT for side in linear.weight.shape)
        weight = F.pad(linear.weight.detach().float(), (0, inputs, 0, outputs))
        bias = weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach().float()
        peak = _peak(weight)
        self.register_buffer("weight", self._quantise(weight * (self.levels / peak)))
        self.register_buffer("scale", (peak / self.levels).squeeze(1))
        self.register_buffer("bias", F.pad(bias, (0, outputs)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        if self.weight.shape[1] != self.in_features:
            rows = F.pad(rows, (0, self.weight.shape[1] - self.in_features))
        peak = _peak(rows)
        result = self._product(self._quantise(rows * (self.levels / peak)), peak / self.levels)
        return result[:, : self.out_features].to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _quantise(self, scaled: torch.Tensor) -> torch.Tensor:
        """May overwrite `scaled`."""
        raise NotImplementedError

    def _product(self, rows: torch.Tensor, row_scale: torch.Tensor) -> torch.Tensor:
        """(M, N) from quantised (M, K) rows and their (M, 1) scales."""
        raise NotImplementedError


class Int8Linear(RowwiseLinear):
    """W8A8: the product is exact in integers, then one epilogue."""

    levels = 127.0  # symmetric: -128 is not used

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self._in_integers = has_int8_products()

    def _quantise(self, scaled: torch.Tensor) -> torch.Tensor:
        return scaled.round_().to(torch.int8)

    def _product(self, rows: torch.Tensor, row_scale: torch.Tensor) -> torch.Tensor:
        # In place, since in eager mode fresh pages for 445 x 11008 values cost more than the arithmetic; compiled, it
        # is one loop either way. `addcmul` and not two products: inductor's freezing would take those for a pattern
        # that it sends to oneDNN's reference kernel (7 s instead of 4 ms).
        if rows.is_cuda or self._in_integers:
            result = int_product(rows, self.weight).float().mul_(row_scale)
        else:
            result = float_product(rows, self.weight).mul_(row_scale)
        return torch.addcmul(self.bias, result, self.scale, out=result)


class Fp8Linear(RowwiseLinear):
    """float8_e4m3fn through the row-wise scaled product, which a CPU only emulates. Rounds to bfloat16."""

    levels = 448.0  # the largest value of float8_e4m3fn

    def _quantise(self, scaled: torch.Tensor) -> torch.Tensor:
        return scaled.to(torch.float8_e4m3fn)

    def _product(self, rows: torch.Tensor, row_scale: torch.Tensor) -> torch.Tensor:
        return torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
            rows,
            self.weight.t(),
            scale_a=row_scale,
            scale_b=self.scale.view(1, -1),
            bias=self.bias.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )


class BitsAndBytesLinear(nn.Module):
    """LLM.int8 without outliers, or NF4 computed in bfloat16: (..., K) -> (..., N) in the input's dtype."""

    def __init__(self, linear: nn.Linear, bits: Literal[8, 4]) -> None:
        super().__init__()
        import bitsandbytes  # pyright: ignore[reportMissingImports]

        # It warns at every call that activations become float16; precision.py says so once.
        logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)
        layers: Any = bitsandbytes.nn
        sizes = linear.in_features, linear.out_features, linear.bias is not None
        weight = linear.weight.detach().cpu()  # it quantises what it moves from the CPU
        if bits == 8:
            inner = layers.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=0.0, device="meta")
            inner.weight = layers.Int8Params(weight, has_fp16_weights=False, requires_grad=False)
        else:
            inner = layers.Linear4bit(*sizes, compute_dtype=torch.bfloat16, quant_type="nf4", device="meta")
            inner.weight = layers.Params4bit(weight, requires_grad=False, quant_type="nf4", module=inner)
        if linear.bias is not None:
            inner.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        self.inner: Any = inner.to(linear.weight.device).eval()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self(linear.weight.new_zeros(1, linear.in_features))  # the first call rearranges the weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)


def int_product(rows: torch.Tensor, weight: torch.Tensor, least_rows: int | None = None) -> torch.Tensor:
    """(M, K) and (N, K) int8 -> their exact (M, N) product in int32."""
    least_rows = (LEAST_ROWS if rows.is_cuda else 0) if least_rows is None else least_rows
    count = rows.shape[0]
    if count < least_rows:
        rows = F.pad(rows, (0, 0, 0, least_rows - count))
    if rows.shape[1] == 1:  # torch 2.13 on a CPU with VNNI gives back memory that nobody wrote
        rows, weight = F.pad(rows, (0, 1)), F.pad(weight, (0, 1))
    return torch._int_mm(rows, weight.t())[:count]  # pyright: ignore[reportPrivateImportUsage]


def has_int8_products() -> bool:
    """Whether this CPU multiplies 8-bit integers (VNNI). Without, torch's product is a plain loop: (640, 128) by
    (128, 512) took 63.6 ms, and 1.4 in float32, on an AMD EPYC without AVX-512.
    """
    return bool(torch.cpu._is_vnni_supported())


def float_product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What `int_product` gives, as float32 and to the same bit, by products in float32 that are exact."""
    if rows.shape[1] <= EXACT_INPUTS:
        return rows.float() @ weight.float().t()
    parts = zip(rows.split(EXACT_INPUTS, dim=1), weight.split(EXACT_INPUTS, dim=1), strict=True)
    total = torch.zeros(rows.shape[0], weight.shape[0], dtype=torch.float64)
    for some, others in parts:
        total += some.float() @ others.float().t()
    return total.float()


def _peak(rows: torch.Tensor) -> torch.Tensor:
    """(M, 1) float32 absolute maximum of each row."""
    return rows.abs().amax(dim=-1, keepdim=True).float().clamp(min=SMALLEST_PEAK)
