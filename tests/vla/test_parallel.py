"""A process among its peers, as torchrun starts them."""

from __future__ import annotations

import pytest
import torch

from vla.training.parallel import Group


@pytest.mark.parametrize(
    ("size", "asked", "given"),
    [(2, "cuda", "cuda:1"), (2, "cuda:0", "cuda:0"), (1, "cuda", "cuda"), (2, "cpu", "cpu")],
)
def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, size: int, asked: str, given: str) -> None:
    for name, value in (("WORLD_SIZE", size), ("RANK", 3), ("LOCAL_RANK", 1)):
        monkeypatch.setenv(name, str(value))
    assert Group(torch.device(asked)).device == torch.device(given)
