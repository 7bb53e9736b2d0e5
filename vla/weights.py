"""Qwen2.5-VL's weights: published files in and out, and random ones.

Knows the published layout (config.json, model.safetensors or its shards with an index) and both generations of key
names. Reads safetensors only, checks every key and shape before use, and never runs code from a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
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
from transformers import AutoConfig, AutoModel, Qwen2_5_VLConfig, Qwen2_5_VLModel

from vla.errors import FileFault
from vla.layout import CONFIG_FILE, WEIGHTS_FILE, weight_files
from vla.qwen import QwenBackbone, check_supported
from vla.tokenizer import CONTROL_TOKENS, VOCABULARY

PUBLISHED_FILES = ("*.json", "*.safetensors", "merges.txt")

# Vision and language sizes. "3b" is Qwen/Qwen2.5-VL-3B-Instruct as published. The rotary base of the small ones is low
# because their images are 4 x 4 tokens: with 1e6, neighbouring rows and columns would get all but the same rotation.
_SMALL = {"vocab_size": VOCABULARY, "max_position_embeddings": 8192, "tie_word_embeddings": True, "bos_token_id": 0}
GEOMETRIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "3b": (
        {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
        | {
            "out_hidden_size": 2048,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
        },
        {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36}
        | {"num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 128000, "rms_norm_eps": 1e-6}
        | {"rope_theta": 1e6, "mrope_section": [16, 24, 24], "tie_word_embeddings": True},
    ),
    "embedded": (
        {"depth": 3, "hidden_size": 96, "intermediate_size": 256, "num_heads": 3}
        | {"out_hidden_size": 128, "window_size": 112, "fullatt_block_indexes": [2], "tokens_per_second": 2},
        {
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "rms_norm_eps": 1e-6,
            "rope_theta": 100.0,
        }
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "mrope_section": [4, 6, 6], **_SMALL},
    ),
    "tiny": (
        {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
        | {"out_hidden_size": 32, "window_size": 112, "fullatt_block_indexes": [1], "tokens_per_second": 2},
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "rms_norm_eps": 1e-6, "rope_theta": 100.0}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "mrope_section": [1, 1, 2], **_SMALL},
    ),
}


def pick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the GPU computes in it, float16 on older GPUs (but see `_empty_model`), float32 on the CPU."""
    if device.type != "cuda":
        return torch.float32
    with torch.cuda.device(device):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def geometry_config(name: str) -> Any:
    """The model configuration of one of `GEOMETRIES`."""
    if name not in GEOMETRIES:
        raise ValueError(f"unknown geometry '{name}', known: {', '.join(GEOMETRIES)}")
    vision, text = GEOMETRIES[name]
    text = dict(text)
    rope = {"rope_type": "default", "rope_theta": text.pop("rope_theta"), "mrope_section": text.pop("mrope_section")}
    tied = text.pop("tie_word_embeddings")
    tokens: dict[str, Any] = {}
    if name != "3b":
        text |= {"eos_token_id": CONTROL_TOKENS.index("<|im_end|>")}
        tokens = {
            f"{key}_token_id": CONTROL_TOKENS.index(f"<|{token}|>")
            for key, token in (
                ("image", "image_pad"),
                ("video", "video_pad"),
                ("vision_start", "vision_start"),
                ("vision_end", "vision_end"),
            )
        }
    return Qwen2_5_VLConfig(
        vision_config={"patch_size": 14, "in_channels": 3, **vision},
        text_config={"rope_parameters": rope, **text},
        tie_word_embeddings=tied,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        **tokens,
    )


def random_weights(geometry: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> QwenBackbone:
    """An untrained model of this geometry; the same seed on the same device gives the same weights.

    Deviations follow the fan-in. The usual 0.02 keeps every block of a model 96 and 128 wide near zero: it found
    45 % of the image cells after 150 steps on two views of tests/vla/squares.py, where fan-in found 96 %.
    """
    config = geometry_config(geometry)
    model = _empty_model(config, dtype).to_empty(device=device)
    depth = config.text_config.num_hidden_layers
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name or "ln_q" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, _initial_std(name, parameter, depth), generator=generator)
    _fill_rotary(model, device)
    return QwenBackbone(model).eval()


def _initial_std(name: str, parameter: torch.Tensor, depth: int) -> float:
    if "embed_tokens" in name:
        return 1.0
    std = parameter[0].numel() ** -0.5
    onto_residual = name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight"))
    return std / (2 * depth) ** 0.5 if onto_residual else std


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> QwenBackbone:
    """The model of a folder in the published layout, checked key by key."""
    model = _described_model(folder, dtype)
    wanted = model.state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    state: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        for key, tensor in _tensors(file, device):
            if key == "lm_head.weight":
                continue
            name = _current_name(key)
            if name not in expected:
                raise FileFault(
                    f"{file}: unexpected weight '{key}'; config.json beside it describes a model without it:"
                    " likely files of two models mixed"
                )
            if tuple(tensor.shape) != expected[name]:
                raise FileFault(
                    f"{file}: weight '{key}' expected shape {expected[name]}, got {tuple(tensor.shape)}:"
                    " likely config.json belongs to another model size"
                )
            if not tensor.is_floating_point():
                raise FileFault(
                    f"{file}: weight '{key}' expected a floating point type, got {tensor.dtype}: quantised?"
                )
            state[name] = tensor.to(wanted[name].dtype)
    if missing := sorted(set(expected) - set(state)):
        raise FileFault(
            f"{folder}: {len(missing)} of {len(expected)} weights are missing, first '{missing[0]}':"
            " likely a missing shard or config.json of another model size"
        )
    if broken := [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]:
        raise FileFault(f"{folder}: weight '{broken[0]}' holds NaN or infinity as {dtype}: damaged file or overflow")
    model.load_state_dict(state, assign=True)
    _fill_rotary(model, device)
    return QwenBackbone(model).eval().requires_grad_(False)


def save(backbone: QwenBackbone, folder: Path, dtype: torch.dtype) -> None:
    """Writes config.json and model.safetensors in the published layout (hub key names, no lm_head: it is tied)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = type(backbone.config).from_dict(backbone.config.to_dict())
    config.dtype = dtype
    config.save_pretrained(folder)
    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in backbone.state_dict().items()}
    hub = {
        ("model." + n.removeprefix("language_model.") if n.startswith("language_model.") else n): t
        for n, t in state.items()
    }
    save_file(hub, folder / WEIGHTS_FILE, metadata={"format": "pt"})


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


def _described_model(folder: Path, dtype: torch.dtype) -> Qwen2_5_VLModel:
    """What config.json describes, still without weights."""
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
        config = AutoConfig.from_pretrained(folder)
        problems = check_supported(config)
        model = None if problems else _empty_model(config, dtype)
    except Exception as error:  # transformers' own kinds, and whatever a wrong type meets first
        raise FileFault(
            f"{file}: does not describe a model ({' '.join(str(error).split())}): likely damaged by hand"
        ) from error
    if model is None:
        raise FileFault(f"{file}: {'; '.join(problems)}: a variant of Qwen2.5-VL that this encoder does not know")
    return model


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


def _current_name(key: str) -> str:
    """Key names of all generations -> the names inside `Qwen2_5_VLModel`."""
    if key.startswith(("model.visual.", "model.language_model.")):
        return key.removeprefix("model.")
    if key.startswith("model."):
        return "language_model." + key.removeprefix("model.")
    return key


def _empty_model(config: Any, dtype: torch.dtype) -> Qwen2_5_VLModel:
    """In float16 the vision tower stays in float32: block 31 of the published one goes beyond 65504."""
    with torch.device("meta"):
        model = AutoModel.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if dtype == torch.float16:
        model.visual.float()
    return model


def _fill_rotary(model: Qwen2_5_VLModel, device: torch.device) -> None:
    """Rotary frequencies are no weights: an empty model lacks them, so they are computed here, always in float32."""
    config: Any = model.config
    text, vision = config.text_config, config.vision_config
    widths = {
        "language_model.": (text.hidden_size // text.num_attention_heads, float(text.rope_parameters["rope_theta"])),
        "visual.": (vision.hidden_size // vision.num_heads // 2, 10000.0),
    }
    for name in [name for name, _ in model.named_buffers()]:
        prefix = next((prefix for prefix in widths if name.startswith(prefix)), None)
        if prefix is None or not name.endswith("inv_freq"):
            raise FileFault(f"this version of transformers keeps an unknown buffer '{name}': use the tested range")
        width, theta = widths[prefix]
        frequency = 1.0 / (theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
        module = model.get_submodule(name.rpartition(".")[0])
        setattr(module, name.rpartition(".")[2], frequency.to(device))
