from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.vla.conftest import CPU
from tests.vla.test_qwen import SIZES, cameras_of
from vla import weights
from vla.engine import Engine
from vla.errors import FileFault
from vla.pooling import ViewPooling
from vla.preprocess import patches
from vla.prompt import Prompt, Prompter
from vla.qwen import QwenBackbone

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs a C++ compiler")


def captures(prompt: Prompt, seed: int = 0) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randint(0, 256, (len(group.rows), *group.size, 3), dtype=torch.uint8, generator=generator)]
        for group in prompt.groups
    ]


def run(engine: Engine, images: list[list[torch.Tensor]], prompt: Prompt) -> torch.Tensor:
    with torch.inference_mode():
        prefix, _ = engine.prefix(prompt)
        return engine.pooled(engine.vision(images, prompt), prompt, prefix).clone()


def plain(backbone: QwenBackbone, pool: ViewPooling, images: list[list[torch.Tensor]], prompt: Prompt) -> torch.Tensor:
    """Whole rows through the whole model, then pooled: what the engine must equal."""
    with torch.inference_mode():
        hidden = backbone([patches(parts[0]) for parts in images], prompt)
        pooled = torch.cat([pool(tokens) for tokens in backbone.image_hidden(hidden, prompt)])
        return pooled[prompt.view_order]


@pytest.mark.parametrize("geometry", ["tiny", "embedded"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_kept_prefixes_give_the_features_of_the_full_forward(
    prompter: Prompter, geometry: str, sizes: list[tuple[int, int]]
) -> None:
    backbone = weights.random_weights(geometry, CPU, torch.float32)
    engine = Engine(backbone, ViewPooling("mean", backbone.width))
    for text in ("pick up the red block", "go"):
        prompt = prompter.prompt(text, cameras_of(sizes))
        images = captures(prompt)
        expected = plain(backbone, engine.pool, images, prompt)
        for _ in range(2):
            torch.testing.assert_close(run(engine, images, prompt), expected, atol=1e-5, rtol=1e-4)


def test_a_prefix_is_computed_once_an_instruction(tiny: QwenBackbone, prompter: Prompter) -> None:
    engine = Engine(tiny, ViewPooling("mean", 32))
    first, second = (prompter.prompt(text, {"a": (56, 56)}) for text in ("go", "stay"))
    with torch.inference_mode():
        assert [engine.prefix(prompt)[1] for prompt in (first, first, second, first)] == [True, False, True, False]


def test_an_encode_never_changes_the_kept_prefix(tiny: QwenBackbone, prompter: Prompter) -> None:
    engine, prompt = Engine(tiny, ViewPooling("mean", 32)), prompter.prompt("go", {"a": (56, 56), "bb": (28, 56)})
    with torch.inference_mode():
        prefix, _ = engine.prefix(prompt)
        before = [tensor.clone() for tensor in prefix.tensors]
        run(engine, captures(prompt), prompt)
        assert all(torch.equal(old, new) for old, new in zip(before, prefix.tensors, strict=True))


@needs_compiler
@pytest.mark.timeout(300)
def test_both_graphs_compile_whole_and_give_the_same_numbers(tiny: QwenBackbone, prompter: Prompter) -> None:
    pool = ViewPooling("mean", 32)
    compiled = Engine(tiny, pool, compile_mode="default")  # fullgraph: a graph break would raise
    prompt = prompter.prompt("go to the red block", cameras_of(SIZES["not square, border windows"]))
    images = captures(prompt)
    torch.testing.assert_close(run(compiled, images, prompt), plain(tiny, pool, images, prompt), atol=1e-5, rtol=1e-4)
    assert compiled.captures == 2
    other = prompter.prompt("go to the cyan block", cameras_of(SIZES["not square, border windows"]))
    torch.testing.assert_close(run(compiled, images, other), plain(tiny, pool, images, other), atol=1e-5, rtol=1e-4)
    assert compiled.captures == 2, "an instruction of about the same length needs no new graph"


class HostReads(TorchDispatchMode):
    """Counts what reads a number back from the device, or has a shape that depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.operators, self.reads = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def] # noqa: ANN001
        self.operators += 1
        self.reads += str(function).startswith(("aten._local_scalar_dense", "aten.nonzero", "aten.masked_s"))
        return function(*args, **(kwargs or {}))


class ToLists(TorchFunctionMode):
    """Counts the reads that no dispatcher sees on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def] # noqa: ANN001
        self.count += function in (torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.__bool__, torch.Tensor.numpy)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("views", [1, 3, 5])
def test_an_encode_reads_nothing_back_and_has_as_many_operators_for_any_number_of_views(
    tiny: QwenBackbone, prompter: Prompter, views: int
) -> None:
    engine = Engine(tiny, ViewPooling("mean", 32))
    counts = []
    for number in (views, 2):
        prompt = prompter.prompt("go", {f"c{index}": (112, 112) for index in range(number)})
        images = captures(prompt)
        run(engine, images, prompt)
        with HostReads() as seen, ToLists() as lists:
            run(engine, images, prompt)
        assert seen.reads == lists.count == 0
        counts.append(seen.operators)
    assert counts[0] == counts[1] > 50


def test_a_cuda_graph_needs_a_gpu(tiny: QwenBackbone) -> None:
    with pytest.raises(ValueError, match="cuda_graph needs a CUDA GPU, the device is 'cpu'"):
        Engine(tiny, ViewPooling("mean", 32), cuda_graph=True)


def test_fewer_language_layers_are_the_first_ones(prompter: Prompter, tiny: QwenBackbone, tmp_path: Path) -> None:
    weights.save(tiny, tmp_path, torch.float32)
    short = weights.load(tmp_path, CPU, torch.float32, layers=1)
    assert len(short.language.blocks) == 1
    prompt = prompter.prompt("go", {"a": (56, 56)})
    cut = copy.deepcopy(tiny)
    cut.language.blocks = cut.language.blocks[:1]
    with torch.inference_mode():
        whole, early, expected = (
            model([patches(parts[0]) for parts in captures(prompt)], prompt) for model in (tiny, short, cut)
        )
    assert torch.equal(early, expected) and not torch.allclose(whole, early)
    with pytest.raises(FileFault, match="language_layers: expected 1 to 2 for this model, got 3"):
        weights.load(tmp_path, CPU, torch.float32, layers=3)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{"cuda_graph": True}, {"compile_mode": "default", "cuda_graph": True}])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_on_a_gpu_a_captured_graph_gives_the_numbers_of_the_plain_way(
    prompter: Prompter, options: dict, sizes: list[tuple[int, int]]
) -> None:
    device = torch.device("cuda")
    backbone = weights.random_weights("embedded", device, torch.float32)
    pool = ViewPooling("mean", backbone.width)
    engine = Engine(backbone, pool, **options)
    graphs: list[int] = []
    for text in ("go", "stay", "go", "put the red block beside the blue block and then wait for me " * 3):
        prompt = prompter.prompt(text, cameras_of(sizes)).to(device)
        for seed in range(2):
            images = [[part.to(device) for part in parts] for parts in captures(prompt, seed)]
            expected = plain(backbone, pool, images, prompt)
            torch.testing.assert_close(run(engine, images, prompt), expected, atol=2e-4, rtol=1e-3)
        graphs.append(engine.captures)
    assert graphs == [2, 2, 2, 3]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["varlen", "flash_attention_2"])
def test_on_a_gpu_every_attention_backend_gives_the_same_features(prompter: Prompter, backend: str) -> None:
    from vla import attention

    device = torch.device("cuda")
    if problem := attention.obstacle(backend, device, torch.bfloat16):  # type: ignore[arg-type]
        pytest.skip(problem)
    backbone = weights.random_weights("embedded", device, torch.bfloat16)
    pool: Callable = ViewPooling("mean", backbone.width)
    for sizes in SIZES.values():
        prompt = prompter.prompt("go", cameras_of(sizes)).to(device)
        images = [[part.to(device) for part in parts] for parts in captures(prompt)]
        found = []
        for name in ("sdpa", backend):
            backbone.attention = attention.Attention(name)  # type: ignore[arg-type]
            found.append(run(Engine(backbone, pool), images, prompt).flatten())
        assert torch.nn.functional.cosine_similarity(found[0], found[1], dim=0) > 0.999
