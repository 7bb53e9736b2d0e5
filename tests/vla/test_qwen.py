from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModel

from tests.vla.conftest import CPU
from vla import weights
from vla.geometry import geometry_config
from vla.preprocess import patches, published_patches
from vla.prompt import Prompt, Prompter
from vla.published import to_published
from vla.qwen import QwenBackbone
from vla.tables import image_tables

SIZES = {
    "three equal": [(112, 112)] * 3,
    "not square, border windows": [(168, 224), (168, 224)],
    "mixed": [(112, 140), (56, 84), (112, 140), (252, 196)],
    "one wide": [(364, 644)],
    "five of 224": [(224, 224)] * 5,
}


def cameras_of(sizes: list[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Names of different lengths, so that rows are padded."""
    return {"view" + " longer" * index: size for index, size in enumerate(sizes)}


def images_for(prompt: Prompt, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        patches(torch.randint(0, 256, (len(g.rows), *g.size, 3), dtype=torch.uint8, generator=generator))
        for g in prompt.groups
    ]


def stock_forward(
    backbone: QwenBackbone, images: list[torch.Tensor], prompt: Prompt, is_image: torch.Tensor, is_real: torch.Tensor
) -> torch.Tensor:
    """transformers' whole forward on the same batch, in its own format and with its own masks and positions."""
    model = AutoModel.from_config(backbone.config, attn_implementation="sdpa").eval()
    model.load_state_dict(to_published(backbone))
    model.to(backbone.dtype)
    by_row = {}
    for group, views in zip(prompt.groups, images, strict=True):
        by_row |= {row: (group.size, view) for row, view in zip(group.rows, views, strict=True)}
    rows = [by_row[row] for row in range(len(prompt.token_ids))]
    return model(
        input_ids=prompt.token_ids,
        attention_mask=is_real.long(),
        pixel_values=torch.cat([published_patches(view[None]) for _, view in rows]).to(backbone.dtype),
        image_grid_thw=torch.tensor([[1, height // 14, width // 14] for (height, width), _ in rows]),
        mm_token_type_ids=is_image.int(),
    ).last_hidden_state


@pytest.mark.parametrize("geometry", ["tiny", "embedded"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_the_encode_equals_the_stock_forward(prompter: Prompter, geometry: str, sizes: list[tuple[int, int]]) -> None:
    backbone = weights.random_weights(geometry, CPU, torch.float32)
    cameras = cameras_of(sizes)
    prompt = prompter.prompt("pick up the red block", cameras)
    lengths = [len(prompter.row("pick up the red block", name, size).token_ids) for name, size in cameras.items()]
    is_real = torch.arange(prompt.token_ids.shape[1]) < torch.tensor(lengths)[:, None]
    images = images_for(prompt)
    with torch.inference_mode():
        ours = backbone(images, prompt)
        stock = stock_forward(backbone, images, prompt, prompt.token_ids == prompter.image_token_id, is_real)
    assert stock[is_real].abs().mean() > 0.5
    torch.testing.assert_close(ours[is_real], stock[is_real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_in_bfloat16_it_is_as_near_to_float32_as_the_stock_forward(
    prompter: Prompter, sizes: list[tuple[int, int]]
) -> None:
    backbone = weights.random_weights("embedded", CPU, torch.float32)
    cameras = cameras_of(sizes)
    prompt = prompter.prompt("go", cameras)
    is_real = torch.arange(prompt.token_ids.shape[1]) < torch.tensor(
        [len(prompter.row("go", name, size).token_ids) for name, size in cameras.items()]
    ).unsqueeze(1)
    images = images_for(prompt)
    with torch.inference_mode():
        exact = backbone(images, prompt)[is_real]
        backbone.bfloat16()
        ours = backbone(images, prompt)[is_real].float()
        stock = stock_forward(backbone, images, prompt, prompt.token_ids == prompter.image_token_id, is_real)
    stock = stock[is_real].float()
    assert cosine_similarity(ours.flatten(), stock.flatten(), dim=0) > 0.9999
    assert cosine_similarity(ours.flatten(), exact.flatten(), dim=0) > 0.9999


def test_padding_does_not_change_a_view(tiny: QwenBackbone, prompter: Prompter) -> None:
    alone = prompter.prompt("go", {"a": (56, 56)})
    padded = prompter.prompt("go", {"a": (56, 56), "a much longer camera name": (112, 56)})
    assert padded.text_tokens[1] > padded.text_tokens[0] == alone.text_tokens[0]
    image, other = images_for(padded)
    with torch.inference_mode():
        (first,) = tiny.image_hidden(tiny([image], alone), alone)
        second = tiny.image_hidden(tiny([image, other], padded), padded)[0]
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def test_the_instruction_changes_the_image_tokens(tiny: QwenBackbone, prompter: Prompter) -> None:
    hidden = []
    for text in ("go to the red block", "go to the blue block"):
        prompt = prompter.prompt(text, {"a": (56, 56)})
        with torch.inference_mode():
            hidden.append(tiny.image_hidden(tiny(images_for(prompt), prompt), prompt)[0])
    assert (hidden[0] - hidden[1]).abs().max() > 1e-3


def test_text_does_not_depend_on_the_image_that_follows_it(tiny: QwenBackbone, prompter: Prompter) -> None:
    prompt = prompter.prompt("go to the red block", {"a": (56, 56)})
    start = int(prompt.groups[0].image_index[0])
    with torch.inference_mode():
        first, second = (tiny(images_for(prompt, seed), prompt) for seed in (1, 2))
    assert torch.equal(first[:, :start], second[:, :start])
    assert not torch.allclose(first[:, start:], second[:, start:])


def test_bfloat16_stays_near_float32(tiny: QwenBackbone, prompter: Prompter, tmp_path: Path) -> None:
    dtype = torch.bfloat16
    weights.save(tiny, tmp_path, torch.float32)
    prompt = prompter.prompt("go", {"a": (56, 56)})
    images = images_for(prompt)
    with torch.inference_mode():
        exact = tiny(images, prompt)
        loaded = weights.load(tmp_path, CPU, dtype)
        half = loaded(images, prompt)
    assert loaded.dtype == half.dtype == dtype
    assert cosine_similarity(exact.flatten(), half.float().flatten(), dim=0) > 0.999


def test_the_first_layer_is_folded_once_it_is_frozen_and_anew_while_it_learns(prompter: Prompter) -> None:
    backbone = weights.random_weights("tiny", CPU, torch.float32)
    images = images_for(prompter.prompt("go", {"a": (56, 56)}))[0]
    first = backbone.vision(images, (56, 56))
    first.sum().backward()
    assert backbone.visual.patch.weight.grad is not None
    with torch.no_grad():
        backbone.visual.patch.weight.mul_(2.0)
        changed = backbone.vision(images, (56, 56))
        assert not torch.equal(changed, first)
        backbone.freeze()
        assert torch.equal(backbone.vision(images, (56, 56)), changed)
        assert not backbone.visual.patch.weight.requires_grad
        backbone.bfloat16()
        assert cosine_similarity(backbone.vision(images, (56, 56)).float().flatten(), changed.flatten(), dim=0) > 0.999


def test_windows_of_one_size_share_one_attention_call() -> None:
    tables = image_tables((364, 644), geometry_config("tiny").vision_config, CPU)
    assert [length for _, _, length in tables.windows] == [64, 48, 16, 12]
    assert tables.windows[-1][1] == (364 // 14) * (644 // 14)
