"""What every ActionHead promises, run over every implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from control.head import ActionHead
from vla.policy import load_head
from vla.policy_spec import load_spec


@pytest.fixture(params=["regression", "hold"])
def head(request: pytest.FixtureRequest, policy_folder: Path) -> ActionHead:
    return load_head(policy_folder, random_weights=request.param == "hold")


@pytest.fixture
def tokens(policy_folder: Path) -> np.ndarray:
    spec = load_spec(policy_folder)
    return np.random.default_rng(0).normal(size=(spec.tokens, spec.width)).astype(np.float32)


def state_of(head: ActionHead) -> np.ndarray:
    return np.random.default_rng(1).normal(size=len(head.state_names))


def test_it_is_an_action_head(head: ActionHead) -> None:
    assert isinstance(head, ActionHead)
    assert head.policy_id and head.horizon >= 1 and head.period_s > 0


@pytest.mark.parametrize("age_ms", [0.0, 150.0, 5000.0])
def test_a_chunk_is_finite_float64_of_the_declared_shape(head: ActionHead, tokens: np.ndarray, age_ms: float) -> None:
    chunk = head.act(tokens, state_of(head), age_ms)
    assert chunk.shape == (head.horizon, len(head.action_names)) and chunk.dtype == np.float64
    assert np.isfinite(chunk).all()


def test_the_same_input_gives_the_same_chunk(head: ActionHead, tokens: np.ndarray) -> None:
    state = state_of(head)
    np.testing.assert_array_equal(head.act(tokens, state, 100.0), head.act(tokens, state, 100.0))


def test_the_callers_arrays_are_left_alone(head: ActionHead, tokens: np.ndarray) -> None:
    state = state_of(head)
    tokens.flags.writeable = state.flags.writeable = False
    before = tokens.copy(), state.copy()
    chunk = head.act(tokens, state, 100.0)
    chunk += 1.0
    np.testing.assert_array_equal(tokens, before[0])
    np.testing.assert_array_equal(state, before[1])


def test_a_state_of_another_length_is_refused(head: ActionHead, tokens: np.ndarray) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        head.act(tokens, np.zeros(len(head.state_names) + 1), 100.0)
