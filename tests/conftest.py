"""What the tests share: a bus of their own, and the skip of GPU tests where no GPU is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings
from rig import LoopRig, two_joint_spec
from runs import Run

from control.address import BusAddress
from control.messages import RobotSpec

settings.register_profile("saccade", deadline=None)  # a loaded machine is no failure
settings.load_profile("saccade")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU on this machine"))


@pytest.fixture
def bus() -> Iterator[BusAddress]:
    folder = tempfile.mkdtemp(prefix="saccade-test-")
    yield BusAddress(f"ipc://{folder}")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def spec() -> RobotSpec:
    return two_joint_spec()


@pytest.fixture
def rig() -> LoopRig:
    return LoopRig()


@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    """Starts runs, and ends whatever a failed test has left of them."""
    runs: list[Run] = []

    def start(*arguments: str, address: str | None = None) -> Run:
        runs.append(Run(*arguments, address=address))
        return runs[-1]

    yield start
    for run in runs:
        run.kill()
