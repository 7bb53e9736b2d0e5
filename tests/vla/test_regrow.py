"""A head that goes on with another readout: what it knew stays, what is new begins as nothing."""

from __future__ import annotations

import pytest
import torch

from vla.errors import TrainingFault
from vla.head import RegressionHead
from vla.training.regrow import go_on_from

STATES = ("waist", "gripper")
OLD = ("kind", "at.waist", "roll", "held")
NEW = ("held", "yaw", "at.waist", "at.gripper", "kind")


def head(readout: tuple[str, ...], seed: int, hidden: int = 32) -> RegressionHead:
    torch.manual_seed(seed)
    made = RegressionHead(2, 8, STATES, STATES, 4, 0.1, hidden, 2, readout=readout)
    for name, buffer in made.named_buffers():
        if name != "residual":
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return made.eval()


def test_facts_of_the_same_name_are_read_as_before_and_the_new_ones_count_for_nothing_yet() -> None:
    old, new = head(OLD, 0), head(NEW, 1)
    go_on_from(new, old, NEW, OLD)
    tokens, state, age = torch.randn(5, 2, 8), torch.randn(5, 2), torch.rand(5) * 900
    before, after = old.read(tokens), new.read(tokens)
    for name in set(OLD) & set(NEW):
        torch.testing.assert_close(after[:, NEW.index(name)], before[:, OLD.index(name)])
    told = torch.randn(5, len(OLD))
    told[:, OLD.index("roll")] = old.value_mean[OLD.index("roll")]  # normalised: 0, as a fact that is gone
    again = torch.randn(5, len(NEW))
    for name in set(OLD) & set(NEW):
        again[:, NEW.index(name)] = told[:, OLD.index(name)]
    torch.testing.assert_close(new.predict_of(again, state, age), old.predict_of(told, state, age))


def test_a_head_of_another_size_is_refused_by_what_differs() -> None:
    with pytest.raises(TrainingFault, match="another kind or size: .*out.weight"):
        go_on_from(head(NEW, 1, hidden=16), head(OLD, 0), NEW, OLD)
