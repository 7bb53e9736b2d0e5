"""A process among its peers, as torchrun starts them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

from vla.errors import DeviceFault
from vla.training.parallel import Group, check_device
from vla.training.train_command import train_app


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device", "gpu"), "device 'gpu' is unknown: use 'cpu', 'cuda' or 'cuda:N'"),
        (("--device", "cuda:9x"), "device 'cuda:9x' is unknown: use"),
        (("--device", "cuda"), "device 'cuda' was asked for, but torch sees no CUDA GPU: use 'cpu'"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    app = train_app(lambda tasks, max_age_ms: None, "touch")  # type: ignore[arg-type, return-value]
    for way in ((), ("--data", str(tmp_path)), ("--data", str(tmp_path), "--head-only", "--from", str(tmp_path))):
        result = CliRunner().invoke(app, ["--out", str(tmp_path / "policy"), *words, *way])
        assert isinstance(result.exception, DeviceFault) and said in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_processes_without_a_gpu_each_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda", 2)
    check_device("cuda:1", 1)
    check_device("cpu", 8)
    with pytest.raises(DeviceFault, match="'cuda' was asked for 3 processes, which take a GPU each, but there are 2"):
        check_device("cuda", 3)
    with pytest.raises(DeviceFault, match="'cuda:0' was asked for 2 processes, which take a GPU each: use 'cuda', or"):
        check_device("cuda:0", 2)
