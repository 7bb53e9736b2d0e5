from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from control.clock import NS_PER_MS
from control.messages import Frames
from tests.vla.conftest import edit_yaml, frames, instruction
from vla import weights
from vla.assemble import EncoderOptions, load_encoder
from vla.encoder import QwenEncoder
from vla.errors import CameraError, DeviceFault, EncodeError, FileFault, NonFiniteFeatures, PromptError
from vla.policy_spec import HeadChoice, PolicySpec, PoolingChoice
from vla.preprocess import GREY
from vla.qwen import QwenBackbone


@pytest.fixture
def encoder(policy_folder: Path) -> QwenEncoder:
    return load_encoder(policy_folder, "cpu", encoder_epoch=42)


def test_features_carry_all_that_is_needed_to_judge_them(encoder: QwenEncoder) -> None:
    encoder.warm_up()
    first, second = (encoder.encode(frames(), instruction()) for _ in range(2))
    assert (first.seq, second.seq) == (1, 2)
    assert (first.frame_seq, first.frame_stamp_ns, first.session, first.instruction_id) == (7, 123, 9, 3)
    assert first.encoder_epoch == 42
    assert first.view_age_ms == {"front": 0.0, "wrist": 0.0}
    assert first.tokens.shape == (2, 32) and first.tokens.dtype == np.float32
    assert list(first.stage_ms) == ["preprocess", "vision", "prefix", "language", "aggregate"]
    assert list(second.stage_ms) == ["preprocess", "vision", "language", "aggregate"]
    assert 0 < sum(first.stage_ms.values()) <= first.encode_ms


def test_the_instruction_changes_the_features(encoder: QwenEncoder) -> None:
    red, blue = (encoder.encode(frames(), instruction(f"pick up the {colour} block")) for colour in ("red", "blue"))
    assert np.abs(red.tokens - blue.tokens).max() > 1e-4


def test_features_depend_on_nothing_that_was_encoded_before(encoder: QwenEncoder) -> None:
    before = encoder.encode(frames(1), instruction())
    for number in range(20):
        encoder.encode(frames(2), instruction(f"go to {number}"))
    np.testing.assert_array_equal(encoder.encode(frames(1), instruction()).tokens, before.tokens)


def test_cameras_are_read_in_the_policys_order_and_others_are_ignored(encoder: QwenEncoder) -> None:
    capture = frames()
    extra = {"side": np.zeros((10, 10, 3), dtype=np.uint8)}
    turned = Frames(7, 123, extra | dict(reversed(capture.images.items())))
    expected = encoder.encode(capture, instruction()).tokens
    np.testing.assert_array_equal(encoder.encode(turned, instruction()).tokens, expected)
    swapped = Frames(7, 123, {"front": capture.images["wrist"], "wrist": capture.images["front"]})
    assert not np.allclose(encoder.encode(swapped, instruction()).tokens, expected)


def test_a_missing_camera_is_named(encoder: QwenEncoder) -> None:
    with pytest.raises(CameraError, match="frame 7 lacks camera 'wrist'; it has front"):
        encoder.encode(frames(cameras=("front",)), instruction())


def test_a_camera_of_another_size_is_named_with_both_sizes(encoder: QwenEncoder) -> None:
    with pytest.raises(CameraError, match="camera 'front': expected 56x56x3 uint8 .*, got 112x112x3 uint8"):
        encoder.encode(frames(side=112), instruction())


def test_a_faulty_camera_is_refused_by_its_name(encoder: QwenEncoder) -> None:
    with pytest.raises(CameraError, match="frame 7: camera 'wrist' is black"):
        encoder.encode(replace(frames(), faults={"wrist": "is black"}), instruction())


@pytest.mark.parametrize("lost", [{}, {"wrist": "is black"}])
def test_an_optional_camera_that_fails_is_taken_to_see_grey(policy_folder: Path, lost: dict[str, str]) -> None:
    edit_yaml(policy_folder, optional_cameras=["wrist"])
    encoder = load_encoder(policy_folder, "cpu", encoder_epoch=42)
    grey = np.full_like(frames().images["wrist"], GREY)
    expected = encoder.encode(Frames(7, 123, frames().images | {"wrist": grey}), instruction()).tokens
    failing = replace(frames(), faults=lost, captured_ns={"wrist": 3}) if lost else frames(cameras=("front",))
    got = encoder.encode(failing, instruction())
    np.testing.assert_array_equal(got.tokens, expected)
    assert got.view_age_ms == {"front": 0.0, "wrist": 0.0}


def test_features_are_as_old_as_their_images(encoder: QwenEncoder) -> None:
    late = replace(frames(), stamp_ns=10**9, captured_ns={"front": 10**9 - 30 * NS_PER_MS, "wrist": 10**15})
    assert encoder.encode(late, instruction()).view_age_ms == {"front": 30.0, "wrist": 0.0}


def test_an_instruction_that_cannot_be_encoded_leaves_the_encoder_usable(encoder: QwenEncoder) -> None:
    with pytest.raises(PromptError):
        encoder.encode(frames(), instruction("<|image_pad|>"))
    assert encoder.encode(frames(), instruction()).seq == 1


def test_features_that_are_not_finite_never_come_out(encoder: QwenEncoder) -> None:
    with torch.no_grad():
        encoder._engine.backbone.language.norm.weight[3] = float("nan")
    with pytest.raises(NonFiniteFeatures, match="features are NaN or infinite for frame 7"):
        encoder.encode(frames(), instruction())


def test_views_of_different_sizes_come_back_in_the_policys_order(
    tmp_path: Path, write_policy: Callable[..., PolicySpec]
) -> None:
    sizes = {"a": (56, 56), "b": (112, 56), "c": (56, 56)}
    write_policy(tmp_path, cameras=sizes, pooling=PoolingChoice(), head=HeadChoice())
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for name, size in sizes.items()}
    together = load_encoder(tmp_path, "cpu", 1).encode(Frames(1, 1, images), instruction()).tokens
    for row, name in enumerate(sizes):
        write_policy(tmp_path, cameras={name: sizes[name]}, pooling=PoolingChoice(), head=HeadChoice())
        alone = load_encoder(tmp_path, "cpu", 1).encode(Frames(1, 1, images), instruction()).tokens
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5)


def test_any_camera_size_is_resized_to_the_policys_image_size(
    tmp_path: Path, write_policy: Callable[..., PolicySpec]
) -> None:
    write_policy(tmp_path, cameras={"a": (48, 64), "b": (90, 160)}, image_size=(56, 84))
    rng = np.random.default_rng(0)
    images = {
        "a": rng.integers(0, 256, (48, 64, 3), dtype=np.uint8),
        "b": rng.integers(0, 256, (90, 160, 3), dtype=np.uint8),
    }
    assert load_encoder(tmp_path, "cpu", 1).encode(Frames(1, 1, images), instruction()).tokens.shape == (2, 32)


def test_a_backbone_of_another_width_is_refused(policy_folder: Path) -> None:
    edit_yaml(policy_folder, width=64, geometry="tiny", pooling={}, head={})
    with pytest.raises(FileFault, match="policy.yaml says width 64, its backbone 'backbone' has 32"):
        load_encoder(policy_folder, "cpu", 1, random_weights=True)


def test_an_unknown_device_is_refused_with_the_alternatives(policy_folder: Path) -> None:
    with pytest.raises(ValueError, match="use 'cpu', 'cuda' or 'cuda:N'"):
        load_encoder(policy_folder, "meta", 1)


@pytest.mark.parametrize("name", ["gpu", "cpu:x"])
def test_a_device_that_is_no_device_is_refused(policy_folder: Path, name: str) -> None:
    with pytest.raises(DeviceFault, match=f"device '{name}' is unknown: use 'cpu', 'cuda' or 'cuda:N'"):
        load_encoder(policy_folder, name, 1)


def test_a_gpu_that_is_not_there_is_refused(policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceFault, match="device 'cuda:2' was asked for, but there are 2 CUDA GPUs"):
        load_encoder(policy_folder, "cuda:2", 1)


def test_a_gpu_without_room_is_a_device_fault(policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> QwenBackbone:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(weights, "load", full)
    with pytest.raises(DeviceFault, match="device 'cpu' has too little free memory for policy"):
        load_encoder(policy_folder, "cpu", 1)


@pytest.mark.gpu
def test_on_a_gpu_random_weights_of_the_published_size_give_features() -> None:
    folder = Path(__file__).resolve().parents[2] / "vla" / "policies" / "qwen2.5-vl-3b"
    encoder = load_encoder(folder, "cuda", 1, random_weights=True)
    images = {name: np.full((*size, 3), 128, dtype=np.uint8) for name, size in encoder.cameras.items()}
    tokens = encoder.encode(Frames(1, 1, images), instruction()).tokens
    assert tokens.shape == (5, 2048) and np.isfinite(tokens).all()


@pytest.mark.gpu
def test_on_a_gpu_the_shipped_policy_gives_the_features_of_the_cpu() -> None:
    folder = Path(__file__).resolve().parents[2] / "vla" / "policies" / "tabletop"
    rng = np.random.default_rng(0)
    on_cpu, on_gpu = load_encoder(folder, "cpu", 1), load_encoder(folder, "cuda", 1)
    images = {name: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for name, size in on_cpu.cameras.items()}
    expected, got = (one.encode(Frames(1, 1, images), instruction()).tokens.ravel() for one in (on_cpu, on_gpu))
    cosine = float(expected @ got / (np.linalg.norm(expected) * np.linalg.norm(got)))
    assert cosine > 0.999


def test_a_device_that_is_full_spoils_one_frame_and_not_the_encoder(
    encoder: QwenEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(encoder._engine, "pooled", full)
        with pytest.raises(EncodeError, match="too little free memory on 'cpu' for this instruction"):
            encoder.encode(frames(), instruction())
    assert encoder.encode(frames(), instruction()).seq == 1


def test_a_compiler_that_is_missing_is_said_before_anything_is_loaded(
    policy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(function: object) -> object:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", missing)
    with pytest.raises(DeviceFault, match="encoder.compile needs a working compiler .*no C.. compiler; use 'eager'"):
        load_encoder(policy_folder, "cpu", 1, options=EncoderOptions(compile_mode="default"))


def test_bitsandbytes_and_the_vision_tower_do_not_go_together(
    policy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vla.precision.obstacle", lambda precision, device: None)
    with pytest.raises(DeviceFault, match="with precision int8-bnb the vision tower stays in 16 bit"):
        load_encoder(policy_folder, "cpu", 1, options=EncoderOptions(precision="int8-bnb", quantise_vision=True))
