from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.vla.conftest import CPU
from vla import memory
from vla.assemble import load_encoder
from vla.errors import DeviceFault
from vla.geometry import geometry_config
from vla.memory import check_fits, needed_bytes

CUDA = torch.device("cuda")


def test_the_weights_of_the_published_model_are_counted() -> None:
    """3,754,622,976 weights; 0.66e9 of them in the tower, 0.31e9 the word embeddings."""
    config = geometry_config("3b")
    work = memory._WORK_BYTES["cpu"]
    full = (needed_bytes(config, "fp32", False, CPU) - work) / memory._ROOM
    assert full == pytest.approx(4 * 3.7546e9, rel=2e-3)  # inner widths are padded
    assert needed_bytes(config, "int8", False, CPU) < 0.6 * needed_bytes(config, "fp32", False, CPU)
    assert needed_bytes(config, "int8", True, CPU) < needed_bytes(config, "int8", False, CPU)


def test_too_little_memory_is_said_with_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 7e9)
    with pytest.raises(DeviceFault) as refused:
        check_fits(geometry_config("3b"), "fp32", False, CPU)
    text = str(refused.value)
    assert text.startswith("device 'cpu' has 7.0 GB free, precision fp32 needs 16.8 GB; these would fit: ")
    assert "int4-bnb (" in text and "bf16" not in text


def test_where_nothing_fits_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1e8)
    with pytest.raises(DeviceFault, match="none would fit: use a larger device"):
        check_fits(geometry_config("3b"), "int8", False, CPU)


def test_an_encoder_that_does_not_fit_loads_nothing(policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1e3)
    with pytest.raises(DeviceFault, match="has 0.0 GB free, precision fp32 needs"):
        load_encoder(policy_folder, "cpu", 1)


def test_this_machines_free_memory_is_a_sane_figure() -> None:
    assert 1e8 < memory.free_bytes(CPU) < 1e14
