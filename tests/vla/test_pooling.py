from __future__ import annotations

from typing import get_args

import pytest
import torch

from vla.policy_spec import Aggregation, PolicySpec, Pooling, PoolingChoice
from vla.pooling import ViewAggregation, ViewPooling

TOKENS = torch.arange(24.0).view(2, 4, 3)  # 2 views, 4 image tokens, width 3


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mean", [[4.5, 5.5, 6.5], [16.5, 17.5, 18.5]]),
        ("max", [[9, 10, 11], [21, 22, 23]]),
        ("last", [[9, 10, 11], [21, 22, 23]]),
    ],
)
def test_pooling_without_parameters_works_on_any_checkpoint(kind: Pooling, expected: list[list[float]]) -> None:
    pool = ViewPooling(kind, 3)
    assert not pool.state_dict()
    assert pool(TOKENS)[:, 0].tolist() == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mean", [[6, 7, 8]]),
        ("max", [[12, 13, 14]]),
        ("concat", [[0, 1, 2], [12, 13, 14]]),
    ],
)
def test_aggregation_without_parameters(kind: Aggregation, expected: list[list[float]]) -> None:
    aggregate = ViewAggregation(kind, 3)
    assert not aggregate.state_dict()
    assert aggregate(TOKENS[:, :1]).tolist() == expected


@pytest.mark.parametrize("aggregation", get_args(Aggregation))
@pytest.mark.parametrize("queries", [1, 3])
def test_the_number_of_feature_tokens_is_what_is_declared(aggregation: Aggregation, queries: int) -> None:
    pool = ViewPooling("attention", 3, image_tokens=4, queries=queries)
    features = ViewAggregation(aggregation, 3, views=2)(pool(TOKENS))
    spec = PolicySpec(
        name="declared",
        backbone="backbone",
        geometry="tiny",
        width=8,
        cameras={"front": (56, 56), "top": (56, 56)},
        state_names=("a",),
        action_names=("a",),
        horizon=1,
        period_s=0.1,
        pooling=PoolingChoice(view="attention", queries=queries, aggregation=aggregation),
    )
    assert features.shape == (spec.tokens, 3)
    batched = ViewAggregation(aggregation, 3, views=2)(pool(TOKENS.expand(5, 2, 4, 3)))
    assert batched.shape == (5, *features.shape)


def test_attention_knows_where_a_token_lies() -> None:
    torch.manual_seed(0)
    pool = ViewPooling("attention", 3, image_tokens=4)
    image = torch.zeros(1, 4, 3)
    image[0, 1] = torch.tensor([3.0, -1.0, 0.5])
    assert not torch.allclose(pool(image), pool(image.roll(1, dims=1)))
    assert torch.allclose(ViewPooling("mean", 3)(image), ViewPooling("mean", 3)(image.roll(1, dims=1)))


def test_attention_logits_are_what_the_features_are_mixed_with() -> None:
    pool = ViewPooling("attention", 3, image_tokens=4, queries=2)
    features, logits = pool.attend(TOKENS)
    assert logits.shape == (2, 2, 4)
    placed = pool.norm(TOKENS) + pool.positions
    torch.testing.assert_close(features, logits.softmax(-1) @ pool.value(placed))


def test_another_number_of_image_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="trained on 4 image tokens a view, got 6"):
        ViewPooling("attention", 3, image_tokens=4)(torch.zeros(1, 6, 3))


def test_several_queries_need_attention() -> None:
    with pytest.raises(ValueError, match="gives one token a view, got queries=2"):
        ViewPooling("mean", 3, queries=2)
