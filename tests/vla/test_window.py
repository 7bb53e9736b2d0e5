from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from tests.vla import toys
from vla.flow import FlowMatchingHead
from vla.head import RegressionHead, TrainedHead, standing_window
from vla.window import WINDOW_WIDTH, SensorWindow

SHAPE = (toys.TOKENS, toys.WIDTH, toys.NAMES, toys.NAMES, toys.HORIZON, 0.1)
KINDS = pytest.mark.parametrize("kind", [RegressionHead, FlowMatchingHead])


def build(kind: type[TrainedHead], window_samples: int = toys.WINDOW) -> TrainedHead:
    torch.manual_seed(0)
    return kind(*SHAPE, hidden=32, window_samples=window_samples).eval()


def act(head: TrainedHead, window: Any) -> np.ndarray:
    return head.act(np.ones((toys.TOKENS, toys.WIDTH), dtype=np.float32), np.zeros(2), 100.0, window)


def rows(count: int = toys.WINDOW, states: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, states))


@KINDS
def test_what_only_the_window_tells_is_learnt_with_it_and_not_without(kind: type[TrainedHead]) -> None:
    right = {}
    for samples in (toys.WINDOW, 0):
        head = build(kind, samples)

        def loss(head: TrainedHead = head) -> torch.Tensor:
            drawn, window = toys.moving(64)
            return head.loss(*drawn, window if head.window_samples else None)

        toys.learn(head, loss, steps=250)
        (tokens, state, age, targets), window = toys.moving(256)
        steps = head.predict(tokens, state, age, window if samples else None)
        right[samples] = float((steps.sign() == head.displacement(state, targets).sign()).float().mean())
    assert right[toys.WINDOW] > 0.98
    assert right[0] < 0.65


@KINDS
def test_the_window_is_normalised_like_the_state(kind: type[TrainedHead]) -> None:
    plain, scaled = build(kind), build(kind)
    scaled.state_mean.fill_(2.0)
    scaled.state_std.fill_(0.5)
    inputs = torch.ones(1, toys.TOKENS, toys.WIDTH), torch.zeros(1, 2), torch.zeros(1)
    window = torch.from_numpy(rows()).float()[None]
    expected = plain.predict(*inputs, window)
    got = scaled.predict(inputs[0], inputs[1] * 0.5 + 2.0, inputs[2], window * 0.5 + 2.0)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@KINDS
@pytest.mark.parametrize(
    ("window", "message"),
    [
        (None, "the head needs a window of the last 16 states, got none: set robot.history_samples: 16"),
        (rows(8), "the head needs a window of shape (16, 2) (samples, states), got (8, 2)"),
        (rows(16, 3), "the head needs a window of shape (16, 2) (samples, states), got (16, 3)"),
        (np.full((16, 2), np.nan), "the window of states holds NaN or infinity"),
        (np.full((16, 2), -np.inf), "the window of states holds NaN or infinity"),
    ],
)
def test_a_window_that_cannot_be_used_is_refused(kind: type[TrainedHead], window: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        act(build(kind), window)


@KINDS
def test_training_refuses_a_window_too_few_or_too_many(kind: type[TrainedHead]) -> None:
    drawn, window = toys.moving(4)
    with pytest.raises(ValueError, match="needs a window of the last 16 states, got none"):
        build(kind).loss(*drawn)
    with pytest.raises(ValueError, match="takes no window of states, got one"):
        build(kind, 0).loss(*drawn, window)


@KINDS
def test_a_head_without_a_window_acts_the_same_whatever_others_asked_the_host_for(kind: type[TrainedHead]) -> None:
    head = build(kind, 0)
    np.testing.assert_array_equal(act(head, rows()), act(head, None))


@pytest.mark.parametrize("samples", [2, 3, 16, 17, 100, 1024])
def test_a_window_of_any_length_becomes_one_vector_that_sees_its_ends(samples: int) -> None:
    torch.manual_seed(0)
    sensors = SensorWindow(samples, 3)
    window = torch.randn(2, samples, 3)
    window.requires_grad_(True)
    vector = sensors(window)
    vector.square().sum().backward()
    assert vector.shape == (2, WINDOW_WIDTH)
    assert window.grad is not None
    assert bool((window.grad[:, [0, -1]].abs().amax(dim=-1) > 0).all())


def test_one_sample_is_no_window() -> None:
    with pytest.raises(ValueError, match="at least 2 samples, got 1: the state alone is one already"):
        SensorWindow(1, 3)


def test_a_robot_that_stands_has_its_state_as_every_row() -> None:
    head = build(RegressionHead, 3)
    window = standing_window(head, np.array([1.0, 2.0]))
    assert window is not None and window.tolist() == [[1.0, 2.0]] * 3
    assert standing_window(build(RegressionHead, 0), np.zeros(2)) is None
