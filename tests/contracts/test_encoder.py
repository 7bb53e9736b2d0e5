"""What every Encoder promises, run over every implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from control.messages import Frames, Instruction
from vla.assemble import load_encoder
from vla.encoder import Encoder
from vla.errors import EncodeError


@pytest.fixture(params=["trained", "random weights"])
def encoder(request: pytest.FixtureRequest, policy_folder: Path) -> Encoder:
    return load_encoder(policy_folder, "cpu", encoder_epoch=5, random_weights=request.param == "random weights")


def capture(encoder: Encoder, seq: int = 1) -> Frames:
    rng = np.random.default_rng(seq)
    images = {name: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for name, size in encoder.cameras.items()}
    return Frames(seq, 1000 + seq, images, published_ns=2000 + seq)


def ask(number: int = 1, text: str = "pick up the red block") -> Instruction:
    return Instruction(1, 1, session=8, id=number, text=text)


def test_it_is_an_encoder(encoder: Encoder) -> None:
    assert isinstance(encoder, Encoder)
    assert encoder.policy_id
    encoder.warm_up()


def test_features_are_finite_float32_of_one_shape_and_labelled(encoder: Encoder) -> None:
    shapes = set()
    for number in (1, 2):
        features = encoder.encode(capture(encoder, number), ask(number))
        shapes.add(features.tokens.shape)
        assert features.tokens.dtype == np.float32 and features.tokens.ndim == 2
        assert np.isfinite(features.tokens).all()
        assert (features.frame_seq, features.frame_stamp_ns) == (number, 1000 + number)
        assert features.frame_published_ns == 2000 + number
        assert (features.session, features.instruction_id) == (8, number)
        assert (features.encoder_epoch, features.policy_id, features.seq) == (5, encoder.policy_id, number)
        assert set(features.view_age_ms) == set(encoder.cameras)
        assert features.encode_ms > 0
    assert len(shapes) == 1


def test_the_same_input_gives_the_same_features(encoder: Encoder) -> None:
    first, second = (encoder.encode(capture(encoder), ask()).tokens for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_frames_it_cannot_use_are_an_encode_error_and_the_next_ones_work(encoder: Encoder) -> None:
    with pytest.raises(EncodeError):
        encoder.encode(Frames(1, 1, {}), ask())
    assert encoder.encode(capture(encoder), ask()).seq == 1


def test_it_keeps_no_frame_and_changes_none(encoder: Encoder) -> None:
    frames = capture(encoder)
    copies = {name: image.copy() for name, image in frames.images.items()}
    for image in frames.images.values():
        image.flags.writeable = False
    before = encoder.encode(frames, ask()).tokens
    encoder.encode(capture(encoder, 2), ask())
    np.testing.assert_array_equal(encoder.encode(frames, ask()).tokens, before)
    for name, image in frames.images.items():
        np.testing.assert_array_equal(image, copies[name])
