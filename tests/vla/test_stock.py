"""The baselines are only worth comparing with if they are right."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.vla.conftest import CPU
from vla.preprocess import patches
from vla.prompt import Prompter
from vla.published import to_published
from vla.qwen import QwenBackbone
from vla.sizes import model_size
from vla.stock import StockEncoder, stock_model
from vla.tokenizer import build_tokenizer

CAMERAS = ("front", "left side", "wrist")
INSTRUCTION = "pick up the red block"
SIZES = [(112, 112), (84, 140), (360, 640)]


def encoder(backbone: QwenBackbone, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> StockEncoder:
    tokenizer = build_tokenizer([INSTRUCTION])
    ids = StockEncoder.token_ids(tokenizer)
    model = stock_model(backbone.config, to_published(backbone), CPU, dtype, token_ids=ids)
    return StockEncoder(model, tokenizer, INSTRUCTION, CAMERAS, model_size(*size))


def frames(size: tuple[int, int]) -> torch.Tensor:
    return torch.randint(0, 256, (3, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_a_batch_of_views_gives_what_one_view_after_another_gives(tiny: QwenBackbone, size: tuple[int, int]) -> None:
    stock = encoder(tiny, size)
    assert len(set(stock.lengths("batch"))) > 1  # so that rows are padded
    alone, together = (stock.encode(frames(size), layout) for layout in ("sequential", "batch"))
    assert alone.shape == (3, 32) and alone.abs().mean() > 0.1
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_in_one_sequence_only_the_first_view_is_as_it_is_alone(tiny: QwenBackbone, size: tuple[int, int]) -> None:
    stock = encoder(tiny, size)
    alone, together = (stock.encode(frames(size), layout) for layout in ("sequential", "concatenated"))
    torch.testing.assert_close(alone[0], together[0], atol=1e-4, rtol=0)
    assert (alone[1:] - together[1:]).abs().amax(dim=1).min() > 1e-2


@torch.inference_mode()
def test_our_backbone_gives_the_features_of_the_stock_batch(tiny: QwenBackbone) -> None:
    stock = encoder(tiny, (112, 112))
    prompt = Prompter(build_tokenizer([INSTRUCTION])).prompt(INSTRUCTION, dict.fromkeys(CAMERAS, (112, 112)))
    hidden = tiny([patches(frames((112, 112)))], prompt)
    ours = tiny.image_hidden(hidden, prompt)[0].mean(dim=1)
    torch.testing.assert_close(ours, stock.encode(frames((112, 112)), "batch"), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_in_bfloat16_it_stays_near_float32(tiny: QwenBackbone) -> None:
    exact, half = (encoder(tiny, (112, 112), dtype) for dtype in (torch.float32, torch.bfloat16))
    assert half.model.dtype == torch.bfloat16
    features = [stock.encode(frames((112, 112)), "batch") for stock in (exact, half)]
    assert not torch.equal(*features)
    assert F.cosine_similarity(*features, dim=1).min() > 0.999


def test_padding_is_not_counted_as_tokens(tiny: QwenBackbone) -> None:
    stock = encoder(tiny, (112, 112))
    text = [length - 16 for length in stock.lengths("sequential")]  # 16 image tokens each
    assert stock.lengths("batch") == stock.lengths("sequential")
    assert stock.tokens("batch") == stock.tokens("sequential") == sum(text) + 3 * 16
    assert stock.tokens("concatenated") < stock.tokens("batch")  # the instruction stands there once
