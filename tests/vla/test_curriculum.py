"""What a training starts ends with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vla.errors import TrainingFault
from vla.training.curriculum import ran, train_embedded
from vla.training.rounds import RoundPlan

ROOT = Path(__file__).resolve().parents[2]
STAGE = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
TRAINING = f"""
import os, sys
from control.host import end_on_sigterm
from vla.training.curriculum import ran
end_on_sigterm()
ran([sys.executable, "-c", {STAGE!r}], os.environ)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_is_asked_to_end_leaves_no_process_of_its_stage(number):
    training = subprocess.Popen(
        [sys.executable, "-c", TRAINING], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        stage = int(training.stdout.readline())
        training.send_signal(number)
        _, said = training.communicate(timeout=20)
        assert training.returncode and "KeyboardInterrupt" in said
        ends_s = time.monotonic() + 5.0
        while Path(f"/proc/{stage}").exists() and time.monotonic() < ends_s:
            time.sleep(0.05)
        assert not Path(f"/proc/{stage}").exists()
    finally:
        training.kill()
        training.wait()


def test_a_training_that_is_done_is_not_taken_for_another_one_and_has_to_be_there(tmp_path):
    out = tmp_path / "policy"
    backbone = [sys.executable, "-c", "import sys; open(sys.argv[1], 'x').close()", str(out / "policy.yaml")]
    said = []

    def train(**asked):
        asked = {"seed": 3, "minutes": 5.0, "from": None} | asked
        train_embedded(out, backbone, lambda order: [], RoundPlan(rounds=0), False, said.append, asked)

    train()
    train()
    assert len(said) == 2 and all(line.startswith("done: the policy is in") for line in said)
    with pytest.raises(TrainingFault, match=r"training holds the state of another training: seed was 3, is now 4; ask"):
        train(seed=4)
    with pytest.raises(TrainingFault, match="tasks was not noted by the version that saved it, is now touch"):
        train(tasks="touch")
    (out / "policy.yaml").unlink()
    with pytest.raises(TrainingFault, match=r"policy holds no policy.yaml, though .policy.training beside it says"):
        train()
    assert len(said) == 2


def test_the_exit_code_of_a_stage_is_told():
    assert ran(["sh", "-c", "exit 7"], os.environ) == 7
