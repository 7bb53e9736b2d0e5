from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from control.captures import Captures
from tests.vla import squares
from tests.vla.conftest import SIDE, tiny_spec
from tests.vla.outliers import spiked
from vla import smoothing
from vla.accuracy import Accuracy, Limits, compare, table
from vla.encoder import QwenEncoder
from vla.engine import Engine
from vla.errors import NonFiniteFeatures
from vla.head import HoldHead, RegressionHead
from vla.policy import action_head, view_aggregation, view_pooling
from vla.precision import Precision, quantise
from vla.prompt import Prompter
from vla.qwen import QwenBackbone

LIMITS = Limits(min_cosine=0.99, max_relative_error=0.15, max_action_difference=0.05)
Build = Callable[..., QwenEncoder]


@pytest.fixture(scope="module")
def captures() -> Captures:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8) for name in ("front", "wrist")}
    texts = ("pick up the red block", "go to the blue block", "pick up the red block")
    return Captures(images, rng.normal(0, 0.3, (3, 7)), texts)


@pytest.fixture(scope="module")
def build(tiny: QwenBackbone, prompter: Prompter) -> Build:
    def make(
        precision: Precision = "fp32",
        backbone: QwenBackbone = tiny,
        factors: smoothing.Factors | None = None,
        policy_id: str = "abc",
    ) -> QwenEncoder:
        spec = tiny_spec()
        torch.manual_seed(3)
        pool, aggregate = view_pooling(spec).requires_grad_(False), view_aggregation(spec)
        backbone = copy.deepcopy(backbone)
        quantise(backbone, precision, vision=True, factors=factors)
        return QwenEncoder(spec, Engine(backbone, pool), prompter, aggregate, policy_id, encoder_epoch=1)

    return make


@pytest.fixture(scope="module")
def head() -> RegressionHead:
    torch.manual_seed(4)
    return action_head(tiny_spec()).eval().requires_grad_(False)


def test_a_model_is_as_accurate_as_itself(build: Build, captures: Captures, head: RegressionHead) -> None:
    one = build()
    found = compare(one, build(), captures, head, LIMITS, names=("fp32", "fp32"))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in one.backbone.modules())
    assert found.passed and found.diverges_at is None
    assert [view.name for view in found.views] == ["front", "wrist"]
    assert all(part.cosine == pytest.approx(1) and part.relative_error == 0 for part in (*found.views, *found.layers))
    assert found.action is not None and (found.action.maximum, found.action.mean) == (0, 0)
    assert [layer.name for layer in found.layers] == [
        *("visual.blocks.0", "visual.blocks.1", "visual.merger", "language.blocks.0", "language.blocks.1")
    ]


def test_int8_passes_where_there_are_no_outliers(build: Build, captures: Captures, head: RegressionHead) -> None:
    found = compare(build(), build("int8"), captures, head, LIMITS, names=("fp32", "int8"))
    assert found.passed, found.problems
    assert found.verdict() == "int8 passes against fp32 on 3 captures"
    assert 0 < max(view.relative_error for view in found.views) < 0.1
    assert found.action is not None and 0 < found.action.mean < found.action.maximum < 0.05


def test_outliers_fail_plain_int8_and_smoothing_from_the_same_frames_passes(
    build: Build, captures: Captures, head: RegressionHead, tiny: QwenBackbone
) -> None:
    outlying = spiked(tiny)
    reference = build(backbone=outlying)
    broken = compare(reference, build("int8", outlying), captures, head, LIMITS, names=("fp32", "int8"))
    assert not broken.passed
    assert {problem.split(" ")[0] for problem in broken.problems} == {"view", "action"}
    assert broken.diverges_at is not None and broken.diverges_at.startswith("visual.blocks.")
    assert broken.verdict().startswith("int8 fails against fp32: view 'front': cosine 0.")

    factors = smoothing.calibrate(
        reference.backbone,
        lambda: [reference.pooled(captures.frames(index), text) for index, text in enumerate(captures.instructions)],
        vision=True,
    )
    repaired = compare(reference, build("int8", outlying, factors), captures, head, LIMITS)
    assert repaired.passed, repaired.problems


def test_the_layer_where_a_difference_begins_is_named(
    build: Build, captures: Captures, head: RegressionHead, tiny: QwenBackbone
) -> None:
    damaged = copy.deepcopy(tiny)
    with torch.no_grad():
        damaged.language.blocks[1].down.weight.neg_()
        damaged.language.blocks[1].down.weight *= 30
    found = compare(build(), build(backbone=damaged), captures, head, LIMITS)
    assert found.diverges_at == "language.blocks.1"
    assert found.layers[-2].relative_error == 0
    assert "layers fall below the cosine limit from language.blocks.1 on" in found.verdict()


def test_features_that_are_not_finite_fail(
    build: Build, captures: Captures, head: RegressionHead, tiny: QwenBackbone
) -> None:
    damaged = copy.deepcopy(tiny)
    with torch.no_grad():
        damaged.language.blocks[1].norm2.weight[0] = float("nan")
    found = compare(build(), build(backbone=damaged), captures, head, LIMITS)
    assert len(found.problems) == 5 and found.diverges_at == "language.blocks.1"
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["views"][0]["cosine"] is None
    assert [good for *_, good in found.rows()] == [False, False, False, True, False]
    with pytest.raises(NonFiniteFeatures, match="the reference 'bf16' is NaN or infinite for capture 1"):
        compare(build(backbone=damaged), build(), captures, head, LIMITS, names=("bf16", "int8"))


def test_a_head_that_looks_at_no_features_is_not_judged(build: Build, captures: Captures) -> None:
    found = compare(build(), build("int8"), captures, HoldHead(squares.STATES, squares.STATES, 4, 0.1, "abc"), LIMITS)
    assert found.passed and found.action is None
    assert found.verdict().endswith("actions were not judged, the policy's head does not look at features")


def test_encoders_of_two_policies_are_not_compared(build: Build, captures: Captures, head: RegressionHead) -> None:
    with pytest.raises(ValueError, match="both encoders must be of one policy, got 'abc' and 'abd'"):
        compare(build(), build(policy_id="abd"), captures, head, LIMITS)


def test_an_encoder_that_shows_no_layers_is_refused(
    build: Build, captures: Captures, head: RegressionHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = build()
    monkeypatch.setattr(compiled, "pooled", lambda frames, text: torch.zeros(2, 1, 32))
    with pytest.raises(ValueError, match="no layer was seen: the encoder runs a compiled or captured graph"):
        compare(build(), compiled, captures, head, LIMITS)


def test_every_capture_counts_and_the_worst_one_decides(build: Build, captures: Captures, head: RegressionHead) -> None:
    one, candidate = build(), build("int8")
    shown: list[int] = []
    together = compare(one, candidate, captures, head, LIMITS, show=shown.append)
    singles = [
        compare(one, candidate, dataclasses.replace(captures, **part), head, LIMITS)
        for part in (
            {
                "images": {name: images[index : index + 1] for name, images in captures.images.items()},
                "states": captures.states[index : index + 1],
                "instructions": captures.instructions[index : index + 1],
            }
            for index in range(3)
        )
    ]
    assert shown == [1, 2, 3]
    assert together.views[0].cosine == min(single.views[0].cosine for single in singles)
    assert together.views[1].relative_error == max(single.views[1].relative_error for single in singles)
    errors = [single.layers[0].relative_error for single in singles]
    assert together.layers[0].relative_error == pytest.approx(np.mean(errors))
    actions = [single.action for single in singles if single.action is not None]
    assert together.action is not None
    assert together.action.maximum == max(action.maximum for action in actions)
    assert together.action.mean == pytest.approx(np.mean([action.mean for action in actions]))


def test_the_report_says_it_all(build: Build, captures: Captures, head: RegressionHead) -> None:
    found = compare(build(), build("int8"), captures, head, LIMITS, names=("fp32", "int8"))
    written = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert written["passed"] is True and written["problems"] == [] and written["diverges_at"] is None
    assert (written["reference"], written["candidate"], written["captures"]) == ("fp32", "int8", 3)
    assert written["limits"] == {"min_cosine": 0.99, "max_relative_error": 0.15, "max_action_difference": 0.05}
    assert set(written["views"][0]) == {"name", "cosine", "relative_error"} and len(written["layers"]) == 5
    assert table(found).row_count == len(found.rows()) == 2 + 1 + 2


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        (Limits(0.999999, 1, 1), "view 'front': cosine 0.99"),
        (Limits(0, 0.0001, 1), "view 'front': relative error 0.0"),
        (Limits(0, 1, 0.000001), "action '"),
    ],
)
def test_each_limit_is_held(
    build: Build, captures: Captures, head: RegressionHead, limits: Limits, problem: str
) -> None:
    found: Accuracy = compare(build(), build("int8"), captures, head, limits)
    assert found.problems and found.problems[0].startswith(problem)
    assert not all(good for *_, good in found.rows())
