"""Qwen2.5-VL's encode as one static module: patches and a prompt in, hidden states out.

Its own modules over the published weights, since the stock forward loops over windows in Python and reads the device to
place the images. Here every shape follows from the number of views and their sizes: windows of one size lie side by
side and share one attention call, image embeddings are written at known places, q/k/v and gate/up are one product each,
and there is no mask: rows are padded on the right and the language model is causal. It equals the stock forward
(tests/vla/test_qwen.py).

The text before the image is the same for every frame, so its keys and values can be kept (`prefill`) and only the
image tokens computed (`language_hidden`). Causal attention over whole rows is then asked of places that hold no query;
what comes out there is dropped. That keeps the fast kernels, which know no other causal shape on all devices.

Letters: V views, N patches of a view, M = N / 4 image tokens of a view, I image tokens of all views, L padded length of
a row, P text tokens before the image, D width, H heads, K key heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vla.attention import Attention
from vla.preprocess import PIXEL_MEAN, PIXEL_STD
from vla.prompt import Prompt
from vla.sizes import CHANNELS, MERGE, PATCH, PATCH_BYTES, TEMPORAL
from vla.tables import ImageTables, Runs, image_tables, text_rotary

PIXEL_CENTRE = 128  # bytes become -128..127: exact in bfloat16, and sums near zero keep their digits
KERNEL_WIDTH = 16  # inner widths are padded with zeros to a multiple of this; int8 kernels take no 3420
VISION_EPS = 1e-6  # of the tower's norms, as published


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """What an instruction leaves behind: keys and values of its text in every row, and where the images belong."""

    keys: tuple[torch.Tensor, ...]  # a layer each, (V * L, K, E); image places hold nothing yet
    values: tuple[torch.Tensor, ...]
    cos: torch.Tensor  # (I, 1, E), of the image tokens
    sin: torch.Tensor
    image_index: torch.Tensor  # (I,) places in the flattened (V * L)
    views: int

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Everything on the device, in one fixed order; see `from_tensors`."""
        return (*self.keys, *self.values, self.cos, self.sin, self.image_index)

    @staticmethod
    def from_tensors(tensors: Sequence[torch.Tensor], views: int) -> Prefix:
        layers = (len(tensors) - 3) // 2
        cos, sin, image_index = tensors[2 * layers :]
        return Prefix(tuple(tensors[:layers]), tuple(tensors[layers : 2 * layers]), cos, sin, image_index, views)


class Norm(nn.Module):
    """Root mean square norm."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


class PatchEmbedding(nn.Module):
    """The tower's first layer over bytes: both temporal patches, scaling and normalisation folded into one product."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, CHANNELS, TEMPORAL, PATCH, PATCH))
        self.folded_weight: torch.Tensor | None
        self.folded_bias: torch.Tensor | None
        self.register_buffer("folded_weight", None, persistent=False)  # buffers, so that a cast takes them along
        self.register_buffer("folded_bias", None, persistent=False)

    def freeze(self) -> None:
        """Folds once and for all; the weight must not change afterwards."""
        self.weight.requires_grad_(False)
        self.folded_weight, self.folded_bias = self._fold()

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(..., 588) uint8 -> (..., width)."""
        weight, bias = self.folded_weight, self.folded_bias
        if weight is None:
            weight, bias = self._fold()
        return F.linear((patches.float() - PIXEL_CENTRE).to(weight.dtype), weight, bias)

    def _fold(self) -> tuple[torch.Tensor, torch.Tensor]:
        kernel = self.weight.float().sum(dim=2)  # (width, channel, row, column)
        mean = kernel.new_tensor(PIXEL_MEAN).view(1, CHANNELS, 1, 1)
        std = kernel.new_tensor(PIXEL_STD).view(1, CHANNELS, 1, 1)
        bias = (kernel * ((PIXEL_CENTRE / 255.0 - mean) / std)).sum(dim=(1, 2, 3))
        weight = (kernel / (255.0 * std)).flatten(1)
        return weight.to(self.weight.dtype), bias.to(self.weight.dtype)


class VisionBlock(nn.Module):
    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.norm1, self.norm2 = Norm(width, VISION_EPS), Norm(width, VISION_EPS)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate_up, self.down = nn.Linear(width, 2 * inner), nn.Linear(inner, width)

    def forward(
        self, hidden: torch.Tensor, tables: ImageTables, runs: Runs, ends: torch.Tensor | None, attention: Attention
    ) -> torch.Tensor:
        """(V, N, width) -> the same; attention inside each of the windows `runs`."""
        views, count, _ = hidden.shape
        query, key, value = self.qkv(self.norm1(hidden)).view(views, count, 3, self.heads, -1).unbind(2)
        query, key = (  # in float32, as the published model does
            _rotate(part.float(), tables.cos, tables.sin).to(value.dtype) for part in (query, key)
        )
        hidden = hidden + self.proj(attention.windows(query, key, value, runs, ends, self.scale))
        return hidden + self.down(_swiglu(self.gate_up(self.norm2(hidden))))


class Merger(nn.Module):
    """Four neighbouring patches -> one image token of the language model's width."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm = Norm(width, VISION_EPS)
        self.up, self.down = nn.Linear(width * MERGE**2, width * MERGE**2), nn.Linear(width * MERGE**2, out)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        views, count, _ = hidden.shape
        return self.down(F.gelu(self.up(self.norm(hidden).reshape(views, count // MERGE**2, -1))))


class VisionTower(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.whole_blocks = frozenset(config.fullatt_block_indexes)
        self.patch = PatchEmbedding(config.hidden_size)
        inner = kernel_width(config.intermediate_size)
        self.blocks: Any = nn.ModuleList(
            VisionBlock(config.hidden_size, inner, config.num_heads) for _ in range(config.depth)
        )
        self.merger = Merger(config.hidden_size, config.out_hidden_size)

    def forward(self, patches: torch.Tensor, tables: ImageTables, attention: Attention) -> torch.Tensor:
        """(V, N, 588) uint8 patches -> (V, M, D) image embeddings."""
        views, count, _ = patches.shape
        ordered = patches.view(views, count // MERGE**2, MERGE**2, PATCH_BYTES)[:, tables.order]
        hidden = self.patch(ordered.view(views, count, PATCH_BYTES))
        windows = (tables.windows, attention.ends(views, tables.window_ends))
        whole = (tables.whole, attention.ends(views, tables.whole_ends))
        for index, block in enumerate(self.blocks):
            hidden = block(hidden, tables, *(whole if index in self.whole_blocks else windows), attention)
        return self.merger(hidden)[:, tables.place]


class LanguageBlock(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, key_heads: int, eps: float) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head_width = heads, key_heads, width // heads
        self.norm1, self.norm2 = Norm(width, eps), Norm(width, eps)
        self.qkv = nn.Linear(width, (heads + 2 * key_heads) * self.head_width)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def project(
        self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(T, D) -> query (T, H, E), key and value (T, K, E), the first two rotated."""
        states = self.qkv(self.norm1(hidden)).unflatten(-1, (-1, self.head_width))
        turned = _rotate(states[:, : self.heads + self.key_heads], cos, sin)
        return turned[:, : self.heads], turned[:, self.heads :], states[:, self.heads + self.key_heads :]

    def finish(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The rest of the block: (T, D) before it and (T, D) out of attention -> (T, D)."""
        hidden = hidden + self.out(attended)
        return hidden + self.down(_swiglu(self.gate_up(self.norm2(hidden))))


class LanguageModel(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        heads, key_heads = config.num_attention_heads, config.num_key_value_heads
        inner = kernel_width(config.intermediate_size)
        self.blocks: Any = nn.ModuleList(
            LanguageBlock(config.hidden_size, inner, heads, key_heads, config.rms_norm_eps)
            for _ in range(config.num_hidden_layers)
        )
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.scale = (config.hidden_size // heads) ** -0.5


class QwenBackbone(nn.Module):
    """Vision tower and language model of a `Qwen2_5_VLConfig`, without an lm_head; weights.py fills it."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.visual, self.language = VisionTower(config.vision_config), LanguageModel(config.text_config)
        self.width: int = config.text_config.hidden_size
        self.attention = Attention()
        self._tables: dict[tuple[int, int], ImageTables] = {}

    @property
    def device(self) -> torch.device:
        return self.language.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.language.embed_tokens.weight.dtype

    def freeze(self) -> QwenBackbone:
        """For encoding only: nothing may change its weights from here on."""
        self.eval().requires_grad_(False)
        self.visual.patch.freeze()
        return self

    def forward(self, images: list[torch.Tensor], prompt: Prompt) -> torch.Tensor:
        """(V, L, D) last hidden states of whole rows: the plain way, and the one that learns.

        `images` holds the (views, N, 588) uint8 patches of each of `prompt.groups`.
        """
        seen = [self.vision(patches, group.size) for patches, group in zip(images, prompt.groups, strict=True)]
        return self.hidden(seen, prompt)

    def hidden(self, seen: Sequence[torch.Tensor], prompt: Prompt) -> torch.Tensor:
        """As `forward`, from the (views, M, D) image embeddings of each of `prompt.groups`."""
        model = self.language
        rows, length = prompt.token_ids.shape
        hidden = model.embed_tokens(prompt.token_ids).flatten(0, 1)
        for group, image in zip(prompt.groups, seen, strict=True):
            hidden = hidden.index_copy(0, group.image_index, image.flatten(0, 1).to(hidden.dtype))
        cos, sin = text_rotary(prompt.position_ids, self.config.text_config, self.dtype, self.device)
        ends = self.row_ends(rows, length)
        for block in model.blocks:
            states = (part.unflatten(0, (rows, length)) for part in block.project(hidden, cos, sin))
            hidden = block.finish(hidden, self.attention.rows(*states, ends, model.scale).flatten(0, 1))
        return model.norm(hidden).view(rows, length, -1)

    def image_hidden(self, hidden: torch.Tensor, prompt: Prompt) -> list[torch.Tensor]:
        """The image tokens of the (V, L, D) hidden states: (views, M, D) for each of `prompt.groups`."""
        flat = hidden.flatten(0, 1)
        return [flat[group.image_index].view(len(group.rows), -1, hidden.shape[-1]) for group in prompt.groups]

    def vision(self, patches: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(V, N, 588) uint8 patches of images of one `size` in pixels -> (V, M, D) image embeddings."""
        return self.visual(patches, self.tables(size), self.attention)

    def prefill(self, prompt: Prompt) -> Prefix:
        """Keys and values of the text before the images, once an instruction."""
        model, text = self.language, self.config.text_config
        rows, length = prompt.token_ids.shape
        count = max(prompt.text_tokens)
        hidden = model.embed_tokens(prompt.token_ids[:, :count]).flatten(0, 1)
        cos, sin = text_rotary(prompt.position_ids[:, :, :count], text, self.dtype, self.device)
        ends = self.row_ends(rows, count)
        keys, values = [], []
        for block in model.blocks:
            query, key, value = (part.unflatten(0, (rows, count)) for part in block.project(hidden, cos, sin))
            for kept, states in ((keys, key), (values, value)):
                row = states.new_zeros(rows, length, *states.shape[2:])
                row[:, :count] = states
                kept.append(row.flatten(0, 1))
            hidden = block.finish(hidden, self.attention.rows(query, key, value, ends, model.scale).flatten(0, 1))
        index = torch.cat([group.image_index for group in prompt.groups])
        cos, sin = (table[index] for table in text_rotary(prompt.position_ids, text, self.dtype, self.device))
        return Prefix(tuple(keys), tuple(values), cos, sin, index, rows)

    def language_hidden(self, images: Sequence[torch.Tensor], prefix: Prefix) -> torch.Tensor:
        """(I, D) last hidden states of the image tokens, group by group, from their (views, M, D) embeddings."""
        model = self.language
        hidden = torch.cat([image.flatten(0, 1) for image in images]).to(self.dtype)
        ends = self.row_ends(prefix.views, len(prefix.keys[0]) // prefix.views)
        for block, keys, values in zip(model.blocks, prefix.keys, prefix.values, strict=True):
            query, key, value = block.project(hidden, prefix.cos, prefix.sin)
            asked = query.new_zeros(len(keys), *query.shape[1:]).index_copy(0, prefix.image_index, query)
            keys = keys.index_copy(0, prefix.image_index, key)
            values = values.index_copy(0, prefix.image_index, value)
            states = (part.unflatten(0, (prefix.views, -1)) for part in (asked, keys, values))
            attended = self.attention.rows(*states, ends, model.scale).flatten(0, 1)
            hidden = block.finish(hidden, attended.index_select(0, prefix.image_index))
        return model.norm(hidden)

    def row_ends(self, rows: int, length: int) -> torch.Tensor | None:
        """Where rows end, as `attention` wants it."""
        return self.attention.ends(rows, torch.arange(0, length + 1, length, device=self.device, dtype=torch.int32))

    def tables(self, size: tuple[int, int]) -> ImageTables:
        """The vision tower's tables of one image size (height, width) in pixels, made once."""
        tables = self._tables.get(size)
        if tables is None or tables.order.device != self.device:
            tables = self._tables[size] = image_tables(size, self.config.vision_config, self.device)
        return tables


def kernel_width(inner: int) -> int:
    """An inner width as it is kept here: the next multiple of `KERNEL_WIDTH`; the added units are zero and stay so."""
    return -(-inner // KERNEL_WIDTH) * KERNEL_WIDTH


def _swiglu(states: torch.Tensor) -> torch.Tensor:
    gate, up = states.chunk(2, dim=-1)
    active = F.silu(gate)
    return (
        active * up if torch.is_grad_enabled() else active.mul_(up)
    )  # in place: new memory costs more than the product


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions on (..., heads, E)."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin
