"""Outlier channels, which random weights lack: what published models have and plain W8A8 breaks on."""

from __future__ import annotations

import copy

import torch

from vla.qwen import QwenBackbone

CHANNELS = [3, 11, 20]


def spiked(backbone: QwenBackbone, size: float = 64.0) -> QwenBackbone:
    """The same model, bit for bit, where some channels into each product are `size` times the others."""
    backbone = copy.deepcopy(backbone)
    with torch.no_grad():
        for block in (*backbone.visual.blocks, *backbone.language.blocks):
            for norm, product in ((block.norm1, block.qkv), (block.norm2, block.gate_up)):
                norm.weight[CHANNELS] *= size
                product.weight[:, CHANNELS] /= size
            up = [block.down.in_features + channel for channel in CHANNELS]
            block.gate_up.weight[up] *= size
            if block.gate_up.bias is not None:
                block.gate_up.bias[up] *= size
            block.down.weight[:, CHANNELS] /= size
        merger, width = backbone.visual.merger, len(backbone.visual.merger.norm.weight)
        merger.norm.weight[CHANNELS] *= size
        merger.up.weight.view(-1, 4, width)[:, :, CHANNELS] /= size
    return backbone
