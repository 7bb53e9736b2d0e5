"""What a policy is: `policy.yaml` field by field, which robot it fits, and its identity. Loads no torch.

`policy_id` is a short hash of the contents: features and heads that carry the same one belong together.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from control.messages import RobotSpec
from vla.errors import FileFault
from vla.layout import check_whole, model_files
from vla.sizes import SIDE, model_size

POLICY_FILE, HEAD_FILE = "policy.yaml", "head.safetensors"
FORMAT = 1
ID_DIGITS = 12
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

Pixels = Annotated[int, Field(ge=SIDE, le=4096)]
Pooling = Literal["mean", "max", "last", "attention"]  # the image tokens of one view to its feature tokens
Aggregation = Literal["mean", "max", "concat", "attention"]  # the views to the features
ModelPixels = Annotated[int, Field(ge=SIDE, le=4096, multiple_of=SIDE)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class PoolingChoice(Strict):
    """How image tokens become feature tokens; `queries` other than 1 needs attention."""

    view: Pooling = "mean"
    queries: int = Field(default=1, ge=1, le=16)
    aggregation: Aggregation = "concat"


class HeadChoice(Strict):
    """`hold` is the untrained head that never moves; the others have their weights in head.safetensors."""

    kind: Literal["hold", "regression", "flow-matching"] = "hold"
    hidden: int = Field(default=384, ge=8, le=8192)
    layers: int = Field(default=2, ge=1, le=6)
    steps: int = Field(default=4, ge=1, le=32)  # from noise to a chunk; flow-matching only
    readout: tuple[str, ...] = ()  # names of what the head reads from the features, to act on it alone


class WindowChoice(Strict):
    """The last `samples` measured states, `rate_hz` a second, that the head takes besides the newest one."""

    samples: int = Field(ge=2, le=1024)
    rate_hz: float = Field(ge=10, le=1000)  # the robot host's rate


class PolicySpec(Strict):
    """policy.yaml, field by field."""

    format: Literal[1] = FORMAT
    name: str = Field(min_length=1)
    backbone: str = Field(min_length=1)  # a folder (absolute or from the policy's), or a hub id ("Qwen/...")
    geometry: Literal["3b", "embedded", "tiny"]  # what random weights stand in for it
    width: int = Field(ge=8)  # of the language model, and so of a feature token
    cameras: dict[str, tuple[Pixels, Pixels]] = Field(min_length=1)  # name -> [height, width] of its frames, in order
    image_size: tuple[ModelPixels, ModelPixels] | None = (
        None  # [height, width] the model reads; None: the nearest it can
    )
    optional_cameras: tuple[str, ...] = ()  # those it was trained to do without: grey where they fail
    state_names: tuple[str, ...] = Field(min_length=1)
    action_names: tuple[str, ...] = Field(min_length=1)
    horizon: int = Field(ge=1, le=256)
    period_s: float = Field(gt=0, le=1)
    language_layers: int | None = Field(default=None, ge=1, le=128)  # leave after so many layers; None: all of them
    pooling: PoolingChoice = PoolingChoice()
    head: HeadChoice = HeadChoice()
    window: WindowChoice | None = None  # of the robot's state; None: the newest state is all the head takes
    feature_age_ms: tuple[float, float] = (0.0, 0.0)  # the range met in training
    provenance: dict[str, str | int | float] = {}

    @model_validator(mode="after")
    def _consistent(self) -> PolicySpec:
        if self.pooling.view != "attention" and self.pooling.queries != 1:
            raise ValueError("pooling.queries other than 1 needs pooling.view 'attention'")
        if self.pooling.view == "attention" and len(set(self.model_sizes.values())) != 1:
            raise ValueError("attention pooling needs one image size for all cameras")
        if unknown := set(self.optional_cameras) - self.cameras.keys():
            raise ValueError(f"optional_cameras names {sorted(unknown)}, cameras are {', '.join(self.cameras)}")
        if not self.needed_cameras:
            raise ValueError("optional_cameras leaves no camera that is needed: it would act with its eyes shut")
        if self.head.kind == "hold" and self.window is not None:
            raise ValueError("window needs a trained head: head.kind 'hold' looks at the newest state alone")
        return self

    @property
    def needs_head_file(self) -> bool:
        """Whether anything of pooling, aggregation or head is trained."""
        return self.head.kind != "hold" or "attention" in (self.pooling.view, self.pooling.aggregation)

    @property
    def needed_cameras(self) -> frozenset[str]:
        """Those whose fault leads to HOLD."""
        return frozenset(self.cameras) - set(self.optional_cameras)

    @property
    def model_sizes(self) -> dict[str, tuple[int, int]]:
        """Camera -> (height, width) of the image the model reads."""
        return {name: self.image_size or model_size(*size) for name, size in self.cameras.items()}

    @property
    def sizes_in_words(self) -> str:
        """Height x width that the model reads of each camera."""
        return ", ".join(f"{name} {height}x{width}" for name, (height, width) in self.model_sizes.items())

    @property
    def tokens(self) -> int:
        """T, the number of feature tokens."""
        return self.pooling.queries * (len(self.cameras) if self.pooling.aggregation == "concat" else 1)

    def adapted(
        self,
        cameras: tuple[str, ...] | None = None,
        image_size: tuple[int, int] | None = None,
        language_layers: int | None = None,
        *,
        trained: bool = True,
    ) -> PolicySpec:
        """The same policy with fewer cameras, another image size or fewer language layers; None leaves one as it is.

        Raises FileFault where `trained` weights of pooling or head would meet features they never saw.
        """
        changes: dict[str, Any] = {}
        if cameras is not None and cameras != tuple(self.cameras):
            if unknown := [name for name in cameras if name not in self.cameras]:
                raise FileFault(f"encoder.cameras names {unknown}, the policy's cameras are {', '.join(self.cameras)}")
            changes["cameras"] = {name: self.cameras[name] for name in cameras}
        if image_size is not None and set(self.model_sizes.values()) != {image_size}:
            changes["image_size"] = image_size
        if language_layers is not None and language_layers != self.language_layers:
            changes["language_layers"] = language_layers
        if changes and trained and self.needs_head_file:
            raise FileFault(
                f"encoder.{next(iter(changes))} differs from what policy '{self.name}' was trained with: its head would"
                " act on features it never saw; remove the key, or train a policy with it"
            )
        return self.model_copy(update=changes)

    def find_window_misfit(self, history_samples: int, host_hz: float) -> str:
        """Why a robot host with this config does not give the window the head takes, in a sentence; '' when it does."""
        window = self.window
        if window is None or (history_samples == window.samples and abs(host_hz - window.rate_hz) < 1e-6):
            return ""
        return (
            f"the policy takes a window of {window.samples} states at {window.rate_hz:g} Hz, the config gives"
            f" {history_samples or 'none'} at {host_hz:g} Hz: set robot.history_samples: {window.samples} and"
            f" robot.host_hz: {window.rate_hz:g}"
        )

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


def load_spec(folder: Path) -> PolicySpec:
    """policy.yaml, read strictly."""
    file = folder / POLICY_FILE
    if not file.is_file():
        raise FileFault(f"{file} is missing: expected a policy folder; likely a wrong path")
    try:
        return PolicySpec.model_validate_json(json.dumps(_parse(file.read_text(encoding="utf-8"))))
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise FileFault(
            f"{file}: not readable as YAML ({error}): likely damaged by hand or an interrupted copy"
        ) from error
    except ValidationError as error:
        raise FileFault(f"{file}: {_explain(error)}") from error


def backbone_folder(folder: Path, spec: PolicySpec) -> Path | None:
    """Where the backbone's files lie on this machine; None where policy.yaml names a hub id.

    An existing folder wins over a hub id of the same spelling.
    """
    local = folder / spec.backbone
    if local.is_dir():
        return local
    if HUB_ID.fullmatch(spec.backbone):
        return None
    raise FileFault(
        f"{local} is missing: policy.yaml names it as the backbone, and it is no hub id of the form org/name;"
        " likely an incomplete copy"
    )


def verify(folder: Path, random_weights: bool = False) -> PolicySpec:
    """policy.yaml, with every local file it needs found whole. Random weights need no other file.

    Looks at names and sizes, so it takes milliseconds; damage inside a file of the right length shows at load.
    """
    spec = load_spec(folder)
    if random_weights:
        return spec
    head = folder / HEAD_FILE
    if spec.needs_head_file and not head.is_file():
        raise FileFault(f"{head} is missing: expected the weights of pooling and head; likely an incomplete copy")
    for file in _files(folder, spec):
        if file.suffix == ".safetensors":
            check_whole(file)
    return spec


def identify(folder: Path, random_weights: bool = False) -> str:
    """A short hash of all files that are loaded on this machine. Random weights have an id of their own kind."""
    spec = load_spec(folder)
    digest = hashlib.sha256()
    for file in [folder / POLICY_FILE] if random_weights else [folder / POLICY_FILE, *_files(folder, spec)]:
        name = HEAD_FILE if file.name == HEAD_FILE else f"{spec.backbone}/{file.name}"
        digest.update(f"{POLICY_FILE if file.name == POLICY_FILE else name}\n".encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    prefix = "random-" if random_weights else ""
    return prefix + digest.hexdigest()[:ID_DIGITS]


def _files(folder: Path, spec: PolicySpec) -> list[Path]:
    """What is loaded besides policy.yaml."""
    head = folder / HEAD_FILE
    backbone = backbone_folder(folder, spec)
    found = [head] if spec.needs_head_file and head.is_file() else []
    return found if backbone is None else found + model_files(backbone)


class _UniqueKeys(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: key '{key.value}' stands twice, remove one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse(text: str) -> Any:
    return yaml.load(text, _UniqueKeys)  # noqa: S506 - a SafeLoader


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    return f"{where}: {first['msg']}, got {first['input']!r} ({error.error_count()} problem(s) in all)"
