"""The command line as a person meets it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from launch import app, bench
from sim.tasks import KINDS

ROOT = Path(__file__).resolve().parents[1]


def launch(*words, timeout=60, **environment):
    result = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | environment,
    )
    assert "Traceback" not in result.stdout + result.stderr, result.stderr
    return result


COMMANDS = (
    *("run", "robot", "encoder", "control", "say", "status", "stop", "resume", "top", "check"),
    *("record", "export", "train", "eval", "profile", "replay", "page", "drill", "soak", "keys"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    result = launch(command, "--help")
    assert result.returncode == 0
    assert "--parent" not in result.stdout
    told = re.split(r"\n\s*\n", result.stdout.partition("╭")[0])
    ends_early = [part for part in told if any(len(line.strip()) < 55 for line in part.strip().split("\n")[:-1])]
    assert not ends_early, "each paragraph after a docstring's first goes on one line"


def test_every_option_says_what_it_does():
    commands = {**get_command(app).commands, **get_command(bench).commands}
    silent = [
        f"{name} {option.opts[-1]}"
        for name, command in commands.items()
        for option in command.params
        if not getattr(option, "hidden", False) and not getattr(option, "help", "") and option.opts[-1].startswith("-")
    ]
    assert not silent


@pytest.mark.parametrize("command", ["run", "record", "train"])
def test_the_tasks_are_named_where_they_are_asked_for(command):
    (option,) = (option for option in get_command(app).commands[command].params if option.name == "tasks")
    assert all(name in option.help for name in (*KINDS, "push (", "all"))


def test_recording_and_training_stand_together_in_the_list_of_commands():
    panels = {name: get_command(app).commands[name].rich_help_panel for name in ("record", "export", "train")}
    assert panels == dict.fromkeys(("record", "export", "train"), "Learn")


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
        (("eval", "--feature-age", "105"), "a feature age must be 0 or a positive multiple of 10 ms, got 105 ms"),
        (("eval", "--feature-age", "100,new"), "--feature-age takes numbers of ms like 100,300 and the word measured"),
        (("eval", "--feature-age", "100,99990"), "at a feature age of 99990 ms nothing would move"),
        (("eval", "--tasks", "juggle"), "unknown task 'juggle'; known: touch, pick"),
        (("eval", "--wordings", "tested"), "--wordings takes seen or unseen, got 'tested'"),
        (("eval", "--episodes", "0"), "equal to 1"),
        (("eval", "--against", "none.json"), "--against none.json cannot be read: No such file or directory"),
        (("eval", "--set", "robot.name=remote"), "eval needs a robot on a simulated clock"),
        (("eval", "--set", "encoder.random_weights=true"), "eval needs a trained policy"),
        (
            ("eval", "--set", "robot.options.image_size=[224, 224]"),
            "camera 'front' gives 224x224, the policy was trained",
        ),
        (("run", "--episodes", "2", "--tasks", "juggle"), "unknown task 'juggle'; known: touch, pick"),
        (("profile", "none.mcap"), "recording none.mcap does not exist; `launch.py record` writes them"),
        (("profile", "--against", "none.json"), "--against none.json does not exist"),
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


def test_eval_reports_the_same_from_one_process_and_from_two(tmp_path):
    reports = []
    for workers in (1, 2):
        file = tmp_path / f"{workers}.json"
        words = ("--tasks", "touch", "--episodes", 2, "--feature-age", "100,200", "--controls", 0, "--workers", workers)
        result = launch("eval", *words, "--expert", "--report", file, timeout=110)
        assert result.returncode == 0, result.stderr
        reports.append(json.loads(file.read_text()))
    one, two = reports
    row = one["success"]["touch"]["100"]
    assert row["episodes"] == 2 and {"rate", "ci95", "time_s", "path_m", "jerk"} <= set(row)
    assert set(one["success"]["touch"]) == {"100", "200"} and one["expert"]["touch"]["rate"] == 1.0
    assert one["wordings"] == "unseen" and one["seed"] == 1000 and one["precision"] == "int8" and one["policy"]
    assert one["feature_age"]["definition"] and one["machine"] and one["versions"]
    assert one == two


def test_eval_measures_the_age_and_keeps_what_failed(tmp_path):
    report, folder, sentences = tmp_path / "eval.json", tmp_path / "failed", tmp_path / "mine.txt"
    sentences.write_text("touch red: just dance\n")
    words = ("--episodes", 1, "--feature-age", "measured", "--controls", 0, "--wordings-file", sentences)
    result = launch("eval", *words, "--report", report, "--failures", folder, timeout=110)
    assert result.returncode == 0, result.stderr
    found = json.loads(report.read_text())
    age_ms = found["feature_age"]["measured_ms"]
    assert age_ms >= 50 and set(found["success"]["touch"]) == {f"{age_ms:g}"}
    assert f"feature age of a live run here: {age_ms:g} ms" in result.stdout
    assert found["wordings"] == "mine.txt" and "controls" not in found
    if found["success"]["touch"][f"{age_ms:g}"]["rate"] == 0.0:
        assert {file.suffix for file in folder.iterdir()} == {".json", ".png"}


PLUG_IN = '''
from sim.tabletop import TabletopRobot

class MyArm:
    """Somebody's own robot, which only looks like the table-top."""

    def __init__(self, clock):
        self._robot = TabletopRobot(clock)
        verbs = "connect read_state read_frames apply hold close" + {extra!r}
        for name in verbs.split():
            setattr(self, name, getattr(self._robot, name))

    spec = property(lambda self: self._robot.spec)
    is_over = property(lambda self: self._robot.is_over)
'''


def plug_in(folder, extra):
    """An installed package with a robot `my-arm`."""
    (folder / "my_arm.py").write_text(PLUG_IN.format(extra=extra))
    metadata = folder / "my_arm-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-arm\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[saccade.robots]\nmy-arm = my_arm:MyArm\n")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def test_eval_measures_a_policy_on_any_robot_that_resets_and_judges(tmp_path):
    installed = plug_in(tmp_path, " reset begin judge episodes")
    report = tmp_path / "eval.json"
    words = ("--set", "robot.name=my-arm", "--set", "robot.options={}", "--tasks", "touch", "--episodes", 1)
    result = launch(
        "eval", *words, "--feature-age", "100", "--controls", 1, "--report", report, timeout=110, **installed
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(report.read_text())
    assert found["robot"] == "my-arm"
    assert "path_rad" in found["success"]["touch"]["100"] and "path_m" not in found["success"]["touch"]["100"]
    assert "frozen_image" in found["controls"] and "swapped" not in found["controls"]
    result = launch("eval", *words, "--expert", **installed)
    assert result.returncode == 2 and "robot 'tabletop' has no scripted expert" in result.stderr
    result = launch("eval", *words, "--wordings-file", report, **installed)
    assert result.returncode == 2 and "reads no sentences of others" in result.stderr


def test_eval_refuses_a_robot_that_cannot_judge(tmp_path):
    installed = plug_in(tmp_path, "")
    result = launch("eval", "--set", "robot.name=my-arm", "--set", "robot.options={}", **installed)
    assert result.returncode == 2
    assert "robot 'my-arm' cannot be evaluated: it lacks some of reset, begin, judge, is_over" in result.stderr


@pytest.mark.timeout(300)
def test_training_on_the_simulator_goes_through_its_stages_and_goes_on_where_it_was(tmp_path):
    """Both stages in two processes, small; the same command again has nothing left to do, another one is refused."""
    words = ["train", "--out", tmp_path / "policy", "--tasks", "touch", "--minutes", "0.05", "--workers", "2"]
    words += ["--rounds", "1", "--frames", "64", "--steps", "20", "--seed", "3"]
    first = launch(*words, timeout=280)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 process(es)" in first.stdout and "round 1 of 1" in first.stdout
    checked = launch("check", "--set", f"encoder.policy={tmp_path / 'policy'}")
    assert checked.returncode == 0, checked.stderr
    spec = yaml.safe_load((tmp_path / "policy" / "policy.yaml").read_text())
    assert spec["feature_age_ms"] == [0.0, 1000.0] and spec["provenance"]["rounds"] == 1
    again = launch(*words)
    assert again.returncode == 0 and "round 1 of 1" not in again.stdout
    assert yaml.safe_load((tmp_path / "policy" / "policy.yaml").read_text()) == spec
    other = launch(*words[:-1], "4")
    assert other.returncode == 2 and "seed was 3, is now 4" in other.stderr
    shutil.rmtree(tmp_path / "policy")
    gone = launch(*words)
    assert gone.returncode == 2 and "holds no policy.yaml" in gone.stderr and "done:" not in gone.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--head-only",), "--head-only needs --data"),
        (("--tasks", "juggle"), "unknown task 'juggle'; known: touch"),
        (("--head", "diffusion"), "--head takes regression or flow-matching, got 'diffusion'"),
        (("--data", "nowhere"), "no recording in nowhere"),
        (("--features", "nowhere"), "--features needs --from"),
        (("--head", "regression", "--from", "p"), "--head is for training from nothing or --head-only: the policy"),
        (("--head", "regression", "--from", "p", "--data", "d"), "--head is for training from nothing or --head-only"),
        (("--steps", "9"), "--steps is not for training without --rounds: leave it out"),
        (
            ("--head-only", "--data", "d", "--minutes", "9"),
            "--minutes is not for --head-only, which takes --steps: leave",
        ),
        (
            ("--head-only", "--data", "d", "--workers", "2"),
            "--workers is not for --head-only, which runs in one process",
        ),
        (("--features", "f", "--from", "p", "--workers", "2"), "--workers is not for --features, which runs in one"),
        (("--data", "d", "--tasks", "touch"), "--tasks is not for --data: leave it out"),
        (("--data", "d", "--practice", "0.3"), "--practice is not for --data: leave it out"),
    ],
)
def test_train_says_what_it_cannot_do(tmp_path, words, message):
    if words == ("--data", "nowhere"):
        words = ("--data", tmp_path)
        message = "no recording in"
    result = launch("train", "--out", tmp_path / "policy", *words, COLUMNS="200")
    assert result.returncode == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
