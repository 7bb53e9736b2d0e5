"""The command line as a person meets it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def launch(*words, timeout=60):
    result = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *map(str, words)], capture_output=True, text=True, timeout=timeout
    )
    assert "Traceback" not in result.stdout + result.stderr, result.stderr
    return result


COMMANDS = (
    *("run", "robot", "encoder", "control", "say", "status", "stop", "resume", "check"),
    *("record", "export", "train", "eval"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    result = launch(command, "--help")
    assert result.returncode == 0
    assert "--parent" not in result.stdout


@pytest.mark.parametrize("words", [("say", "touch the red block"), ("status",), ("stop",), ("resume",)])
def test_an_operators_command_fails_within_two_seconds_when_nothing_runs(words, tmp_path):
    result = launch(*words, "--set", f"bus.address=ipc://{tmp_path}/bus")
    assert result.returncode == 1
    assert "no controller answers at ipc://" in result.stderr and "launch.py run" in result.stderr
    assert "within 1 s" in result.stderr  # the rest of the two seconds is for starting Python


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("check", "--config", "none.yaml"), "config none.yaml does not exist"),
        (("check", "--set", "control.rate=20"), "did you mean 'rate_hz'?"),
        (("check", "--set", "robot.name=tabeltop"), "robot 'tabeltop' is not installed; did you mean 'tabletop'?"),
        (("check", "--set", "robot.options.colour=red"), "does not take these robot.options"),
        (("check", "--set", "encoder.policy=/none"), "policy.yaml is missing: expected a policy folder"),
        (
            ("run", "--set", "robot.options.image_size=[224, 224]"),
            "camera 'front' gives 224x224, the policy was trained",
        ),
        (("run", "--set", "encoder.device=tpu"), "encoder.device: String should match pattern"),
        (("run", "--say", "x", "--episodes", "3"), "exclude each other"),
        (("run", "--report", "/proc/none/r.json"), "--report /proc/none/r.json cannot be written"),
        (
            ("check", "--set", "safety.workspace={hip: [0, 1]}"),
            "safety.workspace names hip; robot 'tabletop' has",
        ),
        (("check", "--set", "bus.address=tcp://0.0.0.0:5550"), "is open to the network"),
        (("eval", "--feature-age", "105"), "multiple"),
        (("check", "--set", "control.rate_hz=2"), "robot.watchdog_ms 300 must be over one control period (500 ms)"),
    ],
)
def test_wrong_usage_ends_with_code_2_and_says_what_is_wrong(words, message):
    result = launch(*words)
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in " ".join((result.stdout + result.stderr).split())


@pytest.fixture
def policy(tmp_path):
    folder = tmp_path / "policy"
    shutil.copytree(ROOT / "vla" / "policies" / "tabletop", folder)
    return folder


def damage(folder, how):
    weights = folder / "backbone" / "model.safetensors"
    if how == "missing weights":
        weights.unlink()
    elif how == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:50_000])
    elif how == "missing head":
        (folder / "head.safetensors").unlink()
    else:
        spec = yaml.safe_load((folder / "policy.yaml").read_text())
        if how == "other joints":
            spec["action_names"][0] = spec["state_names"][0] = "base"
        else:
            spec["cameras"] = {"ceiling": [112, 112]} | spec["cameras"]
        (folder / "policy.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))


@pytest.mark.parametrize("how", ["missing weights", "truncated weights", "missing head"])
def test_check_finds_weights_that_are_not_whole(policy, how):
    damage(policy, how)
    result = launch("check", "--set", f"encoder.policy={policy}")
    assert result.returncode == 2
    assert "safetensors" in result.stderr and "all well" not in result.stdout


def test_train_replaces_no_policy_unless_it_is_told_to(policy):
    result = launch("train", "--out", policy, "--minutes", "0.01")
    assert result.returncode == 2
    assert "overwrite" in result.stderr


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing weights", "model.safetensors"),
        ("truncated weights", "model.safetensors"),
        ("missing head", "head.safetensors is missing"),
        ("other joints", "base"),
        ("other cameras", "ceiling"),
    ],
)
def test_a_damaged_or_foreign_policy_ends_a_run_with_code_2_and_its_reason(policy, tmp_path, how, message):
    damage(policy, how)
    address = f"bus.address=ipc://{tmp_path}/b"
    result = launch(
        "run", "--say", "touch it", "--duration", "1", "--set", f"encoder.policy={policy}", "--set", address
    )
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in " ".join((result.stdout + result.stderr).split())


def test_check_prints_the_budgets_and_what_policy_and_robot_are():
    result = launch("check")
    assert result.returncode == 0, result.stderr
    assert "feature age when healthy: 2 x encode + 140 ms at most" in result.stdout
    assert result.stdout.splitlines()[-1] == "all well"


def test_eval_reports_success_in_lockstep(tmp_path):
    report = tmp_path / "eval.json"
    result = launch("eval", "--episodes", 2, "--feature-age", "100", "--report", report, timeout=110)
    assert result.returncode == 0, result.stderr
    assert '"episodes": 2' in report.read_text()
