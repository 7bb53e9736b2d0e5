from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.vla.conftest import CPU, SIDE
from tests.vla.outliers import spiked
from vla import smoothing, weights
from vla.errors import FileFault
from vla.precision import finisher, quantise
from vla.prompt import Prompt, Prompter
from vla.quantised import Int8Linear
from vla.qwen import QwenBackbone

Encode = Callable[[QwenBackbone], torch.Tensor]
ABOUT = {"policy_id": "abc", "alpha": 0.5, "frames": 3}


@pytest.fixture(scope="module")
def plain(tiny: QwenBackbone) -> QwenBackbone:
    """With biases, which random weights lack."""
    backbone = copy.deepcopy(tiny)
    torch.manual_seed(0)
    for name, parameter in backbone.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.3)
    return backbone


@pytest.fixture(scope="module")
def prompt(prompter: Prompter) -> Prompt:
    return prompter.prompt("pick up the red block", {"front": (SIDE, SIDE), "wrist": (SIDE, 2 * SIDE)})


@pytest.fixture(scope="module")
def encode(prompt: Prompt) -> Encode:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (1, count, 588), dtype=torch.uint8, generator=generator) for count in (16, 32)]

    def run(backbone: QwenBackbone) -> torch.Tensor:
        with torch.inference_mode():
            prefix = backbone.prefill(prompt)
            seen = [backbone.vision(part, group.size) for part, group in zip(images, prompt.groups, strict=True)]
            return backbone.language_hidden(seen, prefix)

    return run


@pytest.fixture(scope="module")
def factors(plain: QwenBackbone, encode: Encode) -> dict[str, torch.Tensor]:
    backbone = spiked(plain)
    return smoothing.calibrate(backbone, lambda: encode(backbone), vision=True)


def cosine(got: torch.Tensor, expected: torch.Tensor) -> float:
    return torch.cosine_similarity(got.float(), expected.float(), dim=-1).min().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_smoothing_changes_no_bit_of_what_the_model_computes(
    plain: QwenBackbone, encode: Encode, factors: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    backbone = spiked(plain).to(dtype)
    before = encode(backbone)
    weight = backbone.language.blocks[1].down.weight.clone()
    smoothing.apply(backbone, factors)
    assert not torch.equal(backbone.language.blocks[1].down.weight, weight)
    torch.testing.assert_close(encode(backbone), before, rtol=0, atol=0)


def test_outliers_break_int8_and_smoothing_repairs_it(
    plain: QwenBackbone, encode: Encode, factors: dict[str, torch.Tensor]
) -> None:
    expected = encode(plain)
    calm, broken, repaired = copy.deepcopy(plain), spiked(plain), spiked(plain)
    quantise(calm, "int8", vision=True)
    quantise(broken, "int8", vision=True)
    quantise(repaired, "int8", vision=True, factors=factors)
    assert cosine(encode(calm), expected) > 0.997
    assert cosine(encode(broken), expected) < 0.95
    assert cosine(encode(repaired), expected) > 0.997


def test_a_factor_is_a_power_of_two_near_the_papers_rule(plain: QwenBackbone, encode: Encode) -> None:
    seen: list[torch.Tensor] = []
    product = plain.language.blocks[0].gate_up
    hook = product.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].abs().amax(dim=0)))
    encode(plain)
    hook.remove()
    rule = torch.stack(seen).amax(dim=0).sqrt() / product.weight.abs().amax(dim=0).sqrt()
    got = smoothing.calibrate(plain, lambda: encode(plain))["language.blocks.0.gate_up"]
    assert torch.equal(got.log2().round().exp2(), got)
    assert not product._forward_pre_hooks
    apart = (got / rule).log2()
    assert apart.max() - apart.min() <= 1.0  # half a step either way, around a common shift


def test_alpha_says_how_much_of_an_outlier_moves_into_the_weights(plain: QwenBackbone, encode: Encode) -> None:
    backbone = copy.deepcopy(plain)
    with torch.no_grad():
        backbone.language.blocks[0].norm1.weight[3] *= 64
    moved = []
    for alpha in (0.25, 0.75):
        factor = smoothing.calibrate(backbone, lambda: encode(backbone), alpha=alpha)["language.blocks.0.qkv"]
        moved.append(float(factor[3] / factor.median()))
    assert moved[0] in (2.0, 4.0) and moved[1] in (16.0, 32.0)  # 64^0.25 = 2.8, 64^0.75 = 22.6


def test_padding_keeps_the_factor_one(plain: QwenBackbone, encode: Encode) -> None:
    backbone = copy.deepcopy(plain)
    inner = backbone.language.blocks[0].down.in_features
    with torch.no_grad():
        backbone.language.blocks[0].gate_up.weight[[inner - 1, 2 * inner - 1]] = 0
        backbone.language.blocks[0].down.weight[:, -1] = 0
    found = smoothing.calibrate(backbone, lambda: encode(backbone))
    assert found["language.blocks.0.down"][-1] == 1.0


def test_a_model_smoothed_while_it_loads_is_the_one_smoothed_whole(
    plain: QwenBackbone, encode: Encode, factors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    weights.save(spiked(plain), tmp_path, torch.float32)
    whole = weights.load(tmp_path, CPU, torch.float32)
    quantise(whole, "int8", vision=False, factors=factors)
    piecewise = weights.load(tmp_path, CPU, torch.float32, finisher("int8", False, factors))
    smoothing.fold_norms(piecewise, factors)
    assert type(piecewise.language.blocks[0].qkv) is Int8Linear
    torch.testing.assert_close(encode(piecewise), encode(whole), rtol=0, atol=0)


def test_a_model_with_fewer_layers_takes_the_same_factors(
    plain: QwenBackbone, encode: Encode, factors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    weights.save(spiked(plain), tmp_path, torch.float32)
    shorter = weights.load(tmp_path, CPU, torch.float32, layers=1)
    expected = encode(shorter)
    smoothing.apply(shorter, factors)
    torch.testing.assert_close(encode(shorter), expected, rtol=0, atol=0)


def test_calibration_refuses_what_it_cannot_look_at(plain: QwenBackbone, encode: Encode) -> None:
    with pytest.raises(ValueError, match="calibration saw nothing of 'language.blocks.0.qkv': no frames, or"):
        smoothing.calibrate(plain, lambda: None)
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1, got 1.5"):
        smoothing.calibrate(plain, lambda: None, alpha=1.5)
    quantised = copy.deepcopy(plain)
    quantise(quantised, "int8", vision=False)
    with pytest.raises(ValueError, match="'language.blocks.0.qkv' is quantised: use fp32 or bf16"):
        smoothing.calibrate(quantised, lambda: encode(quantised))
    damaged = copy.deepcopy(plain)
    with torch.no_grad():
        damaged.language.blocks[1].norm2.weight[0] = float("nan")
    with pytest.raises(ValueError, match="input of 'language.blocks.1.gate_up' holds NaN or infinity"):
        smoothing.calibrate(damaged, lambda: encode(damaged))


def test_factors_survive_their_file(plain: QwenBackbone, factors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    smoothing.save(tmp_path / "factors", factors, "abc", 0.5, 3)
    loaded = smoothing.load(tmp_path / "factors", "abc", plain.config, vision=True)
    assert set(loaded) == set(factors) and len(loaded) == 3 * 4 + 1
    assert all(torch.equal(loaded[name], factors[name]) for name in factors)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"policy_id": "abd"}, "was calibrated for policy 'abd', this one is 'abc': calibrate again"),
        ({"format": "x"}, "expected 'smoothing 1' in its header, got 'x': another kind of file"),
        ({"language.blocks.0.down": None}, "factors of 'language.blocks.0.down' are missing"),
        ({"visual.merger.up": None}, "factors of 'visual.merger.up' are missing: likely calibrated without the vision"),
        ({"language.blocks.2.down": torch.ones(64)}, "unexpected factors 'language.blocks.2.down'"),
        (
            {"language.blocks.1.qkv": torch.ones(16)},
            r"'language.blocks.1.qkv' expected 32 float32 factors, got \(16,\)",
        ),
        ({"language.blocks.1.qkv": torch.ones(32).half()}, "expected 32 float32 factors, got .* torch.float16"),
        ({"language.blocks.1.qkv": torch.zeros(32)}, "'language.blocks.1.qkv' holds a factor that is not positive"),
        ({"language.blocks.1.qkv": torch.full((32,), float("inf"))}, "not positive and finite: damaged file"),
    ],
)
def test_factors_of_another_model_are_refused(
    plain: QwenBackbone,
    factors: dict[str, torch.Tensor],
    tmp_path: Path,
    change: dict[str, str | torch.Tensor | None],
    problem: str,
) -> None:
    smoothing.save(tmp_path / "factors", factors, "abc", 0.5, 3)
    tensors, about = load_file(tmp_path / "factors"), {"format": "smoothing 1", "policy_id": "abc"}
    for name, value in change.items():
        if isinstance(value, str):
            about[name] = value
        elif value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, tmp_path / "factors", metadata=about)
    with pytest.raises(FileFault, match=problem):
        smoothing.load(tmp_path / "factors", "abc", plain.config, vision=True)


def test_a_missing_or_torn_file_is_named(plain: QwenBackbone, tmp_path: Path) -> None:
    with pytest.raises(FileFault, match="none is missing: expected the factors that `launch.py bench calibrate`"):
        smoothing.load(tmp_path / "none", "abc", plain.config)
    (tmp_path / "torn").write_bytes(b"\x00" * 20)
    with pytest.raises(FileFault, match="torn: not a complete safetensors file"):
        smoothing.load(tmp_path / "torn", "abc", plain.config)


def test_factors_for_the_first_layers_are_enough_for_them(
    plain: QwenBackbone, factors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    first = {name: factor for name, factor in factors.items() if name.startswith("language.blocks.0")}
    smoothing.save(tmp_path / "factors", first, "abc", 0.5, 3)
    assert len(smoothing.load(tmp_path / "factors", "abc", plain.config, layers=1)) == 3
    with pytest.raises(FileFault, match="factors of 'language.blocks.1.qkv' are missing"):
        smoothing.load(tmp_path / "factors", "abc", plain.config)
