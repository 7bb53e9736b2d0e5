"""The rows of `bench encode`: from the stock single sequence to the full engine, one lever more or one alone in each.

Says what each row is and which machine can run it; bench_build.py builds them, bench.py times them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F

from vla import attention
from vla import precision as precisions
from vla.attention import Backend
from vla.engine import CompileMode
from vla.precision import Precision

CAMERAS = ("front", "left", "right", "top", "wrist")
Layout = Literal["concatenated", "sequential", "batch"]


@dataclass(frozen=True, slots=True)
class Scene:
    """What is encoded: so many cameras of one size in pixels."""

    views: int
    height: int
    width: int

    @property
    def cameras(self) -> tuple[str, ...]:
        return CAMERAS[: self.views]

    def frames(self) -> torch.Tensor:
        """(V, H, W, 3) uint8: fields of colour with noise, another picture for each view, the same in every run."""
        generator = torch.Generator().manual_seed(7)
        coarse = torch.rand(self.views, 3, 6, 8, generator=generator) * 255
        fields = F.interpolate(coarse, size=(self.height, self.width), mode="bilinear")
        noisy = fields + 12 * torch.randn(fields.shape, generator=generator)
        return noisy.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@dataclass(frozen=True, slots=True)
class Step:
    """One way of encoding. `exact` ones give the stock features but for rounding; the others differ by design."""

    name: str
    precision: Precision
    stock: Layout | None = None  # transformers' forward in this layout; None: our engine
    whole_rows: bool = False  # text and images together, as if every frame brought a new instruction
    compile_mode: CompileMode = "eager"
    cuda_graph: bool = False
    quantise_vision: bool = False
    attention: Backend = "sdpa"
    half_depth: bool = False  # early exit after half of the language layers
    reuse: bool = False  # of all views but one
    streams: bool = False  # a CUDA stream for each view
    image_side: int | None = None  # every image is resized to a square of this side
    is_slow: bool = False  # to prepare: not with --quick

    @property
    def exact(self) -> bool:
        return self.precision in ("fp32", "bf16") and not self.half_depth and self.image_side is None

    @property
    def reference(self) -> str:
        """Which features it is compared with: those of its layout in float32."""
        return "concatenated" if self.stock == "concatenated" else "batch"

    @property
    def model(self) -> tuple[Any, ...]:
        """The key of the model it needs; see `Models`."""
        if self.stock:
            return ("stock", self.precision)
        return ("ours", self.precision, self.quantise_vision, self.half_depth, self.attention)

    @property
    def weight_precisions(self) -> tuple[str, str]:
        """Of the products of tower and language model; names of `floor.WEIGHT_BYTES`."""
        language = self.precision.removesuffix("-bnb")
        whole = self.precision in ("fp32", "bf16") or self.quantise_vision
        return (language if whole else "bf16"), language

    def obstacle(self, scene: Scene, device: torch.device, quick: bool) -> str:
        """What keeps it from running here, in plain words; empty when it can."""
        if (self.cuda_graph or self.streams) and device.type != "cuda":
            return f"{'CUDA graphs need' if self.cuda_graph else 'streams need'} a CUDA GPU, the device is '{device}'"
        if self.reuse and scene.views == 1:
            return "one view: there is no other whose features could be kept"
        if self.is_slow and quick:
            return "left out by --quick: other shapes, another half minute of compiling"
        if self.compile_mode == "max-autotune" and (quick or device.type != "cuda"):
            return "it compiles for many minutes: measured on a GPU, and not with --quick"
        if self.image_side is not None and max(scene.height, scene.width) <= self.image_side:
            return "the cameras give no larger images"
        if problem := precisions.obstacle(self.precision, device):
            return problem
        return attention.obstacle(self.attention, device, precisions.activation_dtype(self.precision, device))


def steps(device: torch.device, exact: Precision) -> list[Step]:
    """All rows in the order of the table. `exact` is the precision of stock and engine alike: bf16, or fp32.

    A lever that is shown alone stands on the static module (`alone` in its name), or on the prefix kept and, on a GPU,
    the CUDA graph, without which every way there costs the same launches. Only the full engine is compiled.
    """
    cuda = device.type == "cuda"
    stock = [
        Step("stock, one sequence", exact, stock="concatenated"),
        Step("stock, view after view", exact, stock="sequential"),
        Step("stock, batch of views", exact, stock="batch"),
    ]
    if not cuda:  # float32 is what transformers takes there unless told otherwise
        stock.append(Step("stock, batch of views", "bf16" if exact == "fp32" else "fp32", stock="batch"))
    plain = Step("static module", exact, whole_rows=True)
    kept = Step("prefix kept", exact)
    base = replace(kept, cuda_graph=cuda)
    full = replace(base, name="full engine", compile_mode="default")
    all_levers = replace(full, precision="int8", quantise_vision=True, half_depth=True, reuse=True, is_slow=True)
    return [
        *stock,
        replace(plain, name="streams, one a view", streams=True),
        plain,
        kept,
        replace(kept, name="CUDA graph", cuda_graph=True),
        replace(base, name="attention varlen", attention="varlen"),
        replace(base, name="attention flash_attention_2", attention="flash_attention_2"),
        *([replace(kept, name="compiled", compile_mode="default")] if cuda else []),  # on a CPU the full engine is that
        full,
        replace(full, name="full engine, max-autotune", compile_mode="max-autotune"),
        replace(base, name="all views but one kept", reuse=True),
        replace(full, name="all exact levers", reuse=True, is_slow=True),
        replace(base, name="early exit, half the layers", half_depth=True),
        replace(base, name="resized to 224x224", image_side=224),
        replace(plain, name="INT8 language alone", precision="int8"),
        replace(plain, name="INT8 everything alone", precision="int8", quantise_vision=True),
        replace(full, name="full engine, INT8 language", precision="int8"),
        replace(full, name="full engine, INT8 everything", precision="int8", quantise_vision=True),
        replace(full, name="full engine, FP8 language", precision="fp8"),
        replace(full, name="full engine, FP8 everything", precision="fp8", quantise_vision=True),
        replace(kept, name="bitsandbytes INT8", precision="int8-bnb"),
        replace(kept, name="bitsandbytes INT4", precision="int4-bnb"),
        replace(all_levers, name="all levers, with INT8, early exit"),
    ]
