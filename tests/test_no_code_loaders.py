"""No file, message or option can bring code with it: nothing here loads what is able to run.

Walks the syntax tree of everything that is shipped. What is allowed stands in `ALLOWED` with its reason.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [ROOT / name for name in ("control", "vla", "sim")]
FILES = [ROOT / "launch.py", *(file for folder in FOLDERS for file in sorted(folder.rglob("*.py")))]

MODULES = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "jsonpickle", "runpy"}
MODULES |= {"code", "codeop", "imp"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    *(f"builtins.{name}" for name in BUILTINS),
    *(f"torch.{name}" for name in ("load", "jit.load", "hub.load", "export.load", "ops.load_library", "package")),
    *(f"yaml.{name}" for name in ("load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all")),
    *(f"os.{name}" for name in ("system", "popen")),
    *(f"subprocess.{name}" for name in ("getoutput", "getstatusoutput")),
    *(f"importlib.{name}" for name in ("import_module", "reload", "metadata.entry_points")),
    *(f"importlib.util.{name}" for name in ("spec_from_file_location", "module_from_spec")),
    *(f"ctypes.{name}" for name in ("CDLL", "PyDLL", "cdll.LoadLibrary")),
    "pandas.read_pickle",
    "asyncio.create_subprocess_shell",
}

# file, what -> why it is no way in
ALLOWED = {
    ("control/discovery.py", "importlib.metadata.entry_points"): "a config names a robot among installed packages",
    ("control/recording_format.py", "importlib.import_module"): "an extra, by names that stand in our own code",
    ("vla/policy_spec.py", "yaml.load"): "with a subclass of SafeLoader, checked below",
    ("sim/gl.py", "ctypes.CDLL"): "the system's OpenGL, by names that stand in our own code",
    ("vla/census.py", "ctypes.CDLL"): "this very process, to give back its memory",
    ("control/memory.py", "ctypes.CDLL"): "this very process, to give back its memory",
    ("control/child.py", "ctypes.CDLL"): "this very process, to ask the kernel that it ends with its parent",
}


def loaders(source: str) -> Iterator[str]:
    """Everything in a source that could run what it loads, by its full name."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
                if top in MODULES:
                    yield alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            if node.module.partition(".")[0] in MODULES:
                yield node.module
    for node in ast.walk(tree):
        name = full_name(node, names)
        is_read = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        if name in CALLS or (is_read and name in BUILTINS):
            yield name
        if isinstance(node, ast.Call):
            yield from bad_arguments(full_name(node.func, names), node)


def full_name(node: ast.AST, names: dict[str, str]) -> str:
    """`np.load` as `numpy.load`; empty for what has no name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value, names)}.{node.attr}"
    return ""


def bad_arguments(name: str, call: ast.Call) -> Iterator[str]:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name == "numpy.load" and given.get("allow_pickle") != "False":
        yield "numpy.load without allow_pickle=False"
    if given.get("shell", "False") != "False":
        yield f"{name} with shell={given['shell']}"
    if given.get("trust_remote_code", "False") != "False":
        yield f"{name} with trust_remote_code={given['trust_remote_code']}"
    *_, owner, what = ("", *name.split("."))
    if what == "from_pretrained" and owner.startswith("Auto") and "trust_remote_code" not in given:
        yield f"{owner}.{what}"


def test_nothing_shipped_loads_what_can_run():
    found = {(file.relative_to(ROOT).as_posix(), what) for file in FILES for what in loaders(file.read_text())}
    assert found - ALLOWED.keys() == set()
    assert ALLOWED.keys() - found == set(), "what is allowed and no longer there"


def test_the_yaml_loader_of_a_policy_is_a_safe_one():
    tree = ast.parse((ROOT / "vla" / "policy_spec.py").read_text())
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = {node.name: [ast.unparse(base) for base in node.bases] for node in classes}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "yaml.load"]
    assert [bases[ast.unparse(call.args[1])] for call in calls] == [["yaml.SafeLoader"]]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads as read", "pickle"),
        ("import joblib.numpy_pickle", "joblib.numpy_pickle"),
        ("import torch\ntorch.load('x', weights_only=True)", "torch.load"),
        ("from torch import load\nload('x')", "torch.load"),
        ("import torch as t\nt.hub.load('x', 'y')", "torch.hub.load"),
        ("import numpy as np\nnp.load('x')", "numpy.load without allow_pickle=False"),
        ("import numpy as np\nnp.load('x', allow_pickle=flag)", "numpy.load without allow_pickle=False"),
        ("import yaml\nyaml.load(text, yaml.Loader)", "yaml.load"),
        ("from yaml import unsafe_load\nunsafe_load(text)", "yaml.unsafe_load"),
        ("eval('1')", "eval"),
        ("run = exec", "exec"),
        ("import builtins\nbuiltins.exec('x')", "builtins.exec"),
        ("compile('1', '', 'eval')", "compile"),
        ("__import__('os')", "__import__"),
        ("import importlib\nimportlib.import_module(name)", "importlib.import_module"),
        ("from importlib import util\nutil.spec_from_file_location('x')", "importlib.util.spec_from_file_location"),
        ("import os\nos.system('x')", "os.system"),
        ("import subprocess\nsubprocess.run('x', shell=True)", "subprocess.run with shell=True"),
        ("AutoModel.from_pretrained('x')", "AutoModel.from_pretrained"),
        ("load(x, trust_remote_code=True)", "load with trust_remote_code=True"),
        ("load(x, trust_remote_code=settings.trust)", "load with trust_remote_code=settings.trust"),
    ],
)
def test_a_loader_is_found(line, name):
    assert list(loaders(f"def work():\n    pass\n{line}\n")) == [name]


@pytest.mark.parametrize(
    "line",
    [
        "import re\nre.compile('x')",
        "import torch\nmodel = torch.compile(model).eval()",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "import yaml\nyaml.safe_load(text)",
        "import json\njson.load(file)",
        "from safetensors.torch import load_file\nload_file('x')",
        "from control.commands import load\nload(config)",
        "class Config:\n    compile: str = 'eager'",
        "import subprocess\nsubprocess.run(['x'], shell=False)",
        "AutoModel.from_pretrained('x', trust_remote_code=False)",
    ],
)
def test_what_cannot_run_is_let_be(line):
    assert list(loaders(line)) == []
