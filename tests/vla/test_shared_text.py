"""The path that learns, against whole rows: the same states and the same gradients."""

from __future__ import annotations

import pytest
import torch

from tests.vla.conftest import CPU
from tests.vla.test_qwen import images_for
from vla import weights
from vla.prompt import Prompter, stack
from vla.qwen import QwenBackbone
from vla.training.shared_text import SharedText, image_states, take

TEXTS = ("go to the red block", "go to the blue block", "go", "go to the red block")
CAMERAS = {"front": (56, 56), "a longer name": (56, 84), "wrist": (56, 56)}


@pytest.fixture
def trained() -> QwenBackbone:
    return weights.random_weights("tiny", CPU, torch.float32).requires_grad_(True)


def test_shared_text_gives_the_states_and_gradients_of_whole_rows(trained: QwenBackbone, prompter: Prompter) -> None:
    prompt = stack([prompter.row(text, name, size) for text in TEXTS for name, size in CAMERAS.items()])
    shared = SharedText.of(prompt)
    images = images_for(prompt)
    found = []
    for is_shared in (False, True):
        trained.zero_grad()
        seen = [trained.vision(patches, group.size) for patches, group in zip(images, prompt.groups, strict=True)]
        if is_shared:
            states = image_states(trained, seen, prompt, shared)
        else:
            states = trained.image_hidden(trained.hidden(seen, prompt), prompt)
        sum((part.sin() * (index + 1)).sum() for index, part in enumerate(states)).backward()
        gradients = {name: parameter.grad for name, parameter in trained.named_parameters()}
        found.append((states, gradients))
    (plain, plain_gradients), (ours, our_gradients) = found
    assert [part.shape for part in plain] == [part.shape for part in ours]
    for left, right in zip(plain, ours, strict=True):
        torch.testing.assert_close(left, right, atol=2e-5, rtol=0)
    assert all(gradient is not None for gradient in plain_gradients.values())
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(gradient, our_gradients[name], atol=2e-4, rtol=2e-3, msg=name)


def test_words_are_computed_once_and_padding_never(prompter: Prompter) -> None:
    rows = [prompter.row(text, name, size) for text in TEXTS for name, size in CAMERAS.items()]
    shared = SharedText.of(stack(rows))
    begun = {tuple(row.token_ids[: place + 1]) for row in rows for place in range(row.image_start)}
    assert len(shared.kept) == len(begun) + sum(row.image_tokens for row in rows)
    assert len(shared.kept.unique()) == len(shared.kept)
    assert len(begun) < sum(row.image_start for row in rows) / 2


def test_taking_rows_is_indexing_with_its_gradient() -> None:
    index = torch.tensor([3, 0, 3, 1])
    left, right = (torch.arange(24.0).view(4, 3, 2).requires_grad_() for _ in range(2))
    taken = take(left, index)
    torch.testing.assert_close(taken, right[index])
    (taken**2).sum().backward()
    (right[index] ** 2).sum().backward()
    torch.testing.assert_close(left.grad, right.grad)
