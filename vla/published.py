"""The published names of Qwen2.5-VL's weights, and where each lies in our modules.

Knows names and places only. Three of the published products are one of ours (q, k, v), two are (gate, up), and inner
widths are padded with zeros; reading puts each published tensor into its place, writing takes it out again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vla.qwen import QwenBackbone, kernel_width


@dataclass(frozen=True, slots=True)
class Place:
    """Where a published weight lies: in our parameter `name`, from row `row`, so many rows and columns."""

    name: str
    shape: tuple[int, ...]  # as published
    row: int = 0

    def of(self, parameter: torch.Tensor) -> torch.Tensor:
        """The view of our parameter that this weight fills."""
        part = parameter[self.row : self.row + self.shape[0]]
        return part[:, : self.shape[1]] if len(self.shape) == 2 else part


def places(config: Any) -> dict[str, Place]:
    """Every published weight of this configuration, by its name inside transformers' `Qwen2_5_VLModel`."""
    vision, text = config.vision_config, config.text_config
    found: dict[str, Place] = {}

    def add(published: str, name: str, *shape: int, row: int = 0) -> None:
        found[published] = Place(name, shape, row)

    def linear(published: str, name: str, outputs: int, inputs: int, bias: bool, row: int = 0) -> None:
        add(f"{published}.weight", f"{name}.weight", outputs, inputs, row=row)
        if bias:
            add(f"{published}.bias", f"{name}.bias", outputs, row=row)

    def swiglu(published: str, name: str, width: int, inner: int, bias: bool) -> None:
        linear(f"{published}.gate_proj", f"{name}.gate_up", inner, width, bias)
        linear(f"{published}.up_proj", f"{name}.gate_up", inner, width, bias, row=kernel_width(inner))
        linear(f"{published}.down_proj", f"{name}.down", width, inner, bias)

    width = vision.hidden_size
    add(
        "visual.patch_embed.proj.weight",
        "visual.patch.weight",
        *(width, vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size),
    )
    for index in range(vision.depth):
        block = f"visual.blocks.{index}"
        add(f"{block}.norm1.weight", f"{block}.norm1.weight", width)
        add(f"{block}.norm2.weight", f"{block}.norm2.weight", width)
        linear(f"{block}.attn.qkv", f"{block}.qkv", 3 * width, width, bias=True)
        linear(f"{block}.attn.proj", f"{block}.proj", width, width, bias=True)
        swiglu(f"{block}.mlp", block, width, vision.intermediate_size, bias=True)
    merged = width * vision.spatial_merge_size**2
    add("visual.merger.ln_q.weight", "visual.merger.norm.weight", width)
    linear("visual.merger.mlp.0", "visual.merger.up", merged, merged, bias=True)
    linear("visual.merger.mlp.2", "visual.merger.down", vision.out_hidden_size, merged, bias=True)

    width = text.hidden_size
    keys = text.num_key_value_heads * (width // text.num_attention_heads)
    add("language_model.embed_tokens.weight", "language.embed_tokens.weight", text.vocab_size, width)
    add("language_model.norm.weight", "language.norm.weight", width)
    for index in range(text.num_hidden_layers):
        layer, block = f"language_model.layers.{index}", f"language.blocks.{index}"
        add(f"{layer}.input_layernorm.weight", f"{block}.norm1.weight", width)
        add(f"{layer}.post_attention_layernorm.weight", f"{block}.norm2.weight", width)
        linear(f"{layer}.self_attn.q_proj", f"{block}.qkv", width, width, bias=True)
        linear(f"{layer}.self_attn.k_proj", f"{block}.qkv", keys, width, bias=True, row=width)
        linear(f"{layer}.self_attn.v_proj", f"{block}.qkv", keys, width, bias=True, row=width + keys)
        linear(f"{layer}.self_attn.o_proj", f"{block}.out", width, width, bias=False)
        swiglu(f"{layer}.mlp", block, width, text.intermediate_size, bias=False)
    return found


def to_published(backbone: QwenBackbone) -> dict[str, torch.Tensor]:
    """The weights of an unquantised backbone under their published names, as views of ours."""
    ours = dict(backbone.named_parameters())
    return {name: place.of(ours[place.name]).detach() for name, place in places(backbone.config).items()}


def current_name(key: str) -> str:
    """Key names of all generations -> the names inside `Qwen2_5_VLModel`."""
    if key.startswith(("model.visual.", "model.language_model.")):
        return key.removeprefix("model.")
    if key.startswith("model."):
        return "language_model." + key.removeprefix("model.")
    return key


def hub_name(name: str) -> str:
    """The name inside `Qwen2_5_VLModel` -> the one in published files."""
    return "model." + name.removeprefix("language_model.") if name.startswith("language_model.") else name
