from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from control.messages import Frames
from tests.vla.conftest import frames, instruction
from vla.assemble import EncoderOptions, load_encoder
from vla.encoder import QwenEncoder
from vla.reuse import largest_change

MS = 1_000_000


@pytest.fixture
def reusing(policy_folder: Path) -> QwenEncoder:
    options = EncoderOptions(reuse_views=("front",), reuse_max_age_ms=100.0)
    return load_encoder(policy_folder, "cpu", 1, options=options)


def later(ms: float, seed: int = 0, **changed: np.ndarray) -> Frames:
    return Frames(seq=8, stamp_ns=round(ms * MS), images=frames(seed).images | changed)


def test_an_unchanged_view_is_used_again_at_its_true_age(reusing: QwenEncoder) -> None:
    first = reusing.encode(later(0), instruction())
    again = reusing.encode(later(40), instruction())
    assert first.view_age_ms == {"front": 0.0, "wrist": 0.0}
    assert again.view_age_ms == {"front": 40.0, "wrist": 0.0}
    np.testing.assert_allclose(again.tokens, first.tokens, atol=1e-5)


def test_the_other_view_is_always_new(reusing: QwenEncoder, policy_folder: Path) -> None:
    moved = {"wrist": frames(5).images["wrist"]}
    reusing.encode(later(0), instruction())
    got = reusing.encode(later(40, **moved), instruction())
    plain = load_encoder(policy_folder, "cpu", 1).encode(later(40, **moved), instruction())
    np.testing.assert_allclose(got.tokens, plain.tokens, atol=1e-5)


@pytest.mark.parametrize(
    ("ms", "seed", "number"), [(101, 0, 3), (40, 5, 3), (40, 0, 4), (-10, 0, 3)],
    ids=["too old", "changed", "another instruction", "the clock of another host"],
)  # fmt: skip
def test_a_view_is_encoded_anew_when(reusing: QwenEncoder, ms: float, seed: int, number: int) -> None:
    reusing.encode(later(0), instruction())
    assert reusing.encode(later(ms, seed), instruction(number=number)).view_age_ms["front"] == 0.0


def test_nothing_is_used_again_unless_it_is_named(policy_folder: Path) -> None:
    encoder = load_encoder(policy_folder, "cpu", 1)
    encoder.encode(later(0), instruction())
    assert encoder.encode(later(40), instruction()).view_age_ms == {"front": 0.0, "wrist": 0.0}


def test_slow_drift_is_measured_from_what_was_encoded(policy_folder: Path) -> None:
    encoder = load_encoder(policy_folder, "cpu", 1, options=EncoderOptions(reuse_views=("front",)))
    grey = np.full((56, 56, 3), 100, dtype=np.uint8)
    ages = [
        encoder.encode(later(10 * step, front=grey + step), instruction()).view_age_ms["front"] for step in range(6)
    ]
    assert ages == [0.0, 10.0, 20.0, 0.0, 10.0, 20.0]


def test_all_views_used_again_need_no_encode(policy_folder: Path) -> None:
    encoder = load_encoder(policy_folder, "cpu", 1, options=EncoderOptions(reuse_views=("front", "wrist")))
    first = encoder.encode(later(0), instruction())
    again = encoder.encode(later(50), instruction())
    assert again.view_age_ms == {"front": 50.0, "wrist": 50.0}
    assert list(again.stage_ms) == ["aggregate"] and np.array_equal(first.tokens, again.tokens)


def test_named_views_are_used_again_together_or_not_at_all(policy_folder: Path) -> None:
    encoder = load_encoder(policy_folder, "cpu", 1, options=EncoderOptions(reuse_views=("front", "wrist")))
    encoder.encode(later(0), instruction())
    moved = encoder.encode(later(40, wrist=frames(5).images["wrist"]), instruction())
    assert moved.view_age_ms == {"front": 0.0, "wrist": 0.0}


def test_one_small_thing_that_moves_is_a_change() -> None:
    before = np.full((112, 112, 3), 90, dtype=np.uint8)
    after = before.copy()
    after[60:70, 60:70] = 200
    assert largest_change(before, before) == 0.0
    assert largest_change(before, after) == pytest.approx(110 * 100 / 28**2)
    assert np.abs(after.astype(int) - before).mean() < 1.0


def test_tiles_at_the_border_count_by_their_own_size() -> None:
    before, after = np.zeros((30, 30, 3), dtype=np.uint8), np.zeros((30, 30, 3), dtype=np.uint8)
    after[28:, 28:] = 10
    assert largest_change(before, after) == 10.0


@pytest.mark.parametrize("options", [{"reuse_views": ("top",)}])
def test_a_camera_the_policy_has_not_is_refused(policy_folder: Path, options: dict) -> None:
    from vla.errors import DeviceFault

    with pytest.raises(DeviceFault, match=r"encoder.reuse_views names \['top'\], the policy's cameras are"):
        load_encoder(policy_folder, "cpu", 1, options=EncoderOptions(**options))


def test_a_held_policy_may_look_through_fewer_cameras_at_another_size(
    tmp_path: Path, write_policy: Callable[..., object]
) -> None:
    from vla.policy_spec import HeadChoice, PoolingChoice

    write_policy(tmp_path, head=HeadChoice(kind="hold"), pooling=PoolingChoice(view="mean"))
    options = EncoderOptions(cameras=("wrist",), image_size=(28, 28), language_layers=1)
    encoder = load_encoder(tmp_path, "cpu", 1, options=options)
    assert encoder.encode(frames(), instruction()).tokens.shape == (1, 32)
    assert list(encoder.cameras) == ["wrist"]


@pytest.mark.parametrize(
    "options", [{"cameras": ("wrist",)}, {"image_size": (28, 28)}, {"language_layers": 1}], ids=lambda o: next(iter(o))
)
def test_a_trained_head_meets_no_features_it_never_saw(policy_folder: Path, options: dict) -> None:
    from vla.errors import FileFault

    name = next(iter(options))
    with pytest.raises(FileFault, match=f"encoder.{name} differs from what policy 'tiny' was trained with"):
        load_encoder(policy_folder, "cpu", 1, options=EncoderOptions(**options))
