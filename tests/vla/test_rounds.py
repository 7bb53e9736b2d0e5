"""Rounds on a policy's own episodes, with real collecting processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.vla.test_parts import toy
from vla.errors import TrainingFault
from vla.policy_spec import identify, load_spec
from vla.training.rounds import Order, RoundPlan, aggregate

ROOT = Path(__file__).resolve().parents[2]
PLAN = RoundPlan(rounds=2, frames=64, steps=5, last_steps=10, workers=2, batch=32, seed=4)


def copying(folder: Path) -> tuple[list[Order], object]:
    """A command that puts features in place, and the list of what was ordered."""
    toy(1, 40).save(folder / "made.safetensors")
    ordered: list[Order] = []

    def command(order: Order) -> list[str]:
        ordered.append(order)
        return [sys.executable, "-c", "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])",
                str(folder / "made.safetensors"), str(order.file)]  # fmt: skip

    return ordered, command


def test_each_round_collects_with_the_policy_of_the_one_before(policy_folder: Path, tmp_path: Path) -> None:
    ordered, command = copying(tmp_path)
    first = identify(policy_folder)
    said: list[str] = []
    aggregate(policy_folder, tmp_path / "work", PLAN, command, said.append)  # type: ignore[arg-type]
    assert len(ordered) == 2 + 1 + 2 and all(order.policy == policy_folder for order in ordered)
    assert len({order.seed for order in ordered}) == 5
    assert ordered[0].expert_share > ordered[-1].expert_share
    assert identify(policy_folder) != first
    spec = load_spec(policy_folder)
    assert spec.feature_age_ms == (0.0, 150.0)  # as the features have them; up to 1,000 ms was allowed
    assert spec.provenance["rounds"] == 2 and spec.provenance["round_frames"] == 4 * 40
    assert (policy_folder / "backbone" / "model.safetensors").is_file()
    assert said[0] == "round 1 of 2: 72 frames"


def test_what_was_done_is_not_done_again(policy_folder: Path, tmp_path: Path) -> None:
    ordered, command = copying(tmp_path)
    work = tmp_path / "work"
    aggregate(policy_folder, work, RoundPlan(rounds=1, frames=64, steps=5, last_steps=5, workers=2), command, print)  # type: ignore[arg-type]
    policy_id = identify(policy_folder)
    aggregate(policy_folder, work, RoundPlan(rounds=1, frames=64, steps=5, last_steps=5, workers=2), command, print)  # type: ignore[arg-type]
    assert len(ordered) == 3 and identify(policy_folder) == policy_id
    toy(9, 40).save(work / "round-01-0.safetensors")  # as an interrupt in round 2 leaves it
    aggregate(policy_folder, work, RoundPlan(rounds=2, frames=64, steps=5, last_steps=5, workers=2), command, print)  # type: ignore[arg-type]
    assert [order.file.name for order in ordered[3:]] == ["round-01-1.safetensors"]


def test_a_collecting_process_that_fails_ends_training_with_its_name(policy_folder: Path, tmp_path: Path) -> None:
    def command(order: Order) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit(3)"]

    before = identify(policy_folder)
    with pytest.raises(TrainingFault, match=r"collecting round-00-0.safetensors ended with exit code 3"):
        aggregate(policy_folder, tmp_path / "work", PLAN, command, print)
    assert identify(policy_folder) == before


COLLECTING = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
ROUND = f"""
import sys
from pathlib import Path
from control.host import end_on_sigterm
from vla.training.rounds import Order, _collect
end_on_sigterm()
_collect([Order(Path(), Path("none"), 0, 1, 0.0)], lambda order: [sys.executable, "-c", {COLLECTING!r}], 1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_round_that_is_asked_to_end_leaves_no_process_that_collects(number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ROUND], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        collecting = int(process.stdout.readline())
        process.send_signal(number)
        process.communicate(timeout=20)
        ends_s = time.monotonic() + 5.0
        while Path(f"/proc/{collecting}").exists() and time.monotonic() < ends_s:
            time.sleep(0.05)
        assert process.returncode and not Path(f"/proc/{collecting}").exists()
    finally:
        process.kill()
        process.wait()
