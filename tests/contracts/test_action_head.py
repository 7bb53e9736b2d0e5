"""What every ActionHead promises, run over every implementation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from control.head import ActionHead
from vla.policy import load_head
from vla.policy_spec import PolicySpec, load_spec

HEADS = {
    "regression": {},
    "flow-matching": {"head": {"kind": "flow-matching", "hidden": 16}},
    "regression, window": {"window": {"samples": 8, "rate_hz": 100.0}},
    "flow-matching, window": {
        "head": {"kind": "flow-matching", "hidden": 16, "steps": 2},
        "window": {"samples": 8, "rate_hz": 100.0},
    },
    "hold": {},
}


@pytest.fixture(params=HEADS)
def folder(request: pytest.FixtureRequest, tmp_path: Path, write_policy: Callable[..., PolicySpec]) -> Path:
    write_policy(tmp_path, **HEADS[request.param])
    return tmp_path


@pytest.fixture
def head(request: pytest.FixtureRequest, folder: Path) -> ActionHead:
    return load_head(folder, random_weights=request.node.callspec.params["folder"] == "hold")


@pytest.fixture
def tokens(folder: Path) -> np.ndarray:
    spec = load_spec(folder)
    return np.random.default_rng(0).normal(size=(spec.tokens, spec.width)).astype(np.float32)


def state_of(head: ActionHead) -> np.ndarray:
    return np.random.default_rng(1).normal(size=len(head.state_names))


def window_of(head: ActionHead) -> np.ndarray | None:
    shape = (head.window_samples, len(head.state_names))
    return np.random.default_rng(2).normal(size=shape) if head.window_samples else None


def test_it_is_an_action_head(head: ActionHead) -> None:
    assert isinstance(head, ActionHead)
    assert head.policy_id and head.horizon >= 1 and head.period_s > 0


@pytest.mark.parametrize("age_ms", [0.0, 150.0, 5000.0])
def test_a_chunk_is_finite_float64_of_the_declared_shape(head: ActionHead, tokens: np.ndarray, age_ms: float) -> None:
    chunk = head.act(tokens, state_of(head), age_ms, window_of(head))
    assert chunk.shape == (head.horizon, len(head.action_names)) and chunk.dtype == np.float64
    assert np.isfinite(chunk).all()


def test_the_same_input_gives_the_same_chunk(head: ActionHead, tokens: np.ndarray) -> None:
    state, window = state_of(head), window_of(head)
    np.testing.assert_array_equal(head.act(tokens, state, 100.0, window), head.act(tokens, state, 100.0, window))


def test_the_callers_arrays_are_left_alone(head: ActionHead, tokens: np.ndarray) -> None:
    state, window = state_of(head), window_of(head)
    tokens.flags.writeable = state.flags.writeable = False
    before = tokens.copy(), state.copy()
    if window is not None:
        window.flags.writeable = False
    chunk = head.act(tokens, state, 100.0, window)
    chunk += 1.0
    np.testing.assert_array_equal(tokens, before[0])
    np.testing.assert_array_equal(state, before[1])


def test_a_state_of_another_length_is_refused(head: ActionHead, tokens: np.ndarray) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        head.act(tokens, np.zeros(len(head.state_names) + 1), 100.0, window_of(head))


def test_a_window_is_needed_where_it_is_declared_and_ignored_where_not(head: ActionHead, tokens: np.ndarray) -> None:
    state = state_of(head)
    if head.window_samples:
        with pytest.raises(ValueError, match="needs a window of the last 8 states, got none"):
            head.act(tokens, state, 100.0)
    else:
        seen = head.act(tokens, state, 100.0, np.ones((8, len(state))))
        np.testing.assert_array_equal(seen, head.act(tokens, state, 100.0))
