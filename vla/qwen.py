"""Qwen2.5-VL as an encoder: patches and a prompt in, hidden states out.

Runs transformers' stock modules in its own order, because the stock forward loops over windows in Python and reads the
device to place the images. Here everything that depends only on sizes is a table made once: windows of one size lie
side by side and share one attention call, image embeddings are written at known positions, and there is no mask: rows
are padded on the right and the language model is causal. It equals the stock forward (tests/vla/test_qwen.py).

Letters: V views, N patches of a view, M = N / 4 image tokens of a view, L sequence length, D language width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen2_5_VLModel

from vla.preprocess import PIXEL_MEAN, PIXEL_STD
from vla.prompt import Prompt
from vla.sizes import CHANNELS, MERGE, PATCH, PATCH_BYTES, TEMPORAL, patch_grid

PIXEL_CENTRE = 128  # bytes become -128..127: exact in bfloat16, and sums near zero keep their digits


@dataclass(frozen=True, slots=True, eq=False)
class ImageTables:
    """What the vision tower needs to know about one image size. Tokens are permuted so that equal windows adjoin."""

    order: torch.Tensor  # (M,) published token index at each place
    place: torch.Tensor  # (M,) the inverse
    cos: torch.Tensor  # (N, 1, head width), in permuted order
    sin: torch.Tensor
    windows: tuple[tuple[int, int, int], ...]  # runs of equal windows: first patch, end, patches of one window


@dataclass(frozen=True, slots=True, eq=False)
class FoldedLayer:
    """The first layer over bytes, and of which weights it was made."""

    source: torch.Tensor  # keeps the storage, so that its address is not given to others
    version: int
    weight: torch.Tensor
    bias: torch.Tensor

    def is_of(self, source: torch.Tensor) -> bool:
        return (
            self.source.data_ptr() == source.data_ptr()
            and self.version == source._version
            and (self.source.dtype, self.source.device) == (source.dtype, source.device)
        )


class QwenBackbone(nn.Module):
    """The vision tower and the language model of a `Qwen2_5_VLModel`, without its lm_head."""

    def __init__(self, model: Qwen2_5_VLModel) -> None:
        super().__init__()
        self.visual: Any = model.visual  # transformers types submodules as Tensor | Module
        self.language_model: Any = model.language_model
        self.config: Any = model.config  # nested configurations are typed as maps
        self.width: int = self.config.text_config.hidden_size
        self._tables: dict[tuple[int, int], ImageTables] = {}
        self._folded: FoldedLayer | None = None

    @property
    def device(self) -> torch.device:
        return self.language_model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.embed_tokens.weight.dtype

    def forward(self, images: list[torch.Tensor], prompt: Prompt) -> torch.Tensor:
        """(V, L, D) last hidden states. `images` holds the (views, N, 588) uint8 patches of each of `prompt.groups`."""
        seen = [self.vision(patches, group.size) for patches, group in zip(images, prompt.groups, strict=True)]
        return self.language(seen, prompt)

    def vision(self, patches: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(V, N, 588) uint8 patches of images of one `size` in pixels -> (V, M, D) image embeddings."""
        tables = self._image_tables(size)
        visual = self.visual
        views, count, _ = patches.shape
        patches = patches.view(views, count // MERGE**2, MERGE**2, PATCH_BYTES)[:, tables.order]
        weight, bias = self._byte_embedding()
        hidden = F.linear((patches.float() - PIXEL_CENTRE).to(weight.dtype), weight, bias).view(views, count, -1)
        for index, block in enumerate(visual.blocks):
            whole = index in visual.fullatt_block_indexes
            windows = ((0, count, count),) if whole else tables.windows
            hidden = hidden + _vision_attention(block.attn, block.norm1(hidden), tables, windows)
            hidden = hidden + block.mlp(block.norm2(hidden))
        merged = visual.merger(hidden.reshape(views * count, -1))
        return merged.view(views, count // MERGE**2, -1)[:, tables.place]

    def language(self, images: list[torch.Tensor], prompt: Prompt) -> torch.Tensor:
        """(V, L, D) last hidden states from the (views, M, D) embeddings of each of `prompt.groups`."""
        embedded = self.language_model.embed_tokens(prompt.token_ids)
        flat = embedded.flatten(0, 1)
        for group, image in zip(prompt.groups, images, strict=True):
            flat = flat.index_copy(0, group.image_index, image.flatten(0, 1).to(flat.dtype))
        return self.language_model(
            inputs_embeds=flat.view_as(embedded),
            position_ids=prompt.position_ids,
            attention_mask={"full_attention": None},  # already decided: causal, no mask to build
            use_cache=False,
        ).last_hidden_state

    def image_hidden(self, hidden: torch.Tensor, prompt: Prompt) -> list[torch.Tensor]:
        """The image tokens of the (V, L, D) hidden states: (views, M, D) for each of `prompt.groups`."""
        flat = hidden.flatten(0, 1)
        return [flat[group.image_index].view(len(group.rows), -1, hidden.shape[-1]) for group in prompt.groups]

    def _byte_embedding(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The first layer over bytes: both temporal patches, scaling and normalisation folded into one product."""
        source = self.visual.patch_embed.proj.weight
        if source.requires_grad or source.is_inference():  # in training, or with no count of its changes
            return self._fold(source)
        if self._folded is None or not self._folded.is_of(source):
            self._folded = FoldedLayer(source.detach(), source._version, *self._fold(source))
        return self._folded.weight, self._folded.bias

    @staticmethod
    def _fold(source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kernel = source.float().sum(dim=2)  # (width, channel, row, column)
        mean = kernel.new_tensor(PIXEL_MEAN).view(1, CHANNELS, 1, 1)
        std = kernel.new_tensor(PIXEL_STD).view(1, CHANNELS, 1, 1)
        bias = (kernel * ((PIXEL_CENTRE / 255.0 - mean) / std)).sum(dim=(1, 2, 3))
        weight = (kernel / (255.0 * std)).flatten(1)
        return weight.to(source.dtype), bias.to(source.dtype)

    def _image_tables(self, size: tuple[int, int]) -> ImageTables:
        tables = self._tables.get(size)
        if tables is None or tables.order.device != self.device:
            vision = self.config.vision_config
            head_width = vision.hidden_size // vision.num_heads
            tables = image_tables(size, vision.window_size, head_width, _vision_theta(vision), self.device)
            self._tables[size] = tables
        return tables


def check_supported(config: Any) -> list[str]:
    """What in this configuration the orchestration above does not know, in plain words; empty when all is well."""
    vision, text = config.vision_config, config.text_config
    wanted = (
        ("vision_config.patch_size", vision.patch_size, PATCH),
        ("vision_config.temporal_patch_size", vision.temporal_patch_size, TEMPORAL),
        ("vision_config.spatial_merge_size", vision.spatial_merge_size, MERGE),
        ("vision_config.in_channels", vision.in_channels, CHANNELS),
        ("text_config.use_sliding_window", bool(text.use_sliding_window), False),
        ("vision_config.out_hidden_size", vision.out_hidden_size, text.hidden_size),
    )
    return [f"{name} is {got}, expected {expected}" for name, got, expected in wanted if got != expected]


def image_tables(
    size: tuple[int, int], window_size: int, head_width: int, theta: float, device: torch.device
) -> ImageTables:
    """Window order and rotary tables of one image size (height, width) in pixels."""
    rows, columns = (side // MERGE for side in patch_grid(*size))
    reach = window_size // MERGE // PATCH  # window side in image tokens; windows at the border are smaller
    index = torch.arange(rows * columns).view(rows, columns)
    windows = [
        index[top : top + reach, left : left + reach].reshape(-1)
        for top in range(0, rows, reach)
        for left in range(0, columns, reach)
    ]
    windows.sort(key=len, reverse=True)  # stable: equal windows keep the published order
    runs: list[tuple[int, int, int]] = []
    end = 0
    for window in windows:
        start, end = end, end + len(window) * MERGE**2
        if runs and runs[-1][2] == end - start:
            runs[-1] = (runs[-1][0], end, runs[-1][2])
        else:
            runs.append((start, end, end - start))
    order = torch.cat(windows)
    down, across = torch.meshgrid(torch.arange(rows * MERGE), torch.arange(columns * MERGE), indexing="ij")
    axes = [
        axis.reshape(rows, MERGE, columns, MERGE).transpose(1, 2).reshape(-1, MERGE**2)[order].reshape(-1)
        for axis in (down, across)
    ]
    half = head_width // 2
    frequency = 1.0 / (theta ** (torch.arange(0, half, 2, dtype=torch.float32) / half))
    angles = torch.cat([axis[:, None] * frequency for axis in axes], dim=1)
    angles = torch.cat([angles, angles], dim=1)[:, None, :]
    place = torch.argsort(order)
    return ImageTables(
        order.to(device), place.to(device), angles.cos().to(device), angles.sin().to(device), tuple(runs)
    )


def _vision_theta(vision: Any) -> float:
    rope = getattr(vision, "rope_parameters", None) or {}
    return float(rope.get("rope_theta", 10000.0))


def _vision_attention(
    attention: Any, hidden: torch.Tensor, tables: ImageTables, windows: tuple[tuple[int, int, int], ...]
) -> torch.Tensor:
    """(V, N, width) -> the same; attention inside each window, one call for all windows of one size."""
    views, count, width = hidden.shape
    query, key, value = attention.qkv(hidden).view(views, count, 3, attention.num_heads, -1).unbind(2)
    query, key = _rotate(query, tables).to(value.dtype), _rotate(key, tables).to(value.dtype)
    outputs = []
    for start, end, length in windows:
        query_w, key_w, value_w = (
            part[:, start:end].reshape(-1, length, attention.num_heads, part.shape[-1]).transpose(1, 2)
            for part in (query, key, value)
        )
        attended = F.scaled_dot_product_attention(query_w, key_w, value_w, scale=attention.scaling)
        outputs.append(attended.transpose(1, 2).reshape(views, end - start, width))
    return attention.proj(outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1))


def _rotate(states: torch.Tensor, tables: ImageTables) -> torch.Tensor:
    """Rotary positions on (V, N, heads, head width), in float32 as the published model does."""
    states = states.float()
    first, second = states.chunk(2, dim=-1)
    return states * tables.cos + torch.cat((-second, first), dim=-1) * tables.sin
