from __future__ import annotations

import shutil
from typing import Literal

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from vla import quantised
from vla.precision import obstacle
from vla.quantised import EXACT_INPUTS, BitsAndBytesLinear, Fp8Linear, Int8Linear, float_product, int_product

GPU = torch.device("cuda")
SHAPES = ((64, 48), (17, 5), (96, 384))  # inputs, outputs
compiles = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")


def layer(inputs: int, outputs: int, bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


def rows(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


def rounded(values: torch.Tensor, levels: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row in units of its own step, float64, and the steps."""
    step = values.double().abs().amax(dim=-1, keepdim=True) / levels
    return values.double() / step, step


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_int8_is_the_integer_product_of_rounded_rows_and_channels(inputs: int, outputs: int, bias: bool) -> None:
    linear, x = layer(inputs, outputs, bias), rows(33, inputs)
    (units, step), (weight, scale) = rounded(x, 127), rounded(linear.weight, 127)
    expected = (units.round() @ weight.round().T) * step * scale.T
    if bias:
        expected = expected + linear.bias.double()
    assert (Int8Linear(linear)(x).double() - expected).abs().max() < 2e-6


@pytest.mark.parametrize("inputs", [1, 64, EXACT_INPUTS, EXACT_INPUTS + 1, 11008])
def test_products_in_float32_are_those_of_integers_to_the_bit(inputs: int) -> None:
    generator = torch.Generator().manual_seed(inputs)
    a, b = (torch.randint(-127, 128, (count, inputs), generator=generator, dtype=torch.int8) for count in (9, 5))
    a[0], b[0] = 127, -127  # the largest sum that there can be
    torch.testing.assert_close(float_product(a, b), int_product(a, b).float(), rtol=0, atol=0)


def test_a_layer_gives_the_same_bits_whether_the_cpu_multiplies_integers_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = []
    for has in (True, False):
        monkeypatch.setattr(quantised, "has_int8_products", lambda has=has: has)
        results.append(Int8Linear(layer(96, 384))(rows(33, 96)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_int8_errs_by_no_more_than_half_a_step_of_each_factor() -> None:
    linear, x = layer(256, 64), rows(40, 256)
    (units, step), (weight, scale) = rounded(x, 127), rounded(linear.weight, 127)
    # (a + da)(b + db) - ab with |da|, |db| <= 1/2, summed over the inputs
    bound = (units.abs().sum(1, keepdim=True) / 2 + weight.abs().sum(1) / 2 + 256 / 4) * step * scale.T
    exact = x.double() @ linear.weight.double().T + linear.bias.double()
    got = Int8Linear(linear)(x)
    assert ((got.double() - exact).abs() <= bound * (1 + 1e-6)).all()
    assert relative(got, exact) < 0.012


@pytest.mark.parametrize("kind", [Int8Linear, Fp8Linear])
def test_a_row_of_zeros_gives_the_bias(kind: type[nn.Module]) -> None:
    linear, x = layer(64, 48), rows(3, 64)
    x[1] = 0
    expected = linear.bias if kind is Int8Linear else linear.bias.bfloat16().float()
    torch.testing.assert_close(kind(linear)(x)[1], expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [Int8Linear, Fp8Linear])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_that_is_not_finite_never_becomes_a_number(
    kind: type[nn.Module], bad: float, dtype: torch.dtype
) -> None:
    module, x = kind(layer(64, 48)), rows(4, 64).to(dtype)
    clean = module(x)
    x[2, 7] = bad
    got = module(x)
    assert not got[2].isfinite().any()
    torch.testing.assert_close(got[[0, 1, 3]], clean[[0, 1, 3]], rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 3, 64), (2, 1, 3, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_leading_shape_comes_back_in_the_dtype_it_came_in(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    linear = layer(64, 40)
    for kind in (Int8Linear, Fp8Linear):
        got = kind(linear)(rows(*shape).to(dtype))
        assert got.shape == (*shape[:-1], 40) and got.dtype == dtype


def test_few_rows_are_padded_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-127, 128, (n, 32), dtype=torch.int8, generator=generator) for n in (5, 24))
    got = int_product(x, weight, least_rows=17)
    assert got.shape == (5, 24) and torch.equal(got.long(), x.long() @ weight.long().T)


def test_int8_holds_half_the_bytes_of_bfloat16() -> None:
    linear = layer(1024, 512).bfloat16()
    half, full = (
        sum(tensor.nbytes for tensor in module.state_dict().values()) for module in (Int8Linear(linear), linear)
    )
    assert half < 0.51 * full
    assert not list(Int8Linear(linear).parameters())


@compiles
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_compiles_as_one_graph_and_gives_the_same(dtype: torch.dtype) -> None:
    module, x = Int8Linear(layer(96, 64)), rows(2, 20, 96).to(dtype)
    x[0, 3] = 0
    x[1, 4, 5] = float("nan")
    torch._dynamo.reset()
    with torch.inference_mode():
        got, expected = torch.compile(module, fullgraph=True)(x), module(x)
    assert not got[1, 4].isfinite().any()
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-6 if dtype == torch.float32 else 0.01, atol=1e-6)


@compiles
def test_a_frozen_graph_keeps_the_integer_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "has_int8_products", lambda: True)
    """Inductor sends two scalings after an integer product to a oneDNN kernel that is a thousand times slower."""
    module, x = Int8Linear(layer(64, 48)).eval(), rows(20, 64)
    torch._dynamo.reset()
    counters.clear()
    with torch._inductor.config.patch(freezing=True), torch.no_grad():
        torch.compile(module, fullgraph=True)(x)
    assert counters["inductor"]["qlinear_weight_prepack_matcher_count"] == 0


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_fp8_is_the_product_of_rows_and_channels_rounded_to_float8(inputs: int, outputs: int) -> None:
    linear, x = layer(inputs, outputs), rows(33, inputs).bfloat16().float()
    (units, step), (weight, scale) = (
        (values.float().to(torch.float8_e4m3fn).double(), step)
        for values, step in (rounded(x, 448), rounded(linear.weight, 448))
    )
    expected = (units @ weight.T) * step * scale.T + linear.bias.double()
    got = Fp8Linear(linear)(x)
    assert relative(got, expected) < 0.008  # it rounds to bfloat16, and a tie may fall the other way
    assert relative(got, linear(x)) < 0.05


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.02), (4, 0.15)])
def test_bitsandbytes_computes_nearly_the_same(bits: Literal[8, 4], limit: float) -> None:
    pytest.importorskip("bitsandbytes")
    linear, x = layer(128, 64).bfloat16(), rows(2, 3, 5, 128).bfloat16()
    with torch.inference_mode():
        got = BitsAndBytesLinear(linear, bits)(x)
    assert got.dtype == torch.bfloat16 and got.shape == (2, 3, 5, 64)
    assert relative(got, linear(x)) < limit


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 16, 17, 445])
@pytest.mark.parametrize(("inputs", "outputs"), [(96, 64), (17, 5), (2048, 2560)])
def test_on_a_gpu_int8_gives_the_cpus_numbers(count: int, inputs: int, outputs: int) -> None:
    linear, x = layer(inputs, outputs), rows(count, inputs)
    expected = Int8Linear(linear)(x)
    torch.testing.assert_close(Int8Linear(linear.to(GPU))(x.to(GPU)).cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [Int8Linear, Fp8Linear])
def test_on_a_gpu_it_can_be_captured(kind: type[nn.Module]) -> None:
    if kind is Fp8Linear and (reason := obstacle("fp8", GPU)):
        pytest.skip(reason)
    module, x = kind(layer(128, 64).to(GPU, torch.bfloat16)), rows(445, 128).to(GPU, torch.bfloat16)
    with torch.inference_mode():
        expected = module(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = module(x)
        graph.replay()
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 17, 445])
@pytest.mark.parametrize(("inputs", "outputs"), [(96, 64), (2048, 2560)])
def test_on_a_gpu_fp8_gives_the_cpus_numbers(count: int, inputs: int, outputs: int) -> None:
    if reason := obstacle("fp8", GPU):
        pytest.skip(reason)
    linear, x = layer(inputs, outputs).bfloat16(), rows(count, inputs).bfloat16()
    got = Fp8Linear(linear.to(GPU))(x.to(GPU)).cpu()
    assert relative(got, Fp8Linear(linear.cpu())(x)) < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize(("bits", "limit"), [(8, 0.02), (4, 0.15)])
def test_on_a_gpu_bitsandbytes_computes_nearly_the_same(bits: Literal[8, 4], limit: float) -> None:
    pytest.importorskip("bitsandbytes")
    linear, x = layer(128, 64).to(GPU, torch.bfloat16), rows(20, 128).to(GPU, torch.bfloat16)
    with torch.inference_mode():
        assert relative(BitsAndBytesLinear(linear, bits)(x), linear(x)) < limit
