from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from vla.head import SCALES, HoldHead, RegressionHead

STATES = ("lift", "turn", "grip")
STATE = np.array([0.1, -1.3, 0.04])


def head(**changes: object) -> RegressionHead:
    torch.manual_seed(0)
    options: dict[str, object] = {"hidden": 16} | changes
    return RegressionHead(2, 4, STATES, ("turn", "lift"), 3, 0.1, **options).eval()  # type: ignore[arg-type]


def tokens(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, 4)).astype(np.float32)


def test_no_displacement_is_exactly_the_state_of_the_same_name() -> None:
    still = head()
    torch.nn.init.zeros_(still.out.weight)
    torch.nn.init.zeros_(still.out.bias)
    targets = still.act(tokens(), STATE, 100.0)
    assert targets.dtype == np.float64
    assert targets.tolist() == [[-1.3, 0.1]] * 3


def test_targets_are_the_state_plus_the_displacement_in_physical_units() -> None:
    acting = head()
    acting.step_std.fill_(0.2)
    acting.step_mean.fill_(0.01)
    inputs = torch.from_numpy(tokens())[None], torch.from_numpy(STATE).float()[None], torch.tensor([100.0])
    with torch.inference_mode():
        normalised = acting.predict(*inputs)[0].numpy()
    expected = STATE[[1, 0]] + normalised * 0.2 + 0.01
    np.testing.assert_allclose(acting.act(tokens(), STATE, 100.0), expected, atol=1e-6)


def test_an_action_without_a_state_of_its_name_is_predicted_whole() -> None:
    acting = RegressionHead(2, 4, STATES, ("suction",), 3, 0.1, hidden=16)
    torch.nn.init.zeros_(acting.out.weight)
    torch.nn.init.zeros_(acting.out.bias)
    acting.step_mean.fill_(0.7)
    np.testing.assert_allclose(acting.act(tokens(), STATE, 0.0), [[0.7]] * 3, atol=1e-7)


def test_training_and_acting_agree_on_what_a_displacement_is() -> None:
    acting = head()
    acting.step_std.fill_(0.3)
    state = torch.from_numpy(STATE).float()[None]
    targets = torch.from_numpy(acting.act(tokens(), STATE, 50.0)).float()[None]
    with torch.inference_mode():
        predicted = acting.predict(torch.from_numpy(tokens())[None], state, torch.tensor([50.0]))
    torch.testing.assert_close(acting.displacement(state, targets), predicted, atol=1e-5, rtol=0)


def test_features_state_and_age_all_matter() -> None:
    acting = head()
    base = acting.act(tokens(), STATE, 100.0)
    assert not np.allclose(base, acting.act(tokens(1), STATE, 100.0))
    assert not np.allclose(base, acting.act(tokens(), STATE, 600.0))
    assert not np.allclose(base - STATE[[1, 0]], acting.act(tokens(), STATE + 0.1, 100.0) - (STATE + 0.1)[[1, 0]])


def test_a_hold_head_returns_the_state_whatever_it_sees() -> None:
    hold = HoldHead(STATES, ("turn", "lift"), 5, 0.1, "policy")
    assert hold.act(np.full((1, 7), 1e9, dtype=np.float32), STATE, 300.0).tolist() == [[-1.3, 0.1]] * 5


def test_a_hold_head_does_not_creep_with_a_sagging_servo() -> None:
    hold = HoldHead(STATES, ("turn", "lift"), 5, 0.1, "policy")
    joint, sag = STATE[0], 0.03
    for _ in range(200):
        target = hold.act(np.zeros((1, 7), dtype=np.float32), np.array([joint, -1.3, 0.04]), 300.0)[0, 1]
        joint += 0.5 * (target - sag - joint)
    assert target == STATE[0]
    assert abs(joint - (STATE[0] - sag)) < 1e-6


def test_a_hold_head_holds_where_it_was_moved_to_by_hand() -> None:
    hold = HoldHead(STATES, ("turn", "lift"), 1, 0.1, "policy")
    seen = np.zeros((1, 7), dtype=np.float32)
    hold.act(seen, np.array([0.1, -1.3, 0.04]), 300.0)
    assert hold.act(seen, np.array([0.15, -1.0, 0.04]), 300.0).tolist() == [[-1.0, 0.1]]
    assert hold.act(seen, np.array([0.12, -0.95, 0.04]), 300.0).tolist() == [[-1.0, 0.1]]


def test_a_hold_head_needs_a_state_for_every_action() -> None:
    with pytest.raises(ValueError, match=r"actions \['suction'\] have no state of that name"):
        HoldHead(STATES, ("turn", "suction"), 5, 0.1, "policy")


def test_features_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expects feature tokens of shape \(2, 4\), got \(3, 4\)"):
        head().act(np.zeros((3, 4), dtype=np.float32), STATE, 0.0)


def test_the_controllers_imports_leave_the_language_model_out() -> None:
    code = "import sys, vla.policy, vla.head; sys.exit('transformers' in sys.modules or 'tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


READ = ("at.turn", "colour", "to.lift", "size_m")


def reader(**changes: object) -> RegressionHead:
    reading = head(readout=READ, **changes)
    reading.value_mean.copy_(torch.tensor([0.5, 0.0, -0.2, 0.1]))
    reading.value_std.copy_(torch.tensor([0.2, 0.5, 0.1, 0.05]))
    reading.state_mean.copy_(torch.tensor([0.3, 0.0, 0.0]))
    reading.state_std.copy_(torch.tensor([0.5, 2.0, 0.02]))
    return reading


def test_a_head_with_a_readout_acts_on_what_it_reads_and_on_nothing_else_of_the_features() -> None:
    reading = reader()
    state, age = torch.from_numpy(STATE).float()[None], torch.tensor([100.0])
    seen = torch.from_numpy(np.stack([tokens(0), tokens(1)]))
    values = reading.read(seen)
    assert values.shape == (2, 4)
    twice = state.expand(2, -1), age.expand(2)
    torch.testing.assert_close(reading.predict(seen, *twice), reading.predict_of(values, *twice))
    torch.nn.init.zeros_(reading.readout[-1].weight)
    torch.nn.init.zeros_(reading.readout[-1].bias)
    torch.testing.assert_close(reading.read(seen), reading.value_mean.expand(2, -1))
    # One by one: rows of a batch may differ in their last bit, by the kernel that a CPU takes for them.
    first, other = (reading.predict(row[None], state, age) for row in seen)
    torch.testing.assert_close(first, other, atol=0, rtol=0)


def test_the_trunk_is_told_how_far_a_place_is_from_the_state_of_its_name() -> None:
    reading = reader()
    reading.trunk = torch.nn.Identity()
    values, state = torch.tensor([[0.7, 1.0, 0.4, 0.2]]), torch.tensor([[0.1, -1.3, 0.04]])
    told = reading.context(values, state, torch.tensor([250.0]), None)[0]
    off = torch.tensor([(0.7 + 1.3) / 2.0, (0.4 - 0.1) / 0.5])  # turn, lift
    expected = [
        torch.tensor([1.0, 2.0, 6.0, 2.0]),
        torch.tensor([-0.4, -0.65, 2.0, 0.5]),
        *(torch.tanh(off / scale) for scale in SCALES),
    ]
    torch.testing.assert_close(told, torch.cat(expected))


def test_a_readout_without_places_is_told_as_it_is() -> None:
    assert head(readout=("colour", "size_m")).trunk[0].in_features == 2 + 3 + 1
    assert reader().trunk[0].in_features == 4 + 2 * len(SCALES) + 3 + 1


def test_targets_are_the_inverse_of_displacements() -> None:
    acting = head()
    acting.step_std.fill_(0.3)
    acting.step_mean.fill_(0.02)
    state, steps = torch.from_numpy(STATE).float()[None], torch.randn(1, 3, 2)
    torch.testing.assert_close(acting.displacement(state, acting.targets(state, steps)), steps)
