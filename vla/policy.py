"""A policy is a folder: `policy.yaml`, `head.safetensors`, and for an embedded backbone a Qwen2.5-VL folder.

Knows the folder's format and identity. Loads the head alone, with torch and without the language model: the controller
imports this file. The encoder's half is loaded by encoder.py.

`policy_id` is a short hash of the contents: features and heads that carry the same one belong together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from control.head import ActionHead
from control.messages import RobotSpec
from vla.errors import FileFault
from vla.head import HoldHead, RegressionHead
from vla.pooling import Aggregation, Pooling, ViewAggregation, ViewPooling, feature_tokens
from vla.preprocess import SIDE, model_size

POLICY_FILE, HEAD_FILE = "policy.yaml", "head.safetensors"
FORMAT = 1
ID_DIGITS = 12

Pixels = Annotated[int, Field(ge=SIDE, le=4096)]
ModelPixels = Annotated[int, Field(ge=SIDE, le=4096, multiple_of=SIDE)]


Part = Literal["pool", "aggregate", "head"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class PoolingChoice(Strict):
    """How image tokens become feature tokens; `queries` other than 1 needs attention."""

    view: Literal["mean", "max", "last", "attention"] = "mean"
    queries: int = Field(default=1, ge=1, le=16)
    aggregation: Literal["mean", "max", "concat", "attention"] = "concat"


class HeadChoice(Strict):
    """`hold` is the untrained head that never moves; `regression` has its weights in head.safetensors."""

    kind: Literal["hold", "regression"] = "hold"
    hidden: int = Field(default=384, ge=8, le=8192)
    layers: int = Field(default=2, ge=1, le=6)


class PolicySpec(Strict):
    """policy.yaml, field by field."""

    format: Literal[1] = FORMAT
    name: str = Field(min_length=1)
    backbone: str = Field(min_length=1)  # a subfolder of the policy ("backbone"), or a hub id ("Qwen/...")
    geometry: Literal["3b", "embedded", "tiny"]  # what random weights stand in for it
    width: int = Field(ge=8)  # of the language model, and so of a feature token
    cameras: dict[str, tuple[Pixels, Pixels]] = Field(min_length=1)  # name -> [height, width] of its frames, in order
    image_size: tuple[ModelPixels, ModelPixels] | None = (
        None  # [height, width] the model reads; None: the nearest it can
    )
    state_names: tuple[str, ...] = Field(min_length=1)
    action_names: tuple[str, ...] = Field(min_length=1)
    horizon: int = Field(ge=1, le=256)
    period_s: float = Field(gt=0, le=1)
    pooling: PoolingChoice = PoolingChoice()
    head: HeadChoice = HeadChoice()
    feature_age_ms: tuple[float, float] = (0.0, 0.0)  # the range met in training
    provenance: dict[str, str | int | float] = {}

    @model_validator(mode="after")
    def _consistent(self) -> PolicySpec:
        if self.pooling.view != "attention" and self.pooling.queries != 1:
            raise ValueError("pooling.queries other than 1 needs pooling.view 'attention'")
        if self.pooling.view == "attention" and len(set(self.model_sizes.values())) != 1:
            raise ValueError("attention pooling needs one image size for all cameras")
        return self

    @property
    def is_embedded(self) -> bool:
        return "/" not in self.backbone

    @property
    def model_sizes(self) -> dict[str, tuple[int, int]]:
        """Camera -> (height, width) of the image the model reads."""
        return {name: self.image_size or model_size(*size) for name, size in self.cameras.items()}

    @property
    def tokens(self) -> int:
        return feature_tokens(self.pooling.queries, Aggregation(self.pooling.aggregation), len(self.cameras))

    def fits(self, robot: RobotSpec) -> list[str]:
        """What keeps this policy from driving this robot, in plain sentences; empty when it fits."""
        problems = []
        for camera, size in self.cameras.items():
            if camera not in robot.cameras:
                problems.append(
                    f"the policy needs camera '{camera}', robot '{robot.name}' has {', '.join(robot.cameras) or 'none'}"
                )
            elif tuple(robot.cameras[camera]) != size:
                got = robot.cameras[camera]
                problems.append(
                    f"camera '{camera}' gives {got[0]}x{got[1]}, the policy was trained at {size[0]}x{size[1]}"
                    " (height x width)"
                )
        for label, ours, theirs in (
            ("states", self.state_names, robot.state_names),
            ("actions", self.action_names, robot.action_names),
        ):
            if ours != tuple(theirs):
                problems.append(f"the policy's {label} are {', '.join(ours)}; the robot's are {', '.join(theirs)}")
        if abs(self.period_s - robot.action_period_s) > 1e-9:
            problems.append(f"the policy acts every {self.period_s} s, the robot every {robot.action_period_s} s")
        return problems

    def view_pooling(self) -> ViewPooling:
        """Untrained pooling module of the right shape."""
        height, width = next(iter(self.model_sizes.values()))
        image_tokens = (height // SIDE) * (width // SIDE)
        return ViewPooling(Pooling(self.pooling.view), self.width, image_tokens, self.pooling.queries)

    def view_aggregation(self) -> ViewAggregation:
        """Untrained aggregation module of the right shape."""
        return ViewAggregation(Aggregation(self.pooling.aggregation), self.width, len(self.cameras))

    def regression_head(self, policy_id: str = "") -> RegressionHead:
        """Untrained regression head of the right shape."""
        return RegressionHead(
            self.tokens,
            self.width,
            self.state_names,
            self.action_names,
            self.horizon,
            self.period_s,
            self.head.hidden,
            self.head.layers,
            policy_id,
        )


def load_spec(folder: Path) -> PolicySpec:
    """policy.yaml, read strictly."""
    file = folder / POLICY_FILE
    if not file.is_file():
        raise FileFault(f"{file} is missing: expected a policy folder; likely a wrong path")
    try:
        return PolicySpec.model_validate_json(json.dumps(yaml.safe_load(file.read_text(encoding="utf-8"))))
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise FileFault(
            f"{file}: not readable as YAML ({error}): likely damaged by hand or an interrupted copy"
        ) from error
    except ValidationError as error:
        raise FileFault(f"{file}: {_explain(error)}") from error


def load_head(folder: Path, random_weights: bool = False) -> ActionHead:
    """The controller's half of a policy, on the CPU in float32. With `random_weights` it is a head that holds still."""
    spec = load_spec(folder)
    policy_id = identify(folder, random_weights)
    if random_weights or spec.head.kind == "hold":
        return HoldHead(spec.state_names, spec.action_names, spec.horizon, spec.period_s, policy_id)
    head = spec.regression_head(policy_id)
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


def identify(folder: Path, random_weights: bool = False) -> str:
    """A short hash of everything the policy is made of. Random weights have an id of their own kind."""
    spec = load_spec(folder)
    files = [folder / POLICY_FILE]
    if (folder / HEAD_FILE).is_file():
        files.append(folder / HEAD_FILE)
    if spec.is_embedded and not random_weights:
        backbone = folder / spec.backbone
        if not backbone.is_dir():
            raise FileFault(f"{backbone} is missing: policy.yaml names it as the backbone; likely an incomplete copy")
        files += sorted(path for path in backbone.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    prefix = "random-" if random_weights else ""
    return prefix + digest.hexdigest()[:ID_DIGITS]


def verify(folder: Path) -> PolicySpec:
    """Reads everything but the backbone's weights and raises on the first fault; returns the spec."""
    spec = load_spec(folder)
    load_part(folder, "pool", spec.view_pooling())
    load_part(folder, "aggregate", spec.view_aggregation())
    load_head(folder)
    return spec


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


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    return f"{where}: {first['msg']}, got {first['input']!r} ({error.error_count()} problem(s) in all)"
