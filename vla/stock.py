"""The baselines: transformers' own `Qwen2_5_VLModel` with the weights of ours, used as its documentation shows.

Three layouts of one capture, the instruction always before the images: all views in one sequence, one forward a view,
one padded batch with an attention mask. The model builds positions, masks and windows itself in every forward, as it
does for anybody. What a careful user would do is done for it: fused attention, no logits, no key-value cache, token ids
kept between frames, pixels normalised on the model's device.

Letters: V views, N image tokens of a view, R rows, L padded length, D language width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLModel

from vla.preprocess import patches, published_patches, resize
from vla.prompt import IMAGE_PAD, TURN_START, VISION_START
from vla.sizes import MERGE, patch_grid

VISION_END = "<|vision_end|>"
_ROTARY_ONLY = {"vision_config": {"depth": 1}, "text_config": {"num_hidden_layers": 1, "vocab_size": 8}}


@dataclass(frozen=True, slots=True, eq=False)
class StockBatch:
    """One stock forward: all it takes besides the pixels, and where its images lie."""

    views: tuple[int, ...]  # neighbours
    token_ids: torch.Tensor  # (R, L)
    is_real: torch.Tensor  # (R, L) int64, the attention mask
    is_image: torch.Tensor  # (R, L) int32, what transformers calls mm_token_type_ids
    grid: torch.Tensor  # (V, 3) patches in time, down, across
    image_index: tuple[torch.Tensor, ...]  # for each view the (N,) places of its image in the flattened (R * L)


def stock_model(
    config: Any,
    state: Mapping[str, torch.Tensor],
    device: torch.device,
    dtype: torch.dtype,
    attention: str = "sdpa",
    token_ids: Mapping[str, int] | None = None,
) -> Qwen2_5_VLModel:
    """The published model of this configuration with the weights of `state`, which has its names.

    `token_ids` replaces ids of the configuration such as `image_token_id`, for prompts of another tokenizer.
    """
    config = copy.deepcopy(config)
    for name, value in (token_ids or {}).items():
        setattr(config, name, value)
    with torch.device("meta"):
        model = Qwen2_5_VLModel._from_config(config, dtype=dtype, attn_implementation=attention)
    weights = {name: tensor.detach().to(device, dtype).contiguous() for name, tensor in state.items()}
    model.load_state_dict(weights, assign=True)
    small = copy.deepcopy(config)  # the rotary tables are no weights; a model of one layer computes the same ones
    for section, changes in _ROTARY_ONLY.items():
        for name, value in changes.items():
            setattr(getattr(small, section), name, value)
    small.text_config.layer_types = small.text_config.layer_types[:1]
    small.vision_config.fullatt_block_indexes = []
    for name, buffer in Qwen2_5_VLModel._from_config(small, dtype=dtype).named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, buffer.to(device))
    return model.eval().requires_grad_(False)


class StockEncoder:
    """Frames of one size to (V, D) mean-pooled image features, in each of the three layouts."""

    def __init__(
        self,
        model: Qwen2_5_VLModel,
        tokenizer: PreTrainedTokenizerBase,
        instruction: str,
        cameras: Sequence[str],
        size: tuple[int, int],
    ) -> None:
        self.model, self.size = model, size
        self._tokenizer = tokenizer
        self._device = model.device
        down, across = patch_grid(*size)
        self._image_ids = [self._id(IMAGE_PAD)] * (down * across // MERGE**2)
        opening = [self._id(TURN_START), *self._encode(f"user\n{instruction}\n")]
        parts = [[*self._encode(f"view: {camera}\n"), self._id(VISION_START), *self._image_ids] for camera in cameras]
        rows = [opening + part for part in parts]
        together = opening + [token for part in parts for token in [*part, self._id(VISION_END)]]
        views = tuple(range(len(cameras)))
        self.layouts: dict[str, tuple[StockBatch, ...]] = {
            "concatenated": (self._batch([together], views),),
            "sequential": tuple(self._batch([row], (view,)) for view, row in enumerate(rows)),
            "batch": (self._batch(rows, views),),
        }

    @classmethod
    def token_ids(cls, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
        """The ids that the model's configuration must name for prompts of this tokenizer."""
        names = {"image_token_id": IMAGE_PAD, "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}
        return {name: int(tokenizer.convert_tokens_to_ids(token)) for name, token in names.items()}  # type: ignore[arg-type]

    def tokens(self, layout: str) -> int:
        """Tokens that the language model reads for one capture, padding not counted."""
        return sum(int(batch.is_real.sum()) for batch in self.layouts[layout])

    def lengths(self, layout: str) -> list[int]:
        """Of every sequence, padding not counted."""
        return [int(length) for batch in self.layouts[layout] for length in batch.is_real.sum(1)]

    def encode(self, images: torch.Tensor, layout: str) -> torch.Tensor:
        """(V, D) float32 features of (V, H, W, 3) uint8 frames, in one of `layouts`."""
        return torch.cat(
            [self.forward(images[batch.views[0] : batch.views[-1] + 1], batch) for batch in self.layouts[layout]]
        )

    def forward(self, images: torch.Tensor, batch: StockBatch) -> torch.Tensor:
        """(V, D) float32 features of the (V, H, W, 3) uint8 frames of one stock forward."""
        pixels = published_patches(patches(resize(images.to(self._device, non_blocking=True), *self.size)))
        hidden = self.model(
            input_ids=batch.token_ids,
            attention_mask=batch.is_real,
            pixel_values=pixels,
            image_grid_thw=batch.grid,
            mm_token_type_ids=batch.is_image,
            use_cache=False,
        ).last_hidden_state.flatten(0, 1)
        return torch.stack([hidden[index].float().mean(dim=0) for index in batch.image_index])

    def _batch(self, rows: list[list[int]], views: tuple[int, ...]) -> StockBatch:
        length = max(map(len, rows))
        token_ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        is_real = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        is_image = (token_ids == self._image_ids[0]) & is_real.bool()
        places = is_image.flatten().nonzero().flatten().view(len(views), -1).to(self._device)
        return StockBatch(
            views,
            token_ids.to(self._device),
            is_real.to(self._device),
            is_image.int().to(self._device),
            torch.tensor([[1, *patch_grid(*self.size)]] * len(views), device=self._device),
            tuple(places),
        )

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _id(self, token: str) -> int:
        return int(self._tokenizer.convert_tokens_to_ids(token))  # type: ignore[arg-type]
