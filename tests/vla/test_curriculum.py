"""What a training starts ends with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vla.training.curriculum import ran

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


def test_the_exit_code_of_a_stage_is_told():
    assert ran(["sh", "-c", "exit 7"], os.environ) == 7
