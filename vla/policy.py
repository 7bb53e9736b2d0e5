"""The weights of a policy folder: `head.safetensors` read and written, and the modules of the right shape.

Loads the head alone, with torch and without the language model: the controller imports this file. The encoder's half is
loaded by encoder.py, the rest of the folder is described in policy_spec.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from control.head import ActionHead
from vla.errors import FileFault
from vla.flow import FlowMatchingHead
from vla.head import HoldHead, RegressionHead
from vla.policy_spec import HEAD_FILE, POLICY_FILE, PolicySpec, identify, load_spec
from vla.pooling import ViewAggregation, ViewPooling
from vla.sizes import SIDE

Part = Literal["pool", "aggregate", "head"]


def view_pooling(spec: PolicySpec) -> ViewPooling:
    """Untrained pooling module of the right shape."""
    height, width = next(iter(spec.model_sizes.values()))
    image_tokens = (height // SIDE) * (width // SIDE)
    return ViewPooling(spec.pooling.view, spec.width, image_tokens, spec.pooling.queries)


def view_aggregation(spec: PolicySpec) -> ViewAggregation:
    """Untrained aggregation module of the right shape."""
    return ViewAggregation(spec.pooling.aggregation, spec.width, len(spec.cameras))


def action_head(spec: PolicySpec, policy_id: str = "") -> RegressionHead | FlowMatchingHead:
    """Untrained head of the kind and shape that the policy names. Raises ValueError for one that has no weights."""
    match spec.head.kind:
        case "regression":
            return RegressionHead(*_head_shape(spec, policy_id))
        case "flow-matching":
            return FlowMatchingHead(*_head_shape(spec, policy_id), steps=spec.head.steps)
        case kind:
            raise ValueError(f"policy '{spec.name}' has head.kind '{kind}', which has no weights to build or to train")


def load_head(folder: Path, random_weights: bool = False) -> ActionHead:
    """The controller's half of a policy, on the CPU in float32. With `random_weights` it is a head that holds still."""
    spec = load_spec(folder)
    policy_id = identify(folder, random_weights)
    if random_weights or spec.head.kind == "hold":
        return HoldHead(spec.state_names, spec.action_names, spec.horizon, spec.period_s, policy_id)
    head = action_head(spec, policy_id)
    load_part(folder, "head", head)
    return head.eval().requires_grad_(False)


def load_part(folder: Path, part: Part, module: nn.Module) -> None:
    """Fills one module with its weights from head.safetensors, checked key by key."""
    wanted = {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
    if not wanted:
        return
    file = folder / HEAD_FILE
    state = {key: tensor for key, tensor in _read(file).items() if key.startswith(f"{part}.")}
    if missing := sorted(set(wanted) - set(state)):
        raise FileFault(f"{file}: weight '{missing[0]}' is missing: policy.yaml beside it describes another policy")
    if unexpected := sorted(set(state) - set(wanted)):
        raise FileFault(f"{file}: unexpected weight '{unexpected[0]}': policy.yaml beside it describes another policy")
    for key, tensor in wanted.items():
        if state[key].shape != tensor.shape:
            raise FileFault(
                f"{file}: weight '{key}' expected shape {tuple(tensor.shape)}, got {tuple(state[key].shape)}:"
                " policy.yaml beside it describes another policy"
            )
    module.load_state_dict({key.partition(".")[2]: tensor.float() for key, tensor in state.items()})


def save(folder: Path, spec: PolicySpec, parts: Mapping[Part, nn.Module]) -> str:
    """Writes policy.yaml and head.safetensors (float16; normalisation stays float32); returns the policy's id."""
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, torch.Tensor] = {}
    for part, module in parts.items():
        constants = {name for name, _ in module.named_buffers()}
        for name, tensor in module.state_dict().items():
            dtype = torch.float32 if name in constants else torch.float16
            state[f"{part}.{name}"] = tensor.detach().to("cpu", dtype).contiguous()
    for key, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise FileFault(f"weight '{key}' holds NaN or infinity: not saved to {folder}; training has diverged")
    if state:
        save_file(state, folder / HEAD_FILE)
    text = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=110)
    (folder / POLICY_FILE).write_text(text, encoding="utf-8")
    return identify(folder)


def _head_shape(
    spec: PolicySpec, policy_id: str
) -> tuple[int, int, tuple[str, ...], tuple[str, ...], int, float, int, int, str, int, tuple[str, ...]]:
    """What every trained head is built with, in the order of `TrainedHead`."""
    return (
        spec.tokens,
        spec.width,
        spec.state_names,
        spec.action_names,
        spec.horizon,
        spec.period_s,
        spec.head.hidden,
        spec.head.layers,
        policy_id,
        spec.window.samples if spec.window else 0,
        spec.head.readout,
    )


def _read(file: Path) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise FileFault(f"{file} is missing: expected the weights of pooling and head; likely an incomplete copy")
    try:
        state = load_file(file)
    except SafetensorError as error:
        raise FileFault(
            f"{file}: not a complete safetensors file ({file.stat().st_size} bytes, {error}):"
            " likely an interrupted copy"
        ) from error
    for key, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise FileFault(f"{file}: weight '{key}' holds NaN or infinity: damaged, or from a training that diverged")
    return state
