from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from vla import precision, quantised
from vla.geometry import geometry_config
from vla.precision import Precision, activation_dtype, convert, finisher, obstacle, quantise, slower_than_bf16
from vla.quantised import Int8Linear, int_product

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def layer(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs).requires_grad_(False)


def test_fp32_and_bf16_leave_the_layer_as_it_is() -> None:
    linear = layer(64, 48)
    assert convert(linear, "fp32") is linear and convert(linear, "bf16") is linear


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"qkv": layer(32, 32), "down": layer(32, 32)}) for _ in range(2)])


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.language, self.visual = Part(), Part()


@pytest.mark.parametrize("vision", [False, True])
def test_the_vision_tower_is_quantised_only_when_asked(vision: bool) -> None:
    backbone = Backbone()
    quantise(backbone, "int8", vision)
    assert all(type(block["qkv"]) is type(block["down"]) is Int8Linear for block in backbone.language.blocks)
    assert all(type(block["qkv"]) is (Int8Linear if vision else nn.Linear) for block in backbone.visual.blocks)


def test_bitsandbytes_never_gets_the_vision_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "BitsAndBytesLinear", lambda linear, bits: bits)
    finish, linear = finisher("int4-bnb", vision=True), layer(32, 32)
    assert finish("language.blocks.0.qkv", linear) == 4
    assert finish("visual.blocks.0.qkv", linear) is linear


def test_around_int8_layers_a_cpu_computes_in_float32() -> None:
    dtypes = {kind: activation_dtype(kind, CPU) for kind in precision.PRECISIONS}
    assert dtypes == dict.fromkeys(precision.PRECISIONS, torch.bfloat16) | {
        "fp32": torch.float32,
        "int8": torch.float32,
    }
    assert activation_dtype("int8", CPU, quantised=False) == torch.bfloat16


def test_this_cpu_runs_fp32_bf16_and_int8() -> None:
    assert [kind for kind in ("fp32", "bf16", "int8") if obstacle(kind, CPU) is not None] == []


def test_fp8_on_a_cpu_is_refused_with_the_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert obstacle("fp8", CPU) == (
        "precision 'fp8' cannot run on cpu: float8 needs an NVIDIA GPU of compute capability 8.9 or newer, this is a"
        " CPU; it can run fp32, bf16, int8"
    )
    assert "bitsandbytes is not installed (pip install bitsandbytes); it can run fp32, bf16, int8" in str(
        obstacle("int8-bnb", CPU)
    )


@pytest.mark.parametrize(
    ("kind", "capability", "version", "reason"),
    [
        ("bf16", (7, 5), "2.13.0", "bfloat16 needs compute capability 8.0, this GPU has compute capability 7.5"),
        ("int8", (7, 0), "2.13.0", "integer tensor cores need compute capability 7.5, .* 7.0; it can run fp32"),
        ("fp8", (8, 6), "2.13.0", "compute capability 8.9 or newer, this GPU has .* 8.6; it can run fp32, bf16, int8"),
        ("fp8", (8, 9), "2.11.0", "torch 2.11.0 computes row-wise float8 outside the current stream: needs 2.12"),
    ],
)
def test_an_old_gpu_is_told_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, kind: Precision, capability: tuple[int, int], version: str, reason: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(precision, "_computes_bfloat16", lambda device: capability >= (8, 0))
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)(version))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = obstacle(kind, GPU)
    assert text is not None and re.search(reason, text), text


KERNELS = pytest.mark.parametrize(("kernel", "has"), [("int_product", True), ("float_product", False)])


@KERNELS
def test_a_kernel_that_fails_here_is_an_obstacle(monkeypatch: pytest.MonkeyPatch, kernel: str, has: bool) -> None:
    def broken(*arguments: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("cublas says no\nand more")

    monkeypatch.setattr(quantised, "has_int8_products", lambda: has)
    monkeypatch.setattr(quantised, kernel, broken)
    text = str(obstacle("int8", CPU))
    assert "a small product failed with RuntimeError: cublas says no; it can run fp32, bf16" in text
    assert "int8" not in text.partition("it can run ")[2].split(", ")


@KERNELS
def test_a_kernel_that_computes_something_else_here_is_an_obstacle(
    monkeypatch: pytest.MonkeyPatch, kernel: str, has: bool
) -> None:
    monkeypatch.setattr(quantised, "has_int8_products", lambda: has)
    monkeypatch.setattr(quantised, kernel, lambda x, weight: -int_product(x, weight).float())
    assert "a small product came out wrong (relative error" in str(obstacle("int8", CPU))


@pytest.mark.parametrize(("int8_ms", "ratio"), [(30.0, 3.0), (10.5, None), (4.0, None)])
def test_a_precision_slower_than_bf16_here_is_known(
    monkeypatch: pytest.MonkeyPatch, int8_ms: float, ratio: float | None
) -> None:
    monkeypatch.setattr(precision, "_now", ticking([10.0, int8_ms]))
    assert slower_than_bf16("int8", CPU, geometry_config("tiny").text_config, views=2, length=10) == ratio


def test_plain_precisions_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_now", ticking([1.0, 30.0]))
    assert slower_than_bf16("fp32", CPU, geometry_config("tiny").text_config, views=2, length=10) is None


def ticking(durations: list[float]) -> Callable[[torch.device], float]:
    """A clock for begin and end of runs that take these times in turn; the warm-up's end is not read."""
    moment, reads, warm = 0.0, 0, len(durations)

    def now(device: torch.device) -> float:
        nonlocal moment, reads
        index = reads
        reads += 1
        if index >= warm and (index - warm) % 2:
            moment += durations[(index - warm) // 2 % len(durations)]
        return moment

    return now


@pytest.mark.parametrize("kind", ["int8-bnb", "int4-bnb"])
def test_bitsandbytes_runs_where_it_is_installed(kind: Precision) -> None:
    pytest.importorskip("bitsandbytes")
    assert obstacle(kind, CPU) is None


@pytest.mark.gpu
def test_this_gpu_runs_what_its_generation_should() -> None:
    generation = torch.cuda.get_device_capability()
    assert obstacle("fp32", GPU) is None
    assert (obstacle("bf16", GPU) is None) == (generation >= (8, 0))
    assert (obstacle("int8", GPU) is None) == (generation >= (7, 5))
    if generation >= (9, 0):
        assert obstacle("fp8", GPU) is None
