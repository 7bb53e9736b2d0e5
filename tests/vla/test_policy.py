from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from control.config import load_config
from control.errors import MismatchError
from control.messages import RobotSpec
from tests.vla import squares
from tests.vla.conftest import edit_yaml, frames, instruction, tiny_spec
from vla import policy
from vla.assemble import load_encoder
from vla.commands import adapted
from vla.errors import FileFault
from vla.flow import FlowMatchingHead
from vla.head import HoldHead, RegressionHead
from vla.policy import action_head, load_head, view_aggregation, view_pooling
from vla.policy_spec import HeadChoice, PolicySpec, PoolingChoice, WindowChoice, identify, load_spec, verify

# Of a regression head without a window, since the first policies: a folder with other names would not load.
OLD_WEIGHTS = {
    f"{layer}.{what}"
    for layer in ("token_norm", "trunk.0", "trunk.1", "trunk.3", "trunk.4", "out")
    for what in ("weight", "bias")
}
OLD_WEIGHTS |= {"state_mean", "state_std", "step_mean", "step_std"}


def robot(**changes: object) -> RobotSpec:
    fields: dict[str, object] = {
        "name": "desk",
        "cameras": {"front": (56, 56), "wrist": (56, 56), "side": (480, 640)},
        "state_names": squares.STATES,
        "action_names": squares.STATES,
        "action_low": np.full(7, -1.0),
        "action_high": np.full(7, 1.0),
        "max_velocity": np.ones(7),
        "action_period_s": 0.1,
    }
    return RobotSpec(**(fields | changes))  # type: ignore[arg-type]


def test_a_policy_comes_back_as_it_was_saved(tmp_path: Path, write_policy: Callable[..., PolicySpec]) -> None:
    spec = write_policy(tmp_path)
    assert load_spec(tmp_path) == spec
    assert verify(tmp_path) == spec
    head = load_head(tmp_path)
    assert isinstance(head, RegressionHead)
    features = load_encoder(tmp_path, "cpu", 1).encode(frames(), instruction())
    assert head.policy_id == features.policy_id == identify(tmp_path)
    assert np.isfinite(head.act(features.tokens, np.zeros(7), 100.0)).all()


def test_a_flow_matching_policy_with_a_window_comes_back_as_it_was_saved(
    tmp_path: Path, write_policy: Callable[..., PolicySpec]
) -> None:
    window = WindowChoice(samples=8, rate_hz=100.0)
    spec = write_policy(tmp_path, head=HeadChoice(kind="flow-matching", hidden=16, steps=3), window=window)
    head = load_head(tmp_path)
    assert load_spec(tmp_path) == verify(tmp_path) == spec
    assert isinstance(head, FlowMatchingHead)
    assert (head.steps, head.window_samples, head.policy_id) == (3, 8, identify(tmp_path))
    assert torch.equal(head.start, action_head(spec).start)  # type: ignore[union-attr]


def test_the_weights_of_another_kind_of_head_are_refused(policy_folder: Path) -> None:
    edit_yaml(policy_folder, head={"kind": "flow-matching", "hidden": 16})
    with pytest.raises(FileFault, match=r"weight 'head\.\w.*' is missing: policy.yaml beside it describes another"):
        load_head(policy_folder)


def test_a_policy_from_before_windows_and_kinds_loads_and_acts_as_it_would(policy_folder: Path) -> None:
    seen = np.ones((2, 32), dtype=np.float32), np.zeros(7), 100.0
    expected = load_head(policy_folder).act(*seen)
    fields = yaml.safe_load((policy_folder / "policy.yaml").read_text())
    del fields["window"], fields["head"]["steps"]
    (policy_folder / "policy.yaml").write_text(yaml.safe_dump(fields))
    names = {
        name.partition(".")[2] for name in load_file(policy_folder / "head.safetensors") if name.startswith("head")
    }
    assert names == OLD_WEIGHTS
    np.testing.assert_array_equal(load_head(policy_folder).act(*seen), expected)


def test_a_head_that_holds_has_no_weights_to_build() -> None:
    with pytest.raises(ValueError, match="has head.kind 'hold', which has no weights to build or to train"):
        action_head(tiny_spec(head=HeadChoice(kind="hold")))


@pytest.mark.parametrize(
    ("given", "misfit"),
    [
        ((16, 100.0), ""),
        (
            (0, 100.0),
            "the policy takes a window of 16 states at 100 Hz, the config gives none at 100 Hz:"
            " set robot.history_samples: 16 and robot.host_hz: 100",
        ),
        (
            (8, 200.0),
            "the policy takes a window of 16 states at 100 Hz, the config gives 8 at 200 Hz:"
            " set robot.history_samples: 16 and robot.host_hz: 100",
        ),
        ((16, 50.0), "16 states at 100 Hz, the config gives 16 at 50 Hz"),
    ],
)
def test_a_config_without_the_policys_window_is_named_with_both_numbers(given: tuple[int, float], misfit: str) -> None:
    found = tiny_spec(window=WindowChoice(samples=16, rate_hz=100.0)).find_window_misfit(*given)
    assert misfit in found and bool(misfit) == bool(found)
    assert tiny_spec().find_window_misfit(*given) == ""


def test_check_and_control_refuse_a_config_without_the_policys_window(policy_folder: Path) -> None:
    edit_yaml(policy_folder, window={"samples": 16, "rate_hz": 100.0})
    spec = load_spec(policy_folder)
    sim = Path(__file__).parents[2] / "configs" / "sim.yaml"
    with pytest.raises(MismatchError, match="does not fit this config: the policy takes a window of 16 states at 100"):
        adapted(load_config(sim), spec)
    assert adapted(load_config(sim, ["robot.history_samples=16"]), spec) == spec


def test_saving_again_gives_the_same_id_and_any_change_another(policy_folder: Path) -> None:
    before = identify(policy_folder)
    parts = {"head": action_head(load_spec(policy_folder))}
    state = load_file(policy_folder / "head.safetensors")
    save_file(state, policy_folder / "head.safetensors")
    assert len(before) == 12
    for file in ("backbone/config.json", "policy.yaml"):
        (policy_folder / file).write_text((policy_folder / file).read_text() + "\n")
        assert identify(policy_folder) != before
        before = identify(policy_folder)
    assert policy.save(policy_folder, load_spec(policy_folder), parts) != before


def test_random_weights_never_carry_the_id_of_the_trained_policy(policy_folder: Path) -> None:
    head = load_head(policy_folder, random_weights=True)
    encoder = load_encoder(policy_folder, "cpu", 1, random_weights=True)
    assert isinstance(head, HoldHead)
    assert head.policy_id == encoder.policy_id == identify(policy_folder, random_weights=True)
    assert head.policy_id != load_head(policy_folder).policy_id


def test_a_published_backbone_needs_no_files_but_the_yaml(tmp_path: Path) -> None:
    spec = tiny_spec(backbone="Qwen/Qwen2.5-VL-3B-Instruct", pooling=PoolingChoice(), head=HeadChoice(kind="hold"))
    parts = {"pool": view_pooling(spec), "aggregate": view_aggregation(spec)}
    assert policy.save(tmp_path, spec, parts) == load_head(tmp_path).policy_id
    assert load_head(tmp_path, random_weights=True).policy_id != load_head(tmp_path).policy_id
    assert [path.name for path in tmp_path.iterdir()] == ["policy.yaml"]
    encoder = load_encoder(tmp_path, "cpu", 1, random_weights=True)
    assert encoder.encode(frames(), instruction()).tokens.shape == (2, 32)


def test_a_policy_says_everything_that_does_not_fit_a_robot() -> None:
    spec = tiny_spec()
    assert spec.fits(robot()) == []
    other = robot(cameras={"front": (480, 640)}, state_names=("a",), action_period_s=0.05)
    assert spec.fits(other) == [
        "camera 'front' gives 480x640, the policy was trained at 56x56 (height x width)",
        "the policy needs camera 'wrist', robot 'desk' has front",
        "the policy's states are j1, j2, j3, j4, j5, j6, gripper; the robot's are a",
        "the policy acts every 0.1 s, the robot every 0.05 s",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizn": 8}, "horizn: Extra inputs are not permitted"),
        ({"horizon": "8"}, "horizon: Input should be a valid integer, got '8'"),
        ({"cameras": {"front": [20, 56]}}, "cameras.front.0: Input should be greater than or equal to 28"),
        ({"image_size": [60, 56]}, "image_size.0: Input should be a multiple of 28"),
        ({"period_s": float("nan")}, "period_s"),
        ({"head": {"kind": "diffusion"}}, "head.kind: Input should be 'hold', 'regression' or 'flow-matching'"),
        ({"head": {"kind": "flow-matching", "steps": 33}}, "head.steps: Input should be less than or equal to 32"),
        ({"window": {"samples": 1, "rate_hz": 100.0}}, "window.samples: Input should be greater than or equal to 2"),
        ({"window": {"samples": 16}}, "window.rate_hz: Field required"),
        (
            {"window": {"samples": 16, "rate_hz": 100.0}, "head": {"kind": "hold"}},
            "window needs a trained head: head.kind 'hold' looks at the newest state alone",
        ),
        ({"cameras": {"a": [56, 56], "b": [112, 112]}}, "attention pooling needs one image size for all cameras"),
    ],
)
def test_a_wrong_field_of_policy_yaml_is_named(policy_folder: Path, changes: dict, message: str) -> None:
    edit_yaml(policy_folder, **changes)
    with pytest.raises(FileFault, match="policy.yaml: .*" + message.replace("(", r"\(")):
        load_spec(policy_folder)


def test_a_key_that_stands_twice_is_refused(policy_folder: Path) -> None:
    file = policy_folder / "policy.yaml"
    file.write_text(file.read_text() + "horizon: 4\n")
    with pytest.raises(FileFault, match=r"policy.yaml: .*line \d+: key 'horizon' stands twice, remove one"):
        load_spec(policy_folder)


def test_a_folder_without_a_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFault, match="policy.yaml is missing: expected a policy folder; likely a wrong path"):
        load_head(tmp_path)


def test_a_missing_backbone_is_named(tmp_path: Path) -> None:
    spec = tiny_spec()
    with pytest.raises(FileFault, match="backbone is missing: policy.yaml names it"):
        policy.save(tmp_path, spec, {"head": action_head(spec)})


@pytest.mark.parametrize("backbone", ["{absolute}", "../elsewhere", "org/name"])
def test_a_backbone_may_be_any_local_folder(tmp_path: Path, policy_folder: Path, backbone: str) -> None:
    expected = load_encoder(policy_folder, "cpu", 1).encode(frames(), instruction()).tokens
    spelled = backbone.format(absolute=tmp_path / "elsewhere")
    (policy_folder / spelled).parent.mkdir(exist_ok=True)
    (policy_folder / "backbone").rename(policy_folder / spelled)
    edit_yaml(policy_folder, backbone=spelled)
    verify(policy_folder)
    encoder = load_encoder(policy_folder, "cpu", 1)
    assert encoder.policy_id == load_head(policy_folder).policy_id
    np.testing.assert_array_equal(encoder.encode(frames(), instruction()).tokens, expected)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("head.safetensors", "head.safetensors is missing: expected the weights of pooling and head"),
        ("backbone/config.json", "config.json is missing: .*likely an incomplete copy"),
        ("backbone/tokenizer.json", "tokenizer.json is missing: .*likely an incomplete copy"),
        ("backbone/model.safetensors", "weight file model.safetensors is missing"),
    ],
)
def test_verify_names_a_missing_file(policy_folder: Path, file: str, message: str) -> None:
    (policy_folder / file).unlink()
    with pytest.raises(FileFault, match=message):
        verify(policy_folder)
    assert verify(policy_folder, random_weights=True).name == "tiny"


@pytest.mark.parametrize("file", ["head.safetensors", "backbone/model.safetensors"])
@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_verify_names_a_file_that_was_cut(policy_folder: Path, file: str, kept: int) -> None:
    path = policy_folder / file
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FileFault, match=f"{path.name}: not a complete safetensors file .*interrupted"):
        verify(policy_folder)


def test_verify_loads_no_torch(policy_folder: Path) -> None:
    code = f"import sys, pathlib; from vla.policy_spec import verify; verify(pathlib.Path({str(policy_folder)!r}))"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_files_that_are_not_loaded_do_not_change_the_id(policy_folder: Path) -> None:
    before = identify(policy_folder)
    (policy_folder / "backbone" / "notes.txt").write_text("stray")
    assert identify(policy_folder) == before


def test_a_truncated_head_is_named(policy_folder: Path) -> None:
    file = policy_folder / "head.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(FileFault, match="head.safetensors: not a complete safetensors file.*interrupted copy"):
        load_head(policy_folder)


def test_a_missing_head_is_named(policy_folder: Path) -> None:
    (policy_folder / "head.safetensors").unlink()
    with pytest.raises(FileFault, match="head.safetensors is missing: expected the weights of pooling and head"):
        load_head(policy_folder)


def test_a_head_of_another_shape_is_named(policy_folder: Path) -> None:
    edit_yaml(policy_folder, horizon=5)
    with pytest.raises(FileFault, match=r"'head\.\w.*' expected shape \(.*\), got \(.*describes another policy"):
        load_head(policy_folder)


def test_weights_that_are_not_numbers_are_refused(policy_folder: Path) -> None:
    file = policy_folder / "head.safetensors"
    state = load_file(file)
    state["head.out.bias"][0] = float("nan")
    save_file(state, file)
    with pytest.raises(FileFault, match="'head.out.bias' holds NaN or infinity"):
        load_head(policy_folder)


def test_a_diverged_policy_is_not_saved(tmp_path: Path) -> None:
    spec = tiny_spec()
    head = action_head(spec)
    torch.nn.init.constant_(head.out.bias, float("inf"))
    with pytest.raises(FileFault, match="'head.out.bias' holds NaN or infinity: not saved"):
        policy.save(tmp_path, spec, {"head": head})
