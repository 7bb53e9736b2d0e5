"""Instruction and view names -> token ids and 3-D positions, one short sequence per view.

`<|im_start|>user\\n{instruction}\\nview: {camera}\\n<|vision_start|>`, and then the image tokens, which end it. The
instruction comes first because the language model is causal: image tokens placed before it could not depend on it, and
nothing placed after the image could reach it. Rows are padded on the right, which causal attention makes exact with no
mask.

What the operator says is only ever text: an instruction that would encode to one of the control tokens is refused.

Letters: V views (rows), L padded length, N image tokens of a view.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from errno import EIO
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vla.errors import FileFault, PromptError
from vla.sizes import MERGE, patch_grid

TURN_START, VISION_START, IMAGE_PAD = "<|im_start|>", "<|vision_start|>", "<|image_pad|>"
ROW_MULTIPLE = 32  # instructions of about the same length give rows of one length, and so share one graph
MAX_TEXT_TOKENS = 4096  # any 1000 characters, even at four bytes and one token a byte, and the words around them


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One view's sequence. The image tokens are its last `tokens_down * tokens_across` ids."""

    token_ids: np.ndarray  # (length,) int64
    size: tuple[int, int]  # of the image in pixels
    tokens_down: int
    tokens_across: int

    @property
    def image_tokens(self) -> int:
        return self.tokens_down * self.tokens_across

    @property
    def image_start(self) -> int:
        return len(self.token_ids) - self.image_tokens


@dataclass(frozen=True, slots=True, eq=False)
class ViewGroup:
    """The rows whose images have one size."""

    size: tuple[int, int]
    rows: tuple[int, ...]
    image_index: torch.Tensor  # (len(rows) * N,) where their image tokens lie in the flattened (V * L)

    def to(self, device: torch.device) -> ViewGroup:
        return ViewGroup(self.size, self.rows, self.image_index.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """All that the language model needs besides the pixels; fixed for given instruction, views and sizes."""

    token_ids: torch.Tensor  # (V, L)
    position_ids: torch.Tensor  # (3, V, L): time, row, column
    groups: tuple[ViewGroup, ...]
    text_tokens: tuple[int, ...]  # of each row, before its image
    view_order: torch.Tensor  # (V,) where each row stands once the groups lie one after another

    def to(self, device: torch.device) -> Prompt:
        groups = tuple(group.to(device) for group in self.groups)
        ids, positions, order = (part.to(device) for part in (self.token_ids, self.position_ids, self.view_order))
        return Prompt(ids, positions, groups, self.text_tokens, order)


class Prompter:
    """Writes prompts with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        by_text: dict[str, int] = tokenizer.get_added_vocab()  # type: ignore[operator] - typed through __getattr__
        self._control_tokens = {index: text for text, index in by_text.items()}
        missing = [text for text in (TURN_START, VISION_START, IMAGE_PAD) if text not in by_text]
        if missing:
            raise FileFault(
                f"tokenizer '{tokenizer.name_or_path}' lacks the control tokens {missing}:"
                " it does not belong to Qwen2.5-VL"
            )
        self._turn_start, self._vision_start = by_text[TURN_START], by_text[VISION_START]
        self.image_token_id = by_text[IMAGE_PAD]

    @classmethod
    def load(cls, folder: Path) -> Prompter:
        """From the tokenizer files of a model folder."""
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (folder / name).is_file():
                raise FileFault(
                    f"{folder / name} is missing: expected the tokenizer in the published Qwen2.5-VL layout;"
                    " likely an incomplete copy or download"
                )
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises plain Exception
            raise FileFault(
                f"{folder / 'tokenizer.json'} and tokenizer_config.json beside it: not a readable tokenizer"
                f" ({' '.join(str(error).split())}): likely an interrupted copy or download"
            ) from error
        return cls(tokenizer)

    @property
    def fingerprint(self) -> str:
        """A short hash of what tokenizer.json says: embeddings that were trained belong to one tokenizer."""
        return hashlib.sha256(self._tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:12]

    def save(self, folder: Path) -> None:
        """Writes the tokenizer files into a model folder. Raises OSError where the disk refuses them."""
        try:
            self._tokenizer.save_pretrained(folder)
        except OSError:
            raise
        except Exception as error:  # the tokenizers library raises plain Exception
            raise OSError(EIO, " ".join(str(error).split()), str(folder / "tokenizer.json")) from error

    def row(self, instruction: str, camera: str, size: tuple[int, int]) -> Row:
        """The sequence of one view whose image has `size` (height, width) in pixels."""
        if not instruction.strip():
            raise PromptError("the instruction is empty: say what to do, for example 'put the red block in the bin'")
        text = self._encode(f"user\n{instruction}\nview: {camera}\n")
        if len(text) > MAX_TEXT_TOKENS:
            raise PromptError(f"the instruction takes {len(text)} tokens, at most {MAX_TEXT_TOKENS} fit: shorten it")
        down, across = (side // MERGE for side in patch_grid(*size))
        ids = [self._turn_start, *text, self._vision_start, *[self.image_token_id] * (down * across)]
        return Row(np.array(ids, dtype=np.int64), size, down, across)

    def prompt(self, instruction: str, cameras: dict[str, tuple[int, int]], multiple: int = ROW_MULTIPLE) -> Prompt:
        """The prompt of one capture: one row for each camera (name -> image size), in their order.

        Rows are padded to a `multiple` of tokens.
        """
        return stack([self.row(instruction, camera, size) for camera, size in cameras.items()], multiple)

    def _encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        control = sorted({self._control_tokens[index] for index in ids if index in self._control_tokens})
        if control:
            raise PromptError(
                f"the instruction holds the model's control tokens {control}: remove them, use plain words"
            )
        return ids


def stack(rows: Sequence[Row], multiple: int = 1) -> Prompt:
    """Rows padded on the right to one length, a `multiple` of something, with the positions Qwen2.5-VL gives them."""
    length = -(-max(len(row.token_ids) for row in rows) // multiple) * multiple
    token_ids = np.zeros((len(rows), length), dtype=np.int64)
    position_ids = np.zeros((3, len(rows), length), dtype=np.int64)
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, row in enumerate(rows):
        token_ids[index, : len(row.token_ids)] = row.token_ids
        position_ids[:, index, : len(row.token_ids)] = _positions(row.image_start, row.tokens_down, row.tokens_across)
        by_size.setdefault(row.size, []).append(index)
    groups = []
    for size, members in by_size.items():
        starts = np.array([index * length + rows[index].image_start for index in members])
        image_index = starts[:, None] + np.arange(rows[members[0]].image_tokens)
        groups.append(ViewGroup(size, tuple(members), torch.from_numpy(image_index.reshape(-1))))
    text_tokens = tuple(row.image_start for row in rows)
    order = torch.argsort(torch.tensor([row for group in groups for row in group.rows]))
    return Prompt(torch.from_numpy(token_ids), torch.from_numpy(position_ids), tuple(groups), text_tokens, order)


@lru_cache(maxsize=1024)
def _positions(text_tokens: int, down: int, across: int) -> np.ndarray:
    """(3, length): text counts up on all three axes; an image holds time still and counts rows and columns."""
    text = np.broadcast_to(np.arange(text_tokens), (3, text_tokens))
    rows, columns = np.divmod(np.arange(down * across), across)
    image = text_tokens + np.stack([np.zeros_like(rows), rows, columns])
    return np.concatenate([text, image], axis=1)
