"""Qwen2.5-VL's weights: published files in and out, and random ones.

Knows the published layout (config.json, model.safetensors or its shards with an index). Reads safetensors only, checks
every key and shape before use, and never runs code from a checkpoint. Weights come in one by one, and each product can
be quantised (`finish`) as soon as it is whole, so the model never stands in memory twice, nor ever whole in 16 bit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] - of httpx or httpx2, by release
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig

from vla.errors import FileFault
from vla.geometry import geometry_config
from vla.layout import CONFIG_FILE, WEIGHTS_FILE, weight_files
from vla.published import current_name, hub_name, places, to_published
from vla.qwen import QwenBackbone
from vla.sizes import CHANNELS, MERGE, PATCH, TEMPORAL

PUBLISHED_FILES = ("*.json", "*.safetensors", "merges.txt")
Finish = Callable[[str, nn.Linear], nn.Module]  # a product by its name, once its weights are in -> what replaces it


def random_weights(
    geometry: str,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    finish: Finish | None = None,
    layers: int | None = None,
    vision_dtype: torch.dtype | None = None,
) -> QwenBackbone:
    """An untrained model of this geometry; the same seed on the same device gives the same weights.

    Deviations follow the fan-in. The usual 0.02 keeps every block of a model 96 and 128 wide near zero: it found
    45 % of the image cells after 150 steps on two views of tests/vla/squares.py, where fan-in found 96 %.
    """
    backbone = _empty(geometry_config(geometry), layers)
    depth = backbone.config.text_config.num_hidden_layers
    generator = torch.Generator(device).manual_seed(seed)
    filling = _Filling(backbone, device, dtype, vision_dtype or dtype, finish)
    for name, place in filling.places.items():
        part = torch.zeros(place.shape, device=device, dtype=filling.dtype_of(name))
        if "norm" in name or "ln_q" in name:
            part.fill_(1.0)
        elif not name.endswith("bias"):
            part.normal_(0.0, _initial_std(name, part, depth), generator=generator)
        filling.put(name, part)
    return backbone.eval()


def _initial_std(name: str, weight: torch.Tensor, depth: int) -> float:
    if "embed_tokens" in name:
        return 1.0
    std = weight[0].numel() ** -0.5
    onto_residual = name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight"))
    return std / (2 * depth) ** 0.5 if onto_residual else std


def load(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    finish: Finish | None = None,
    layers: int | None = None,
    vision_dtype: torch.dtype | None = None,
) -> QwenBackbone:
    """The model of a folder in the published layout, checked key by key; with no more than `layers` language layers.

    The vision tower may compute in a type of its own.
    """
    whole = describe(folder)
    backbone = _empty(whole, layers)
    filling = _Filling(backbone, device, dtype, vision_dtype or dtype, finish)
    expected = places(whole)
    read: set[str] = set()
    for file in weight_files(folder):
        for key, tensor in _tensors(file, device):
            if key == "lm_head.weight":
                continue
            name = current_name(key)
            if name not in expected:
                raise FileFault(
                    f"{file}: unexpected weight '{key}'; config.json beside it describes a model without it:"
                    " likely files of two models mixed"
                )
            if tuple(tensor.shape) != expected[name].shape:
                raise FileFault(
                    f"{file}: weight '{key}' expected shape {expected[name].shape}, got {tuple(tensor.shape)}:"
                    " likely config.json belongs to another model size"
                )
            if not tensor.is_floating_point():
                raise FileFault(
                    f"{file}: weight '{key}' expected a floating point type, got {tensor.dtype}: quantised?"
                )
            if name in read:
                raise FileFault(f"{file}: weight '{key}' stands there twice: likely files of two models mixed")
            read.add(name)
            if name not in filling.places:  # of a language layer that is left out
                continue
            kept = filling.dtype_of(name)
            if not torch.isfinite(tensor.to(kept)).all():
                raise FileFault(f"{file}: weight '{key}' holds NaN or infinity as {kept}: damaged file or overflow")
            filling.put(name, tensor)
    if missing := sorted(set(expected) - read):
        raise FileFault(
            f"{folder}: {len(missing)} of {len(expected)} weights are missing, first '{missing[0]}':"
            " likely a missing shard or config.json of another model size"
        )
    return backbone.eval().requires_grad_(False)


class _Filling:
    """Puts published weights into a backbone without storage, one by one."""

    def __init__(
        self,
        backbone: QwenBackbone,
        device: torch.device,
        dtype: torch.dtype,
        vision_dtype: torch.dtype,
        finish: Finish | None,
    ) -> None:
        self.places = places(backbone.config)
        self._backbone, self._device, self._finish = backbone, device, finish
        self._dtype, self._vision_dtype = dtype, vision_dtype
        self._left = Counter(self._module_name(place.name) for place in self.places.values())

    def dtype_of(self, name: str) -> torch.dtype:
        return self._vision_dtype if name.startswith("visual.") else self._dtype

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Copies one published weight to where it belongs; a product that is whole with it is finished."""
        place = self.places[name]
        module_name = self._module_name(place.name)
        module, key = self._backbone.get_submodule(module_name), place.name.rpartition(".")[2]
        parameter = getattr(module, key)
        if parameter.device.type == "meta":
            parameter = nn.Parameter(torch.zeros(parameter.shape, device=self._device, dtype=self.dtype_of(name)))
            setattr(module, key, parameter)
        place.of(parameter.data).copy_(tensor)
        self._left[module_name] -= 1
        if self._left[module_name] == 0 and isinstance(module, nn.Linear) and self._finish is not None:
            parent, _, child = module_name.rpartition(".")
            setattr(self._backbone.get_submodule(parent), child, self._finish(module_name, module))

    @staticmethod
    def _module_name(name: str) -> str:
        return name.rpartition(".")[0]


def save(backbone: QwenBackbone, folder: Path, dtype: torch.dtype) -> None:
    """Writes config.json and model.safetensors in the published layout (hub key names, no lm_head: it is tied)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = type(backbone.config).from_dict(backbone.config.to_dict())
    config.dtype = dtype
    config.save_pretrained(folder)
    state = {hub_name(name): part.to("cpu", dtype).contiguous() for name, part in to_published(backbone).items()}
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def resolve(name: str) -> Path:
    """The local folder of a hub id such as `Qwen/Qwen2.5-VL-3B-Instruct`, downloaded if it is not in the cache."""
    try:
        return Path(snapshot_download(name, allow_patterns=list(PUBLISHED_FILES)))
    except LocalEntryNotFoundError as error:
        raise FileFault(
            f"model '{name}' is not in the Hugging Face cache and cannot be downloaded ({error.__class__.__name__}):"
            f" on a machine with network run `hf download {name}`, or copy the folder and give its path"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileFault(f"model '{name}' does not exist on the hub, or needs a login: check the spelling") from error
    except HFValidationError as error:
        raise FileFault(f"model '{name}' is neither a folder nor a hub id: expected org/name ({error})") from error
    except (HTTPError, OSError) as error:
        raise FileFault(
            f"model '{name}' could not be downloaded ({error.__class__.__name__}: {error}):"
            " likely the network, try again"
        ) from error


def check_supported(config: Any) -> list[str]:
    """What in this configuration the backbone does not know, in plain words; empty when all is well."""
    vision, text = config.vision_config, config.text_config
    heads = text.hidden_size // text.num_attention_heads
    wanted = (
        ("vision_config.patch_size", vision.patch_size, PATCH),
        ("vision_config.temporal_patch_size", vision.temporal_patch_size, TEMPORAL),
        ("vision_config.spatial_merge_size", vision.spatial_merge_size, MERGE),
        ("vision_config.in_channels", vision.in_channels, CHANNELS),
        ("vision_config.hidden_act", vision.hidden_act, "silu"),
        ("vision_config.out_hidden_size", vision.out_hidden_size, text.hidden_size),
        ("text_config.hidden_act", text.hidden_act, "silu"),
        ("text_config.use_sliding_window", bool(text.use_sliding_window), False),
        ("text_config.rope_parameters.rope_type", text.rope_parameters.get("rope_type", "default"), "default"),
        ("sum of text_config.rope_parameters.mrope_section", sum(text.rope_parameters["mrope_section"]), heads // 2),
    )
    return [f"{name} is {got}, expected {expected}" for name, got, expected in wanted if got != expected]


def describe(folder: Path) -> Any:
    """What config.json describes, known to be a model that this backbone can be."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise FileFault(f"{file} is missing: expected a Qwen2.5-VL folder in the published layout; likely a wrong path")
    try:
        kind = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise FileFault(
            f"{file}: expected a JSON map, got something else ({error}): likely an interrupted copy"
        ) from error
    if kind != "qwen2_5_vl":
        raise FileFault(
            f"{file}: model_type expected 'qwen2_5_vl', got {kind!r}: this folder holds another architecture"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        problems = check_supported(config)
        if not problems:
            _empty(config)
    except Exception as error:  # transformers' own kinds, and whatever a wrong type meets first
        raise FileFault(
            f"{file}: does not describe a model ({' '.join(str(error).split())}): likely damaged by hand"
        ) from error
    if problems:
        raise FileFault(f"{file}: {'; '.join(problems)}: a variant of Qwen2.5-VL that this encoder does not know")
    return config


def _tensors(file: Path, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(file, framework="pt", device=str(device)) as opened:
            for key in opened.keys():  # noqa: SIM118 - not a dict
                yield key, opened.get_tensor(key)
    except SafetensorError as error:
        size = file.stat().st_size
        raise FileFault(
            f"{file}: not a complete safetensors file ({size} bytes, {error}):"
            " likely an interrupted download, fetch it again"
        ) from error


def shortened(config: Any, layers: int | None) -> Any:
    """The configuration with its first `layers` language layers only; None leaves it. Raises FileFault."""
    depth = config.text_config.num_hidden_layers
    if layers is None or layers == depth:
        return config
    if not 1 <= layers <= depth:
        raise FileFault(f"language_layers: expected 1 to {depth} for this model, got {layers}")
    config = type(config).from_dict(config.to_dict())
    config.text_config.num_hidden_layers = layers
    config.text_config.layer_types = config.text_config.layer_types[:layers]
    return config


def _empty(config: Any, layers: int | None = None) -> QwenBackbone:
    """The modules without storage; with the first `layers` language layers only."""
    with torch.device("meta"):
        return QwenBackbone(shortened(config, layers))
