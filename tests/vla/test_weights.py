from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel

from tests.vla.conftest import CPU
from tests.vla.test_qwen import images_for
from vla import weights
from vla.errors import FileFault
from vla.geometry import geometry_config
from vla.prompt import Prompter
from vla.published import to_published
from vla.qwen import QwenBackbone


@pytest.fixture
def folder(tmp_path: Path, tiny: QwenBackbone) -> Path:
    weights.save(tiny, tmp_path, torch.float32)
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def assert_same_output(first: QwenBackbone, second: QwenBackbone, prompter: Prompter) -> None:
    prompt = prompter.prompt("go to the red block", {"a": (56, 84)})
    with torch.inference_mode():
        assert torch.equal(first(images_for(prompt), prompt), second(images_for(prompt), prompt))


def test_saved_weights_come_back_exactly(folder: Path, tiny: QwenBackbone, prompter: Prompter) -> None:
    assert_same_output(weights.load(folder, CPU, torch.float32), tiny, prompter)


def test_the_saved_folder_loads_in_transformers(folder: Path, tiny: QwenBackbone) -> None:
    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    for name, tensor in to_published(tiny).items():
        assert torch.equal(model.model.state_dict()[name], tensor)


@pytest.mark.parametrize("kind", [Qwen2_5_VLModel, Qwen2_5_VLForConditionalGeneration])
def test_what_transformers_saves_loads(
    kind: type, folder: Path, tmp_path: Path, tiny: QwenBackbone, prompter: Prompter
) -> None:
    kind.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    assert_same_output(weights.load(tmp_path / "theirs", CPU, torch.float32), tiny, prompter)


def test_names_of_version_5_an_lm_head_and_shards_load(folder: Path, tiny: QwenBackbone, prompter: Prompter) -> None:
    state = {f"model.{name}": tensor.contiguous() for name, tensor in to_published(tiny).items()}
    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"].clone()
    (folder / "model.safetensors").unlink()
    halves = [dict(list(state.items())[::2]), dict(list(state.items())[1::2])]
    weight_map = {}
    for number, half in enumerate(halves):
        save_file(half, folder / f"model-{number}.safetensors")
        weight_map |= dict.fromkeys(half, f"model-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same_output(weights.load(folder, CPU, torch.float32), tiny, prompter)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(FileFault, match="weight file model-1.safetensors is missing.*interrupted download"):
        weights.load(folder, CPU, torch.float32)


def test_a_truncated_file_is_named_with_the_likely_cause(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(FileFault, match=r"model.safetensors: not a complete safetensors file.*interrupted download"):
        weights.load(folder, CPU, torch.float32)


def test_a_missing_weight_is_named(folder: Path) -> None:
    rewrite(folder, lambda state: {k: v for k, v in state.items() if k != "model.norm.weight"})
    with pytest.raises(FileFault, match=r"1 of \d+ weights are missing, first 'language_model.norm.weight'"):
        weights.load(folder, CPU, torch.float32)


def test_an_unexpected_weight_is_named(folder: Path) -> None:
    rewrite(folder, lambda state: state | {"model.layers.9.extra": torch.zeros(1)})
    with pytest.raises(FileFault, match=r"unexpected weight 'model.layers.9.extra'"):
        weights.load(folder, CPU, torch.float32)


def test_a_weight_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    rewrite(folder, lambda state: state | {"model.norm.weight": torch.zeros(48)})
    with pytest.raises(FileFault, match=r"'model.norm.weight' expected shape \(32,\), got \(48,\)"):
        weights.load(folder, CPU, torch.float32)


def test_weights_that_are_not_numbers_are_refused(folder: Path) -> None:
    rewrite(folder, lambda state: state | {"model.norm.weight": torch.full((32,), float("nan"))})
    with pytest.raises(FileFault, match="'model.norm.weight' holds NaN or infinity as torch.float32"):
        weights.load(folder, CPU, torch.float32)


def test_another_architecture_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "qwen2_vl"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileFault, match="model_type expected 'qwen2_5_vl', got 'qwen2_vl'"):
        weights.load(folder, CPU, torch.float32)


@pytest.mark.parametrize("change", [{"text_config": "none"}, {"vision_config": {"hidden_size": "wide"}}])
def test_a_config_with_a_wrong_type_is_named(folder: Path, change: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileFault, match=r"config.json: does not describe a model \(.*\): likely damaged by hand"):
        weights.load(folder, CPU, torch.float32)


@pytest.mark.parametrize("text", ["[1, 2]", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', "{"])
def test_an_index_of_another_kind_is_named(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(FileFault, match="index.json: expected a JSON map with 'weight_map'.*interrupted download"):
        weights.load(folder, CPU, torch.float32)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFault, match=r"config.json is missing.*wrong path"):
        weights.load(tmp_path, CPU, torch.float32)


def test_a_hub_id_that_is_not_here_and_cannot_be_fetched_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileFault, match="'Qwen/Qwen2.5-VL-3B-Instruct-nowhere' is not in the Hugging Face cache"):
        weights.resolve("Qwen/Qwen2.5-VL-3B-Instruct-nowhere")


@pytest.mark.parametrize("kind", ["ReadTimeout", "RemoteProtocolError"])
def test_a_download_that_the_network_ends_is_a_file_fault(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = importlib.import_module(HTTPError.__module__.partition(".")[0])

    def cut(*args: object, **options: object) -> str:
        raise getattr(client, kind)("cut")

    monkeypatch.setattr(weights, "snapshot_download", cut)
    with pytest.raises(FileFault, match=rf"'org/name' could not be downloaded \({kind}.*the network"):
        weights.resolve("org/name")


def test_a_name_that_is_no_hub_id_is_a_file_fault() -> None:
    with pytest.raises(FileFault, match="'a/b/c' is neither a folder nor a hub id: expected org/name"):
        weights.resolve("a/b/c")


def test_the_3b_geometry_has_the_published_parameter_count() -> None:
    with torch.device("meta"):
        model = Qwen2_5_VLModel(geometry_config("3b"))
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_754_622_976


def test_saved_config_reads_back_the_rotary_base(folder: Path) -> None:
    assert AutoConfig.from_pretrained(folder).text_config.rope_parameters["rope_theta"] == 100.0
