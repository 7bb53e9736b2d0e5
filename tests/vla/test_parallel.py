"""A process among its peers, as torchrun starts them."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from vla.training.parallel import Group


@pytest.mark.parametrize(
    ("size", "asked", "given"),
    [(2, "cuda", "cuda:1"), (2, "cuda:0", "cuda:0"), (1, "cuda", "cuda"), (2, "cpu", "cpu")],
)
def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, size: int, asked: str, given: str) -> None:
    for name, value in (("WORLD_SIZE", size), ("RANK", 3), ("LOCAL_RANK", 1)):
        monkeypatch.setenv(name, str(value))
    assert Group(torch.device(asked)).device == torch.device(given)


def test_a_span_is_that_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_the_other(ends: torch.Tensor, op: object) -> None:
        assert op == dist.ReduceOp.MAX
        ends.copy_(torch.maximum(ends, torch.tensor([-2.0, 400.0], dtype=torch.float64)))

    assert Group(torch.device("cpu")).widest((3.0, 300.0)) == (3.0, 300.0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "all_reduce", with_the_other)
    assert Group(torch.device("cpu")).widest((3.0, 300.0)) == (2.0, 400.0)
    assert Group(torch.device("cpu")).widest((1.0, 500.0)) == (1.0, 500.0)
