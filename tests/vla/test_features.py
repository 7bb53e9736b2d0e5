"""Features that are kept: which samples are drawn from them, and that they are the encoder's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from control.messages import Frames
from tests.vla.conftest import edit_yaml, frames, instruction
from vla.assemble import load_encoder
from vla.errors import TrainingFault
from vla.policy import load_part, view_aggregation, view_pooling
from vla.policy_spec import PolicySpec, load_spec
from vla.training.features import BatchEncoder, FeatureSet


def kept(frames_: int = 4, ticks_a_frame: int = 2, seed: int = 0) -> FeatureSet:
    """One episode: a frame every 100 ms, a tick every 50 ms; the first state value is the tick's time in s."""
    rng = np.random.default_rng(seed)
    ticks = frames_ * ticks_a_frame
    stamps = np.arange(ticks) * 50.0
    states = rng.normal(size=(ticks, 3)).astype(np.float32)
    states[:, 0] = stamps / 1000
    first = np.arange(frames_) * ticks_a_frame
    return FeatureSet(
        rng.normal(size=(frames_, 2, 8)).astype(np.float16),
        first,
        np.full(frames_, ticks - 1),
        np.concatenate([stamps[first], stamps]),
        states,
        rng.normal(size=(ticks, 4, 3)).astype(np.float32),
    )


def test_a_sample_is_a_frame_and_a_tick_of_its_episode_that_is_not_too_late() -> None:
    joined = FeatureSet.joined([kept(20, seed=1), kept(30, seed=2)])
    drawn = joined.draw(np.random.default_rng(0), 4000, max_age_ms=400.0)
    ages = drawn["age_ms"].numpy()
    assert ages.min() == 0.0 and ages.max() == 400.0
    assert set(np.unique(ages)) == {50.0 * step for step in range(9)}
    # The tick's own time less its frame's is the age: so state and frame are of one episode.
    matches = (drawn["tokens"].numpy()[:, None] == joined.tokens[None].astype(np.float32)).all(axis=(2, 3))
    frame_s = joined.stamp_ms[matches.argmax(axis=1)] / 1000
    np.testing.assert_allclose(drawn["states"][:, 0].numpy() - frame_s, ages / 1000, atol=1e-6)


def test_every_age_is_about_as_likely() -> None:
    drawn = kept(200).draw(np.random.default_rng(0), 20000, max_age_ms=400.0)
    _, counts = np.unique(drawn["age_ms"].numpy(), return_counts=True)
    assert counts.min() > 0.8 * counts.mean()


def test_features_survive_the_disk(tmp_path: Path) -> None:
    kept(5).save(tmp_path / "a.safetensors")
    again = FeatureSet.load(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(again.tokens, kept(5).tokens)
    np.testing.assert_array_equal(again.targets, kept(5).targets)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_damaged_file_and_nan_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"no")
    with pytest.raises(TrainingFault, match=r"a.safetensors: no features to train on .*remove it, it is made again"):
        FeatureSet.load(tmp_path / "a.safetensors")
    spoiled = kept()
    spoiled.states[0, 0] = np.nan
    with pytest.raises(TrainingFault, match="hold NaN or infinity in their states"):
        FeatureSet.joined([spoiled])
    with pytest.raises(TrainingFault, match="no features"):
        FeatureSet.joined([])


def test_features_of_other_shapes_are_not_mixed() -> None:
    other = kept()
    wider = FeatureSet(
        np.zeros((4, 2, 16), np.float16), other.frame_tick, other.last_tick, other.stamp_ms, other.states, other.targets
    )
    with pytest.raises(TrainingFault, match="features of 2 kinds cannot be joined"):
        FeatureSet.joined([other, wider])


@pytest.mark.parametrize("layers", [None, 1])
def test_features_in_batches_are_those_of_the_running_encoder(policy_folder: Path, layers: int | None) -> None:
    edit_yaml(policy_folder, language_layers=layers)
    spec = load_spec(policy_folder)
    captured = [frames(seed) for seed in range(3)]
    texts = ["pick up the red block", "go to the blue block", "pick up the red block"]
    images = {name: np.stack([one.images[name] for one in captured]) for name in spec.cameras}
    together = BatchEncoder(policy_folder, spec).features(images, texts)
    running = load_encoder(policy_folder, "cpu", 1)
    for i in range(3):
        np.testing.assert_allclose(together[i], running.encode(captured[i], instruction(texts[i])).tokens, atol=2e-5)


@pytest.mark.parametrize(
    ("pooling", "image_size"), [({"view": "mean"}, None), ({"view": "attention", "queries": 2}, (56, 56))]
)
def test_features_of_cameras_of_several_sizes_are_those_of_the_running_encoder(
    tmp_path: Path, write_policy: Callable[..., PolicySpec], pooling: dict[str, object], image_size: object
) -> None:
    cameras = {"front": (56, 56), "left": (84, 112), "wrist": (56, 56)}
    spec = write_policy(tmp_path, cameras=cameras, pooling=pooling, image_size=image_size)
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (3, *size, 3), dtype=np.uint8) for name, size in cameras.items()}
    texts = ["pick up the red block", "go to the blue block", "pick up the red block"]
    together = BatchEncoder(tmp_path, spec).features(images, texts)
    running = load_encoder(tmp_path, "cpu", 1)
    for i in range(3):
        captured = Frames(seq=7, stamp_ns=123, images={name: of_camera[i] for name, of_camera in images.items()})
        np.testing.assert_allclose(together[i], running.encode(captured, instruction(texts[i])).tokens, atol=2e-5)


def test_a_pooling_to_be_trained_on_cameras_of_several_sizes_is_refused_by_name_and_size(
    tmp_path: Path, write_policy: Callable[..., PolicySpec]
) -> None:
    cameras = {"front": (56, 56), "left": (84, 112)}
    spec = write_policy(tmp_path, cameras=cameras, pooling={"view": "mean", "aggregation": "attention"})
    with pytest.raises(TrainingFault, match=r"got front 56x56, left 84x112: set image_size in the policy"):
        BatchEncoder(tmp_path, spec, pooled=False)


def test_image_tokens_pooled_later_are_the_same_features(policy_folder: Path) -> None:
    import torch

    spec = load_spec(policy_folder)
    images = {name: frames(1).images[name][None] for name in spec.cameras}
    tokens = BatchEncoder(policy_folder, spec, pooled=False).features(images, ["go to the red block"])
    assert tokens.shape == (1, 2, 4, 32)
    pool, aggregate = view_pooling(spec), view_aggregation(spec)
    load_part(policy_folder, "pool", pool)
    load_part(policy_folder, "aggregate", aggregate)
    pooled = aggregate(pool(torch.from_numpy(tokens))).detach().numpy()
    whole = BatchEncoder(policy_folder, spec).features(images, ["go to the red block"])
    np.testing.assert_allclose(pooled, whole, atol=1e-6)
