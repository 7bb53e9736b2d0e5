"""The house: who may import whom, what loads torch, and what stands at the top level."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VLA_MAY_USE = {
    "control.messages",
    "control.address",
    "control.bus",
    "control.captures",
    "control.commands",
    "control.environment",
    "control.report",
    "control.robot",
    "control.host",
    "control.clock",
    "control.config",
    "control.discovery",
    "control.errors",
    "control.head",
    "control.progress",
    "control.reasons",
    "control.episodes",
    "control.recording_format",
    "control.recording_images",
    "control.recording_reader",
}


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def files(folder):
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [("control", ("vla", "sim", "torch", "transformers", "mujoco")), ("vla", ("sim",)), ("sim", ("vla", "torch"))],
)
def test_a_folder_imports_only_what_it_may(folder, forbidden):
    for file in files(folder):
        for module in imports(file):
            assert module.partition(".")[0] not in forbidden, f"{file.relative_to(ROOT)} imports {module}"


def test_the_model_side_knows_only_the_nouns_and_the_bus_of_control():
    for file in files("vla"):
        for module in imports(file):
            if module.partition(".")[0] == "control":
                assert module in VLA_MAY_USE, f"{file.relative_to(ROOT)} imports {module}"


def test_only_the_clock_sleeps_and_nobody_reads_the_wall_clock_or_pickles():
    for file in [*files("control"), *files("vla"), *files("sim"), ROOT / "launch.py"]:
        text = file.read_text()
        assert "pickle" not in set(imports(file)), file
        assert "time.time(" not in text, file
        assert "time.sleep(" not in text or file.name == "clock.py", file


def loaded_by(code):
    script = (
        f"{code}\nimport sys\nprint(*(name for name in ('torch', 'transformers', 'mujoco') if name in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].split() if result.stdout.strip() else []


def test_importing_all_of_control_loads_no_torch():
    places = [file.relative_to(ROOT).with_suffix("").parts for file in files("control")]
    modules = [".".join(parts) for parts in places if parts[-1] != "__init__"]
    assert loaded_by("\n".join(f"import {module}" for module in modules)) == []


@pytest.mark.parametrize("words", [["check"], ["status", "--set", "bus.address=ipc://nobody-here"]])
def test_check_and_the_operators_commands_load_no_torch(words):
    code = f"import sys, launch\nsys.argv = ['launch.py', *{words}]\ntry:\n    launch.main()\n"
    code += "except SystemExit as end:\n    assert end.code in (0, 1), end.code"
    assert "torch" not in loaded_by(code)


def test_the_supervisor_loads_no_torch():
    run = [
        "run",
        "--duration",
        "0.1",
        "--report",
        "/dev/null",
        "--set",
        "bus.address=ipc://nobody-runs",
        "--set",
        "robot.name=remote",
    ]
    stub = "import control.supervisor as s\ns.Supervisor.run = lambda *a: 0\n"
    code = f"import sys, launch\n{stub}sys.argv = ['launch.py', *{run}]\ntry:\n    launch.main()\n"
    code += "except SystemExit as end:\n    assert end.code == 0, end.code"
    assert loaded_by(code) == []


def test_the_top_level_holds_what_the_design_lists():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in tracked.stdout.splitlines()}
    visible = {name for name in top if not name.startswith(".")}
    assert visible == {"vla", "control", "sim", "configs", "tests", "pyproject.toml", "launch.py", "README.md"}
