"""Smoothing: outliers moved out of the activations, where one scale a token cannot hold them, into the weights.

After SmoothQuant (Xiao et al. 2022): each input channel of a product is divided by a factor, and the column of the
weight that reads it multiplied by the same one. The division is free in what lies before the product: the weight of the
norm that feeds q/k/v, gate/up and the merger's first product, and the rows of `up` that feed `down`. What attention and
the merger's GELU feed is left alone. A factor is activation^alpha / weight^(1 - alpha), by the absolute maxima seen in
calibration, rounded to a power of two: so smoothing changes no bit of what the model computes, in any float type.

It happens once, before quantisation: while a model is loaded shard by shard (`scale_linear` on each product as it is
whole, `fold_norms` at the end), or on a whole one (`apply`). Norms are small and never quantised: both give the same.

Letters: K input channels of a product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from vla.errors import FileFault
from vla.qwen import QwenBackbone, kernel_width

Factors = Mapping[str, torch.Tensor]  # a product's name -> (K,) float32 divisors of its input, or of one period of it
FORMAT = "smoothing 1"
DEFAULT_ALPHA = 0.5


def calibrate(
    backbone: QwenBackbone, encode: Callable[[], object], vision: bool = False, alpha: float = DEFAULT_ALPHA
) -> dict[str, torch.Tensor]:
    """Factors for a backbone in float, from what its products see while `encode` runs it over representative frames.

    `alpha` moves difficulty from activations (towards 1) or weights (towards 0). The backbone must run plainly: in a
    compiled or captured graph nothing can be looked at.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}: 0.5 suits most models")
    lengths = _lengths(backbone.config, vision)
    products: dict[str, Any] = {name: backbone.get_submodule(name) for name in lengths}
    if quantised := [name for name, product in products.items() if not isinstance(product, nn.Linear)]:
        raise ValueError(f"calibration needs the model in float, but '{quantised[0]}' is quantised: use fp32 or bf16")
    peaks: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            peak = inputs[0].detach().flatten(0, -2).abs().amax(dim=0).float()
            peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

        return look

    hooks = [product.register_forward_pre_hook(watch(name)) for name, product in products.items()]
    try:
        with torch.no_grad():
            encode()
    finally:
        for hook in hooks:
            hook.remove()
    if unseen := [name for name in lengths if name not in peaks]:
        raise ValueError(f"calibration saw nothing of '{unseen[0]}': no frames, or the encoder runs a compiled graph")
    return {
        name: _factor(name, peaks[name], products[name].weight, length, alpha).cpu() for name, length in lengths.items()
    }


def _factor(name: str, peaks: torch.Tensor, weight: torch.Tensor, length: int, alpha: float) -> torch.Tensor:
    if not torch.isfinite(peaks).all():
        raise ValueError(f"calibration: the input of '{name}' holds NaN or infinity: damaged weights or overflow")
    seen, read = (part.view(-1, length).amax(dim=0) for part in (peaks, weight.detach().abs().amax(dim=0).float()))
    live = (seen > 0) & (read > 0)  # a channel that is never used, padding for one, keeps the factor 1
    exponent = alpha * seen.log2() - (1 - alpha) * read.log2()
    exponent = (exponent - exponent[live].mean()).round().clamp(-24, 24)
    return torch.where(live, exponent, 0.0).exp2()


@torch.no_grad()
def scale_linear(name: str, linear: nn.Linear, factors: Factors) -> None:
    """Scales one product in place: its columns by its own factors, the rows of `up` by those of `down`."""
    if name in factors:
        own = factors[name].to(linear.weight)
        linear.weight.data.mul_(own.repeat(linear.in_features // len(own)))
    below = name.removesuffix("gate_up") + "down"
    if name.endswith(".gate_up") and below in factors:
        rows = factors[below].to(linear.weight)
        linear.weight.data[len(rows) :].div_(rows[:, None])
        if linear.bias is not None:
            linear.bias.data[len(rows) :].div_(rows)


@torch.no_grad()
def fold_norms(backbone: nn.Module, factors: Factors) -> None:
    """Divides the weights of the norms that feed scaled products. Factors of blocks that the model lacks are left."""
    modules: dict[str | None, Any] = dict(backbone.named_modules())
    for name, divisor in factors.items():
        norm = modules.get(_norm_of(name))
        if norm is not None:
            norm.weight.data.div_(divisor.to(norm.weight))


def apply(backbone: nn.Module, factors: Factors) -> None:
    """Smooths a whole model in place; its products must still be float."""
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear):
            scale_linear(name, module, factors)
    fold_norms(backbone, factors)


def save(file: Path, factors: Factors, policy_id: str, alpha: float, frames: int) -> None:
    """Writes the factors as safetensors, with where they come from."""
    about = {"format": FORMAT, "policy_id": policy_id, "alpha": str(alpha), "frames": str(frames)}
    save_file({name: factor.contiguous() for name, factor in factors.items()}, file, metadata=about)


def load(file: Path, policy_id: str, config: Any, vision: bool = False, layers: int | None = None) -> Factors:
    """The factors of a file, checked against the model they are for: its first `layers` language layers, or all.

    With `vision` they must cover the vision tower too. Raises FileFault.
    """
    factors, about = _read(file)
    if about.get("format") != FORMAT:
        raise FileFault(f"{file}: expected '{FORMAT}' in its header, got '{about.get('format')}': another kind of file")
    if about.get("policy_id") != policy_id:
        raise FileFault(
            f"{file}: was calibrated for policy '{about.get('policy_id')}', this one is '{policy_id}':"
            " calibrate again (`launch.py bench calibrate`)"
        )
    depth = config.text_config.num_hidden_layers
    known, needed = _lengths(config, True), _lengths(config, vision, depth if layers is None else min(layers, depth))
    if missing := [name for name in needed if name not in factors]:
        raise FileFault(
            f"{file}: factors of '{missing[0]}' are missing: likely calibrated without the vision tower, or with fewer"
            " language layers; calibrate again"
        )
    for name, factor in factors.items():
        if name not in known:
            raise FileFault(f"{file}: unexpected factors '{name}': calibrated for another model")
        if factor.shape != (known[name],) or factor.dtype != torch.float32:
            raise FileFault(
                f"{file}: '{name}' expected {known[name]} float32 factors, got {tuple(factor.shape)} {factor.dtype}:"
                " calibrated for another model size"
            )
        if not (torch.isfinite(factor).all() and (factor > 0).all()):
            raise FileFault(f"{file}: '{name}' holds a factor that is not positive and finite: damaged file")
    return factors


def _read(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if not file.is_file():
        raise FileFault(f"{file} is missing: expected the factors that `launch.py bench calibrate` writes")
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise FileFault(f"{file}: not a complete safetensors file ({error}): likely an interrupted copy") from error


def _lengths(config: Any, vision: bool, layers: int | None = None) -> dict[str, int]:
    """Every product that is smoothed, in the order of computing, and how many factors it has."""
    text, tower = config.text_config, config.vision_config
    found: dict[str, int] = {}
    if vision:
        found |= _blocks("visual", tower.depth, tower.hidden_size, tower.intermediate_size)
        found["visual.merger.up"] = tower.hidden_size  # its input is four normed patches side by side
    depth = text.num_hidden_layers if layers is None else layers
    return found | _blocks("language", depth, text.hidden_size, text.intermediate_size)


def _blocks(part: str, depth: int, width: int, inner: int) -> dict[str, int]:
    lengths = {"qkv": width, "gate_up": width, "down": kernel_width(inner)}
    return {f"{part}.blocks.{index}.{name}": length for index in range(depth) for name, length in lengths.items()}


def _norm_of(name: str) -> str | None:
    """The norm that feeds this product; None for `down`."""
    block, _, product = name.rpartition(".")
    norm = {"qkv": "norm1", "gate_up": "norm2", "up": "norm"}.get(product)
    return None if norm is None else f"{block}.{norm}"
