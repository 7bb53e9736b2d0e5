"""The image tokens' states of many rows at once, where rows that begin alike share what they begin with.

While a backbone is trained, one batch holds every instruction once for each camera, and its words are most of a row.
Causal attention gives tokens with the same tokens before them the same states, so these are computed once, padding is
not computed at all, and the last block is finished for image tokens alone. Keys and values are then laid out in whole
rows, which keeps the fast attention. Equal to whole rows (tests/vla/test_shared_text.py).

What was measured (embedded backbone, 32 samples of five views, one core of an AMD EPYC without AVX-512, processor time
of forward and backward, mean of two runs): 1,150 ms on whole rows, 871 so; predicted a quarter less.

Letters: V rows, L padded length of a row, T tokens that are computed, I image tokens of all rows, M image tokens of a
row, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from vla.prompt import Prompt
from vla.qwen import QwenBackbone
from vla.tables import text_rotary


@dataclass(frozen=True, slots=True, eq=False)
class SharedText:
    """Which places of the flattened rows are computed, and which of these stands at each place."""

    kept: torch.Tensor  # (T,) places in (V * L)
    source: torch.Tensor  # (V * L,) indices into `kept`

    @staticmethod
    def of(prompt: Prompt) -> SharedText:
        ids = prompt.token_ids.numpy()
        rows, length = ids.shape
        ends = np.array(prompt.text_tokens)
        is_image = np.zeros(rows * length, dtype=bool)
        for group in prompt.groups:
            is_image[group.image_index.numpy()] = True
        is_image = is_image.reshape(rows, length)
        kept: list[np.ndarray] = []
        source = np.zeros((rows, length), dtype=np.int64)
        count = 0
        before = np.zeros(rows, dtype=np.int64)  # what a row begins with, as a number
        for place in range(length):
            alone = np.flatnonzero(is_image[:, place])
            kept.append(alone * length + place)
            source[alone, place] = count + np.arange(len(alone))
            count += len(alone)
            text = np.flatnonzero(place < ends)
            if len(text):
                begins = before[text] * (int(ids.max()) + 1) + ids[text, place]
                _, first, which = np.unique(begins, return_index=True, return_inverse=True)
                kept.append(text[first] * length + place)
                source[text, place] = count + which
                before[text] = which
                count += len(first)
        return SharedText(torch.from_numpy(np.concatenate(kept)), torch.from_numpy(source.reshape(-1)))

    def to(self, device: torch.device) -> SharedText:
        return SharedText(self.kept.to(device), self.source.to(device))


def image_states(
    backbone: QwenBackbone, seen: Sequence[torch.Tensor], prompt: Prompt, shared: SharedText
) -> list[torch.Tensor]:
    """(rows, M, D) last hidden states of the image tokens of each of `prompt.groups`, from their embeddings of that
    shape.
    """
    model = backbone.language
    rows, length = prompt.token_ids.shape
    hidden = model.embed_tokens(prompt.token_ids.flatten()[shared.kept])
    for group, image in zip(prompt.groups, seen, strict=True):
        places = shared.source[group.image_index]
        hidden = hidden.index_copy(0, places, image.flatten(0, 1).to(hidden.dtype))
    cos, sin = text_rotary(prompt.position_ids, backbone.config.text_config, backbone.dtype, backbone.device)
    cos, sin = cos[shared.kept], sin[shared.kept]
    images = torch.cat([group.image_index for group in prompt.groups])
    for index, block in enumerate(model.blocks):
        wanted, from_hidden = (images, shared.source[images]) if index + 1 == len(model.blocks) else (shared.kept, None)
        query, key, value = (
            take(part, shared.source).unflatten(0, (rows, length)) for part in block.project(hidden, cos, sin)
        )
        attended = backbone.attention.rows(query, key, value, backbone.row_ends(rows, length), model.scale)
        hidden = block.finish(
            hidden if from_hidden is None else take(hidden, from_hidden), take(attended.flatten(0, 1), wanted)
        )
    states = model.norm(hidden)
    sizes = [len(group.image_index) for group in prompt.groups]
    return [
        part.view(len(group.rows), -1, part.shape[-1])
        for part, group in zip(states.split(sizes), prompt.groups, strict=True)
    ]


def take(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`states[index]`, (N, ...) by (B,). Its gradient is summed row by row: 2 ms where that of indexing took 58 (4,200
    rows of 256 from 6,720, one core).
    """
    return F.embedding(index, states.flatten(1)).unflatten(1, states.shape[1:])
