"""What a forward is said to cost: counts, memory, FLOPs, floor."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from tests.vla.conftest import CPU
from vla.bench_build import Models, prepare
from vla.bench_steps import Scene, Step
from vla.census import PeakMemory, held_mb, take_census
from vla.floor import Peaks, Work, floor_ms, measure_peaks, work
from vla.geometry import geometry_config
from vla.published import to_published
from vla.stock import StockEncoder, stock_model
from vla.tokenizer import build_tokenizer
from vla.weights import random_weights


def test_operators_are_counted_one_by_one() -> None:
    x = torch.ones(4, 4)
    assert take_census(lambda: (x + 1).relu() @ x).operators == 3


@pytest.mark.parametrize(
    ("reading", "name"),
    [
        (lambda x: x.sum().item(), "aten._local_scalar_dense.default"),
        (lambda x: bool(x.sum() > 1), "aten._local_scalar_dense.default"),
        (lambda x: x.nonzero(), "aten.nonzero.default"),
        (lambda x: x[x > 0], "aten.index.Tensor"),
        (lambda x: x.clone().index_put_((x > 0,), torch.tensor(1.0)), "aten.index_put_.default"),
        (lambda x: torch.repeat_interleave(x, torch.tensor([1, 2, 3, 4])), "aten.repeat_interleave.Tensor"),
        (lambda x: x.unique_consecutive(), "aten.unique_consecutive.default"),
        (lambda x: x.tolist(), "Tensor.tolist"),
        (lambda x: (x + 1).cpu(), "Tensor.cpu"),
        (lambda x: x.numpy(), "Tensor.numpy"),
    ],
)
def test_a_planted_read_of_the_device_is_found_and_named(reading, name) -> None:
    x = torch.arange(4.0)

    def forward() -> None:
        reading(x * 2)

    census = take_census(forward)
    assert census.host_reads == 1 and dict(census.reads) == {name: 1}


def test_places_that_are_known_are_no_reads() -> None:
    x, places = torch.arange(4.0), torch.tensor([3, 1])
    census = take_census(lambda: (x[places], x.index_copy(0, places, x[:2]), x.to(torch.bfloat16), x[1:].sum()))
    assert census.host_reads == 0 and census.operators > 3


def test_attention_calls_are_counted_however_they_are_computed() -> None:
    states = torch.randn(1, 2, 8, 16)
    mask = torch.zeros(8, 8)
    census = take_census(
        lambda: (
            F.scaled_dot_product_attention(states, states, states),
            F.scaled_dot_product_attention(states, states, states, attn_mask=mask),
            F.scaled_dot_product_attention(states, states, states, is_causal=True),
        )
    )
    assert census.attention_calls == 3


def test_the_peak_of_a_call_is_seen_after_it_is_freed() -> None:
    memory = PeakMemory(CPU)
    if not memory.can_measure:
        pytest.skip("this system does not let a process reset its peak memory")
    torch.ones(40 * 2**18).sum()  # a higher peak before
    memory.start()
    torch.ones(20 * 2**18).sum()  # 20 MiB
    added = memory.added_mb()
    assert added is not None and 18 < added < 30


def test_shared_weights_are_held_once() -> None:
    first = torch.nn.Linear(512, 1024, bias=False)
    second = torch.nn.Linear(512, 1024, bias=False)
    assert held_mb(torch.nn.Sequential(first, second)) == 4.0
    second.weight = first.weight
    assert held_mb(torch.nn.Sequential(first, second)) == 2.0


@pytest.mark.parametrize("size", [(112, 112), (364, 644)])
@pytest.mark.parametrize("layout", ["concatenated", "sequential", "batch"])
@pytest.mark.parametrize("geometry", ["tiny", "embedded"])
def test_flops_in_closed_form_are_those_that_torch_counts(geometry: str, layout: str, size: tuple[int, int]) -> None:
    tokenizer = build_tokenizer(["go"])
    backbone = random_weights(geometry, CPU, torch.float32)
    ids = StockEncoder.token_ids(tokenizer)
    model = stock_model(backbone.config, to_published(backbone), CPU, torch.float32, token_ids=ids)
    stock = StockEncoder(model, tokenizer, "go", ("front", "wrist"), size)
    images = torch.zeros(2, *size, 3, dtype=torch.uint8)
    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa_flop}  # torch's counter lacks it
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        stock.encode(images, layout)
    longest = max(stock.lengths(layout))  # padding is computed, too
    sequences = [(longest, longest)] * len(stock.lengths(layout))
    counted = counter.get_total_flops()  # with some releases of transformers rotary angles, too, are a product
    assert work(model.config, [size] * 2, sequences, temporal=2).flop == pytest.approx(counted, rel=1e-3)


def _sdpa_flop(query, key, value, *_, out_shape=None, **__) -> int:
    return sdpa_flop_count(query, key, value)


def test_the_3b_model_needs_four_tflop_for_five_views() -> None:
    five = work(geometry_config("3b"), [(224, 224)] * 5, [(89, 89)] * 5)
    assert five.flop / 1e12 == pytest.approx(4.14, abs=0.01)
    assert five.vision_weights + five.language_weights == pytest.approx(3.44e9, rel=0.01)


def test_kept_keys_and_an_early_exit_save_language_work_alone() -> None:
    config = geometry_config("mid")
    whole = work(config, [(224, 224)], [(89, 89)])
    kept = work(config, [(224, 224)], [(64, 89)])
    half = work(config, [(224, 224)], [(89, 89)], language_layers=6)
    assert kept.language_products == pytest.approx(whole.language_products * 64 / 89)
    assert kept.language_attention == pytest.approx(whole.language_attention * 64 / 89)
    assert half.language_products == whole.language_products / 2
    assert half.language_weights == whole.language_weights / 2
    assert kept.vision_products == half.vision_products == whole.vision_products


def test_the_floor_is_the_longer_of_computing_and_reading_the_weights() -> None:
    peaks = Peaks({"fp32": 1e12, "bf16": 2e12, "int8": 4e12}, bytes_per_s=1e12)
    done = Work(2e12, 2e12, 4e12, 2e12, vision_weights=1000, language_weights=1000)
    assert floor_ms(done, peaks, "fp32", "fp32") == pytest.approx(1000 * (2 + 2 + 4 + 2))
    assert floor_ms(done, peaks, "bf16", "bf16") == pytest.approx(1000 * (1 + 1 + 2 + 1))
    assert floor_ms(done, peaks, "bf16", "int8") == pytest.approx(1000 * (1 + 1 + 1 + 1))
    assert floor_ms(done, peaks, "bf16", "int4") == pytest.approx(1000 * (1 + 1 + 2 + 1))
    idle = Work(0.0, 0.0, 0.0, 0.0, vision_weights=10**9, language_weights=2 * 10**9)
    assert floor_ms(idle, peaks, "bf16", "int8") == pytest.approx(1000 * (2e9 + 2e9) / 1e12)
    assert floor_ms(idle, peaks, "bf16", "int4") == pytest.approx(1000 * (2e9 + 1e9) / 1e12)


def test_peaks_are_measured_where_the_machine_has_the_kernel() -> None:
    peaks = measure_peaks(CPU, ("bf16", "fp8"))
    assert set(peaks.flop_per_s) == {"bf16"}
    assert peaks.flop_per_s["bf16"] > 1e9 and peaks.bytes_per_s > 1e8


@pytest.mark.parametrize(("views", "size"), [((1, 3, 5), (112, 112)), ((2, 3, 5), (80, 300))])
def test_the_engine_reads_nothing_and_its_operators_do_not_grow_with_views(
    views: tuple[int, ...], size: tuple[int, int]
) -> None:
    models = Models("tiny", CPU)
    step = Step("prefix kept", "fp32")
    census = [take_census(prepare(step, Scene(count, *size), models).plain) for count in views]
    assert {count.host_reads for count in census} == {0}
    assert len({(count.operators, count.attention_calls) for count in census}) == 1
