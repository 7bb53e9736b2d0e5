"""The precisions a policy may run in: what this machine says to each, and the layers of a model turned into them.

`int8` (W8A8) and `fp8` scale every row (token) of the input and every output channel of the weight by its own absolute
maximum, and multiply in 8 bit. The `*-bnb` ones are bitsandbytes': they save memory, not time (its own benchmark on an
H100: bf16 24 ms, LLM.int8 52 ms). LLM.int8 passes every activation through float16, which overflows at 65504, so the
vision tower stays in 16 bit with them.

Around int8 layers a CPU computes in float32, not bfloat16. Measured on two cores (AVX512-VNNI and -BF16, torch 2.13),
two compiled blocks of the language model (445 rows, width 1024, inner 5504) and of the vision tower (1280 rows, width
640, inner 1712), quantising, attention and all: float32 196 and 155 ms, bfloat16 97 and 83, int8 in bfloat16 54 and 54,
int8 in float32 50 and 50. A part that is not quantised is faster in bfloat16.

Which outliers break int8 and how to calm them is smoothing.py's business; whether the features survive, accuracy.py's.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import nn

from vla.attention import Attention
from vla.quantised import BitsAndBytesLinear, Fp8Linear, Int8Linear
from vla.qwen import LanguageBlock, kernel_width
from vla.smoothing import Factors, fold_norms, scale_linear

Precision = Literal["fp32", "bf16", "int8", "fp8", "int8-bnb", "int4-bnb"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
BITSANDBYTES = ("int8-bnb", "int4-bnb")

NOISE = 1.1  # two timings of the same thing may differ by this factor
TRIAL_MS, MOST_TRIALS = 500.0, 60  # of timing a block, beyond the least repetitions


@torch.no_grad()
def convert(linear: nn.Linear, precision: Precision) -> nn.Module:
    """A module that computes what `linear` does in this precision, on its device; `linear` itself for fp32 and bf16."""
    if precision == "int8":
        return Int8Linear(linear)
    if precision == "fp8":
        return Fp8Linear(linear)
    if precision in BITSANDBYTES:
        return BitsAndBytesLinear(linear, 8 if precision == "int8-bnb" else 4)
    return linear


def finisher(
    precision: Precision, vision: bool, factors: Factors | None = None
) -> Callable[[str, nn.Linear], nn.Module]:
    """`finish(name, linear) -> module` for loading shard by shard: quantises the language model, and the vision tower
    if asked and if the precision allows it. With `factors` (see smoothing.py) the loaded model needs `fold_norms`."""
    parts = ("language.", "visual.") if vision and precision not in BITSANDBYTES else ("language.",)

    def finish(name: str, linear: nn.Linear) -> nn.Module:
        if factors is not None:
            scale_linear(name, linear, factors)
        return convert(linear, precision) if name.startswith(parts) else linear

    return finish


def quantise(backbone: nn.Module, precision: Precision, vision: bool, factors: Factors | None = None) -> None:
    """Replaces the Linears of a loaded `QwenBackbone` in place, smoothed by `factors` before. It must not be cast
    afterwards."""
    finish = finisher(precision, vision, factors)
    for name in [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]:
        linear: Any = backbone.get_submodule(name)
        backbone.set_submodule(name, finish(name, linear))
    if factors is not None:
        fold_norms(backbone, factors)


def activation_dtype(precision: Precision, device: torch.device, quantised: bool = True) -> torch.dtype:
    """What everything around the Linears computes in. `quantised`: whether this part's Linears are (see `finisher`)."""
    if precision == "fp32" or (device.type == "cuda" and not _computes_bfloat16(device)):
        return torch.float32
    return torch.float32 if precision == "int8" and quantised and device.type == "cpu" else torch.bfloat16


def obstacle(precision: Precision, device: torch.device) -> str | None:
    """Why this machine cannot run it, with what it can; None if it can. Ends with a small product on the device."""
    if (reason := _lacking(precision, device) or _failing(precision, device)) is None:
        return None
    others = ", ".join(other for other in PRECISIONS if other != precision and _lacking(other, device) is None)
    return f"precision '{precision}' cannot run on {device}: {reason}; it can run {others}"


@torch.inference_mode()
def slower_than_bf16(
    precision: Precision, device: torch.device, text: Any, views: int, length: int, compiled: bool = False
) -> float | None:
    """How many times longer than in bf16 a block of this language configuration takes here; None if it is not slower.

    A whole block over `views` rows of `length` tokens: a lone product of 80 tokens says 1.3 times slower where the
    encode around it is faster. Costs some tens of ms for small models, and a compilation if `compiled`. fp32 is asked
    for where time does not matter, and is not timed.
    """
    if precision in ("fp32", "bf16"):
        return None
    runs = []
    for kind in ("bf16", precision):
        dtype = activation_dtype(kind, device)
        block = _random_block(text, device, dtype)
        for name, linear in list(block.named_children()):
            if isinstance(linear, nn.Linear):
                setattr(block, name, convert(linear, kind))
        states = torch.randn(views * length, text.hidden_size, device=device, dtype=dtype)
        turn = states.new_ones(views * length, 1, block.head_width)
        runs.append((torch.compile(_run) if compiled else _run, (block, states, turn, views)))
    times: list[list[float]] = [[], []]
    for repetition in range(MOST_TRIALS):
        for (run, inputs), taken in zip(runs, times, strict=True):
            began = _now(device)
            run(*inputs)
            if repetition:  # the first one warms up
                taken.append(_now(device) - began)
        if repetition > 1 and sum(map(sum, times)) > TRIAL_MS:
            break
    ratio = min(times[1]) / min(times[0])  # the best of each: at start-up other processes disturb every timing
    return ratio if ratio > NOISE else None


def _random_block(text: Any, device: torch.device, dtype: torch.dtype) -> LanguageBlock:
    with torch.device(device):
        block = LanguageBlock(
            text.hidden_size,
            kernel_width(text.intermediate_size),
            text.num_attention_heads,
            text.num_key_value_heads,
            text.rms_norm_eps,
        )
    for norm in (block.norm1, block.norm2):
        nn.init.ones_(norm.weight)
    return block.to(dtype)


def _run(block: LanguageBlock, states: torch.Tensor, turn: torch.Tensor, views: int) -> torch.Tensor:
    query, key, value = (part.unflatten(0, (views, -1)) for part in block.project(states, turn, turn))
    attended = Attention().rows(query, key, value, None, block.head_width**-0.5)
    return block.finish(states, attended.flatten(0, 1))


def _lacking(precision: Precision, device: torch.device) -> str | None:
    """What the machine lacks by its own description."""
    gpu = device.type == "cuda"
    major, minor = torch.cuda.get_device_capability(device) if gpu else (0, 0)
    known = f"this GPU has compute capability {major}.{minor}" if gpu else "this is a CPU"
    generation = 10 * major + minor
    if precision == "bf16" and gpu and not _computes_bfloat16(device):
        return f"bfloat16 needs compute capability 8.0, {known}"
    if precision == "int8" and gpu and generation < 75:
        return f"integer tensor cores need compute capability 7.5, {known}"
    if precision == "fp8" and generation < 89:
        return f"float8 needs an NVIDIA GPU of compute capability 8.9 or newer, {known}"
    if precision == "fp8" and generation == 89 and torch.__version__ < "2.12":
        return f"on this GPU torch {torch.__version__} computes row-wise float8 outside the current stream: needs 2.12"
    if precision in BITSANDBYTES and importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed (pip install bitsandbytes)"
    return None


@torch.no_grad()
def _failing(precision: Precision, device: torch.device) -> str | None:
    """What goes wrong with one small product."""
    if precision in ("fp32", "bf16"):
        return None
    dtype = activation_dtype(precision, device)
    try:
        linear = nn.Linear(64, 64, device=device, dtype=dtype)
        x = torch.randn(32, 64, device=device).to(dtype)
        expected, got = (module(x).float() for module in (linear, convert(linear, precision)))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a foreign kernel or its import may raise: the reason is passed on
        return f"a small product failed with {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    apart = ((got - expected).norm() / expected.norm()).item()
    return None if apart < 0.3 else f"a small product came out wrong (relative error {apart:.3g})"


def _computes_bfloat16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic_ns() / 1e6
