from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.vla import toys
from vla.flow import DRAWS, FlowMatchingHead
from vla.head import RegressionHead, TrainedHead

SHAPE = (toys.TOKENS, toys.WIDTH, toys.NAMES, toys.NAMES, toys.HORIZON, 0.1)


def learnt(kind: type[TrainedHead], draw: Callable[[int], toys.Drawn], **options: int) -> TrainedHead:
    torch.manual_seed(0)
    head = kind(*SHAPE, hidden=64, **options)
    toys.learn(head, lambda: head.loss(*draw(64)))
    return head.eval()


def flow(**options: int) -> FlowMatchingHead:
    torch.manual_seed(0)
    return FlowMatchingHead(*SHAPE, hidden=16, **options).eval()


def act(head: TrainedHead) -> np.ndarray:
    return head.act(np.ones((toys.TOKENS, toys.WIDTH), dtype=np.float32), np.array([0.3, -0.2]), 100.0)


@pytest.mark.parametrize("kind", [RegressionHead, FlowMatchingHead])
def test_where_one_way_is_right_both_heads_find_it(kind: type[TrainedHead]) -> None:
    head = learnt(kind, toys.one_way)
    tokens, state, age, targets = toys.one_way(256)
    wanted = head.displacement(state, targets)
    missed = (head.predict(tokens, state, age) - wanted).abs().mean()
    assert missed < 0.08 < 0.3 < wanted.abs().mean()


def test_where_two_ways_are_right_flow_picks_one_and_regression_goes_between() -> None:
    seen = toys.two_ways(256)[:3]
    ends = {
        kind: learnt(kind, toys.two_ways).predict(*seen)[:, -1, 0].abs() for kind in (RegressionHead, FlowMatchingHead)
    }
    assert (ends[FlowMatchingHead] - 1.0).abs().max() < 0.15
    assert (ends[RegressionHead] < 0.85).float().mean() > 0.95


def test_what_is_drawn_from_noise_goes_both_ways_as_often_as_the_demonstrations() -> None:
    head = learnt(FlowMatchingHead, toys.two_ways)
    assert isinstance(head, FlowMatchingHead)
    tokens, state, age, _ = toys.two_ways(512)
    ends = head.predict(tokens, state, age, start=torch.randn(512, toys.HORIZON, 2))[:, -1, 0]
    assert (ends.abs() - 1.0).abs().median() < 0.1
    assert 0.35 < float((ends > 0).float().mean()) < 0.65


def test_no_noise_of_the_moment_reaches_the_robot() -> None:
    head = flow()
    torch.manual_seed(1)
    first = act(head)
    torch.manual_seed(2)
    np.testing.assert_array_equal(act(head), first)


def test_every_head_starts_from_the_same_noise_and_carries_it_in_its_weights() -> None:
    torch.manual_seed(1)
    one, other = FlowMatchingHead(*SHAPE), FlowMatchingHead(*SHAPE)
    assert torch.equal(one.start, other.start)
    assert one.start.abs().max() > 0.5
    assert "start" in one.state_dict()


@pytest.mark.parametrize("steps", [1, 2, 7, 32])
def test_the_flow_ends_where_the_network_says_in_any_number_of_steps(steps: int) -> None:
    head = flow(steps=steps)
    torch.nn.init.zeros_(head.out.weight)
    torch.nn.init.constant_(head.out.bias, 0.5)
    np.testing.assert_allclose(act(head), np.tile([0.8, 0.3], (toys.HORIZON, 1)), atol=1e-5)


def test_training_meets_every_point_of_the_straight_ways_from_unit_noise_to_the_targets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = flow()
    tokens, state, age, targets = toys.one_way(2000)
    wanted = head.displacement(state, targets).flatten(1).repeat(DRAWS, 1)
    met = []

    def note(here: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        met.append((here, time))
        return wanted

    monkeypatch.setattr(head, "_end", note)
    assert head.loss(tokens, state, age, targets).tolist() == [0.0] * 2000
    here, time = met[0]
    assert time.min() < 0.01 and time.max() > 0.99 and abs(time.mean() - 0.5) < 0.02
    noise = ((here - time * wanted) / (1 - time))[time[:, 0] < 0.9]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1.0) < 0.02


def test_the_loss_is_one_number_a_sample_and_is_lowest_for_the_right_targets() -> None:
    head = learnt(FlowMatchingHead, toys.one_way)
    tokens, state, age, targets = toys.one_way(64)
    right, wrong = head.loss(tokens, state, age, targets), head.loss(tokens, state, age, targets + 0.5)
    assert right.shape == (64,)
    assert right.mean() < 0.5 * wrong.mean()
