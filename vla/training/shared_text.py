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

    kept: torch.Tensor  # (T,) places in (V * L): the image tokens, group by group, and then the text
    source: torch.Tensor  # (V * L,) indices into `kept`

    @staticmethod
    def of(prompt: Prompt) -> SharedText:
        ids, ends = prompt.token_ids.numpy(), np.array(prompt.text_tokens)
        rows, length = ids.shape
        images = _image_places(prompt).numpy()
        source = np.zeros(rows * length, dtype=np.int64)
        source[images] = np.arange(len(images))
        kept, count, vocabulary = [images], len(images), int(ids.max()) + 1
        before = np.zeros(rows, dtype=np.int64)  # what a row begins with, as a number
        for place in range(ends.max()):
            text = np.flatnonzero(place < ends)
            begins = before[text] * vocabulary + ids[text, place]
            _, first, which = np.unique(begins, return_index=True, return_inverse=True)
            before[text] = which
            source[text * length + place] = count + which
            kept.append(text[first] * length + place)
            count += len(first)
        return SharedText(torch.from_numpy(np.concatenate(kept)), torch.from_numpy(source))

    def to(self, device: torch.device) -> SharedText:
        return SharedText(self.kept.to(device), self.source.to(device))


def _image_places(prompt: Prompt) -> torch.Tensor:
    """(I,) in (V * L), group by group."""
    return torch.cat([group.image_index for group in prompt.groups])


def image_states(
    backbone: QwenBackbone, seen: Sequence[torch.Tensor], prompt: Prompt, shared: SharedText
) -> list[torch.Tensor]:
    """(rows, M, D) last hidden states of the image tokens of each of `prompt.groups`, from their embeddings of that
    shape.
    """
    model = backbone.language
    rows, length = prompt.token_ids.shape
    images = _image_places(prompt)
    text = model.embed_tokens(prompt.token_ids.flatten()[shared.kept[len(images) :]])
    hidden = torch.cat([*(image.flatten(0, 1).to(text.dtype) for image in seen), text])
    cos, sin = text_rotary(prompt.position_ids, backbone.config.text_config, backbone.dtype, backbone.device)
    cos, sin = cos[shared.kept], sin[shared.kept]
    ends = backbone.row_ends(rows, length)
    for block in model.blocks:
        states = (take(part, shared.source).unflatten(0, (rows, length)) for part in block.project(hidden, cos, sin))
        attended = backbone.attention.rows(*states, ends, model.scale).flatten(0, 1)
        wanted = images if block is model.blocks[-1] else shared.kept
        hidden = block.finish(hidden[: len(wanted)], take(attended, wanted))
    parts = model.norm(hidden).split([len(group.image_index) for group in prompt.groups])
    return [part.unflatten(0, (len(group.rows), -1)) for part, group in zip(parts, prompt.groups, strict=True)]


def take(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`states[index]`, (N, ...) by (B,). Its gradient is summed row by row: 2 ms where that of indexing took 58 (4,200
    rows of 256 from 6,720, one core).
    """
    return F.embedding(index, states.flatten(1)).unflatten(1, states.shape[1:])
