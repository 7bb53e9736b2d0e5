"""Strict YAML to frozen models: unknown or duplicate keys, wrong types and NaN are errors with file, line and key.

`--set a.b=value` goes the same way as the file. Paths in a config are relative to the config's own folder. Objects get
values from here, never the config itself.
"""

from __future__ import annotations

import difflib
import ipaddress
import itertools
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from control.address import BusAddress
from control.camera_watch import CameraLimits
from control.clock import NS_PER_MS, NS_PER_S
from control.errors import BusError, ConfigError
from control.loop import LoopSettings
from control.safety import Freshness

_PATHS = {"encoder": ("policy", "smoothing"), "bus": ("keys",)}
_MAX_CHARS, _MAX_NODES = 1_000_000, 10_000
Ms = Annotated[float, Field(gt=0, le=3_600_000)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class BusConfig(_Section):
    """Where the processes meet; see control/address.py."""

    address: str = "ipc://saccade"
    encoder: str | None = None
    keys: str | None = None  # folder of this machine's keys, made by `launch.py keys`; beyond loopback they are needed

    @model_validator(mode="after")
    def _endpoints_are_usable(self) -> BusConfig:
        try:
            self.build()
        except BusError as error:
            raise ValueError(str(error)) from None
        return self

    def build(self) -> BusAddress:
        return BusAddress(self.address, self.encoder, self.keys)


class RobotConfig(_Section):
    """`name`: an installed robot (entry point `saccade.robots`), or `remote`: a host that somebody else starts."""

    name: str
    options: dict[str, Any] = {}  # given to the robot as keyword arguments
    host_hz: Annotated[float, Field(ge=10, le=1000)] = 100.0  # interpolation between targets
    state_hz: Annotated[float, Field(ge=1, le=1000)] = 50.0
    camera_hz: Annotated[float, Field(gt=0, le=240)] = 25.0
    watchdog_ms: Annotated[float, Field(ge=20, le=5000)] = 300.0
    history_samples: Annotated[int, Field(ge=0, le=1024)] = 0  # states at `host_hz` sent with every state; 0: none

    @model_validator(mode="after")
    def _no_rate_is_over_the_hosts(self) -> RobotConfig:
        if max(self.state_hz, self.camera_hz) > self.host_hz:
            raise ValueError(
                f"state_hz {self.state_hz:g} and camera_hz {self.camera_hz:g} must be at most host_hz {self.host_hz:g}:"
                " the robot host reads states and images in its own steps; raise host_hz"
            )
        return self


class CamerasConfig(_Section):
    """When a camera counts as late, frozen or black; see control/camera_watch.py."""

    frozen_after_ms: Ms | None = 1000.0
    late_after_ms: Ms = 500.0
    black_below: Annotated[int, Field(ge=0, le=255)] = 8

    def build(self) -> CameraLimits:
        return CameraLimits(self.frozen_after_ms, self.late_after_ms, self.black_below)


class AccuracyConfig(_Section):
    """What a precision may change, against the plain model on the same frames; see `launch.py bench accuracy`."""

    min_cosine: Annotated[float, Field(ge=-1, le=1)] = 0.99  # of any view's features
    max_relative_error: Annotated[float, Field(gt=0)] = 0.15  # of any view's features, by norm
    max_action_difference: Annotated[float, Field(gt=0)] = 0.05  # of any target, in the action's own unit


class EncoderConfig(_Section):
    """Which policy looks, on what device, and how it computes. `None` leaves what the policy says."""

    policy: str  # a policy folder
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    random_weights: bool = False  # the backbone's geometry without its weights, for latency work; moves nothing
    precision: Literal["fp32", "bf16", "int8", "fp8", "int8-bnb", "int4-bnb"] = "fp32"
    quantise_vision: bool = False  # the vision tower too; the published recipes leave it in 16 bit
    smoothing: str | None = None  # a file that `bench calibrate` wrote
    attention: Literal["sdpa", "varlen", "flash_attention_2"] = "sdpa"
    compile: Literal["eager", "default", "max-autotune"] = "eager"
    cuda_graph: bool = False
    max_rate_hz: Annotated[float, Field(gt=0, le=240)] | None = None  # skips frames in between
    reuse_views: list[str] = []  # cameras that stand still: used again while their image does not change
    reuse_max_age_ms: Ms = 200.0
    reuse_threshold: Annotated[float, Field(ge=0, le=255)] = 2.0  # grey levels, in any 28 x 28 pixels
    cameras: Annotated[list[str], Field(min_length=1)] | None = None
    image_size: list[Annotated[int, Field(ge=28, le=4096, multiple_of=28)]] | None = None  # [height, width]
    language_layers: Annotated[int, Field(ge=1, le=128)] | None = None
    accuracy: AccuracyConfig = AccuracyConfig()

    @property
    def model_image_size(self) -> tuple[int, int] | None:
        return None if self.image_size is None else (self.image_size[0], self.image_size[1])

    @model_validator(mode="after")
    def _keys_go_together(self) -> EncoderConfig:
        if self.cuda_graph and self.device == "cpu":
            raise ValueError("encoder.cuda_graph needs device cuda, got cpu")
        if self.image_size is not None and len(self.image_size) != 2:
            raise ValueError(f"encoder.image_size is [height, width], got {self.image_size}")
        for key, names in (("cameras", self.cameras or []), ("reuse_views", self.reuse_views)):
            if len(set(names)) != len(names):
                raise ValueError(f"encoder.{key} names a camera twice: {names}")
        if self.smoothing and self.precision not in ("int8", "fp8"):
            raise ValueError(f"encoder.smoothing is for precision int8 or fp8, got {self.precision}")
        return self


class ControlConfig(_Section):
    rate_hz: Annotated[float, Field(ge=1, le=100)] = 10.0
    state_max_age_ms: Ms = 200.0
    switch_max_ms: Ms = 3000.0
    max_missed_ticks: Annotated[int, Field(ge=0, le=1000)] = 3
    realtime: bool = True  # try SCHED_FIFO; the report says what was granted


class FreshnessConfig(_Section):
    """Feature ages in ms: speed falls from `slow_after`, HOLD at `hold_after`, STOP past `stop_after`."""

    slow_after_ms: Ms
    hold_after_ms: Ms
    stop_after_ms: Ms

    @model_validator(mode="after")
    def _rungs_rise(self) -> FreshnessConfig:
        self.build()
        return self

    def build(self) -> Freshness:
        return Freshness(self.slow_after_ms, self.hold_after_ms, self.stop_after_ms)


class SafetyConfig(_Section):
    workspace: dict[str, tuple[float, float]] = {}  # action name -> [low, high], inside the robot's own limits
    allow_unlimited: bool = False
    max_following_s: Annotated[float, Field(gt=0, le=60)] = (
        0.5  # STOP when further from the command than this long a way
    )

    @model_validator(mode="before")
    @classmethod
    def _lists_are_pairs(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("workspace"), dict):
            pairs = {key: tuple(pair) if isinstance(pair, list) else pair for key, pair in data["workspace"].items()}
            return data | {"workspace": pairs}
        return data


class RunConfig(_Section):
    """How often a dead encoder is restarted, after which growing pause, and how long a first RUN cycle may take."""

    start_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 120.0

    max_encoder_restarts: Annotated[int, Field(ge=0, le=10_000)] = 10
    restart_backoff_s: Annotated[float, Field(gt=0, le=60)] = 0.2
    encoder_hung_s: Annotated[float, Field(ge=0.5, le=3600)] = (
        3.0  # without features, or five encodes, before a restart
    )


class PageConfig(_Section):
    """The browser page; see control/page.py. Port 0 takes any that is free; beyond loopback a token is asked for."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8470
    require_token: bool = False  # on loopback too, where other users of the machine are not to be trusted
    image_hz: Annotated[float, Field(gt=0, le=30)] = 5.0  # of the views in a browser

    @model_validator(mode="after")
    def _host_is_an_address(self) -> PageConfig:
        try:
            ipaddress.ip_address("127.0.0.1" if self.host == "localhost" else self.host)
        except ValueError:
            raise ValueError(
                f"page.host: expected localhost or an IP address of this machine, 0.0.0.0 for all, got '{self.host}'"
            ) from None
        return self


class Config(_Section):
    version: Literal[1]
    bus: BusConfig = BusConfig()
    robot: RobotConfig
    cameras: CamerasConfig = CamerasConfig()
    encoder: EncoderConfig
    control: ControlConfig = ControlConfig()
    freshness: FreshnessConfig
    safety: SafetyConfig = SafetyConfig()
    run: RunConfig = RunConfig()
    page: PageConfig = PageConfig()

    @model_validator(mode="after")
    def _a_period_fits_into_every_limit(self) -> Config:
        period_ms, view_ms = 1000 / self.control.rate_hz, self.view_period_ms
        if self.freshness.hold_after_ms <= period_ms + view_ms:
            raise ValueError(
                f"freshness.hold_after_ms {self.freshness.hold_after_ms:g} must be over one control period"
                f" ({period_ms:g} ms) plus the time between two views ({view_ms:g} ms) plus twice the encode time,"
                " or the mode would flap"
            )
        if self.control.state_max_age_ms <= 1000 / self.robot.state_hz:
            raise ValueError(
                f"control.state_max_age_ms {self.control.state_max_age_ms:g} must be over the time between two states"
                f" ({1000 / self.robot.state_hz:g} ms), or the mode would flap"
            )
        if self.robot.watchdog_ms <= period_ms:
            raise ValueError(
                f"robot.watchdog_ms {self.robot.watchdog_ms:g} must be over one control period ({period_ms:g} ms),"
                " or the robot would hold between any two actions"
            )
        return self

    def loop_settings(self) -> LoopSettings:
        return LoopSettings(
            period_ns=round(NS_PER_S / self.control.rate_hz),
            freshness=self.freshness.build(),
            state_max_age_ms=self.control.state_max_age_ms,
            switch_max_ms=self.control.switch_max_ms,
            max_missed_ticks=self.control.max_missed_ticks,
            view_period_ms=self.view_period_ms,
            workspace=self.safety.workspace,
            allow_unlimited=self.safety.allow_unlimited,
            max_following_s=self.safety.max_following_s,
            watchdog_ns=self.watchdog_ns,
        )

    @property
    def view_period_ms(self) -> float:
        """The longest time between two encoded views of one camera: its period, skipped frames and reuse counted in."""
        encoder = self.encoder
        slowest_hz = min(self.robot.camera_hz, encoder.max_rate_hz or self.robot.camera_hz)
        return 1000 / slowest_hz + (encoder.reuse_max_age_ms if encoder.reuse_views else 0.0)

    @property
    def encoder_hung_s(self) -> float:
        """How long a working encoder may be without features: it is no shorter than two of the times between views."""
        return max(self.run.encoder_hung_s, 2 * self.view_period_ms / 1000)

    @property
    def watchdog_ns(self) -> int:
        return round(self.robot.watchdog_ms * NS_PER_MS)


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """The config of a file with `a.b=value` overrides. Raises ConfigError naming file, line, key, expected and got."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"config {path} does not exist; the shipped ones are in configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} cannot be read: {error}") from None
    places: dict[tuple[Any, ...], str] = {}
    data = _parse(text, str(path), places)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}:1: expected keys like `robot:`, got {type(data).__name__}")
    for override in overrides or []:
        _override(data, override, places)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item, str(path), places) for item in error.errors())) from None
    here = path.resolve().parent
    absolute = {}
    for section, keys in _PATHS.items():
        paths = {key: getattr(getattr(config, section), key) for key in keys}
        changed = {key: str((here / value).resolve()) for key, value in paths.items() if value is not None}
        absolute[section] = getattr(config, section).model_copy(update=changed)
    return config.model_copy(update=absolute)


def _parse(text: str, where: str, places: dict[tuple[Any, ...], str], base: tuple[Any, ...] = ()) -> Any:
    if len(text) > _MAX_CHARS:
        raise ConfigError(f"{where}: expected at most {_MAX_CHARS:,} characters, got {len(text):,}: is it a config?")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        return None if node is None else _build(loader, node, where, places, base, itertools.count())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except (ValueError, OverflowError) as error:  # a date that is none, a number that is too long
        raise ConfigError(f"{where}: not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deep: does an alias stand for itself?") from None


def _build(
    loader: yaml.SafeLoader, node: yaml.Node, where: str, places: dict, base: tuple[Any, ...], count: Iterator[int]
) -> Any:
    if next(count) > _MAX_NODES:
        raise ConfigError(f"{where}: expected at most {_MAX_NODES:,} values: does an alias stand for itself?")
    places.setdefault(base, f"{where}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), f"{where}:{key_node.start_mark.line + 1}"
            if key in result:
                raise ConfigError(f"{line}: key '{'.'.join(map(str, (*base, key)))}' stands twice; remove one")
            places[(*base, key)] = line
            result[key] = _build(loader, value_node, where, places, (*base, key), count)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, where, places, (*base, index), count) for index, item in enumerate(node.value)]
    return loader.construct_object(node)


def _override(data: dict[str, Any], override: str, places: dict[tuple[Any, ...], str]) -> None:
    key, equals, value = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(f"--set {override}: expected KEY.KEY=VALUE, for example --set control.rate_hz=20")
    target: Any = data
    for part in path[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override}: '{part}' is a value, not a section")
    target[path[-1]] = _parse(value, f"--set {override}", {}, path)
    places[path] = f"--set {override}"


def _explain(item: Any, file: str, places: dict[tuple[Any, ...], str]) -> str:
    location = tuple(item["loc"])
    place = next((places[location[:n]] for n in range(len(location), 0, -1) if location[:n] in places), file)
    key = ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        known = list(_fields(location[:-1]))
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
        return f"{place}: unknown key '{key}'; {hint}"
    if item["type"] == "missing":
        return f"{place}: '{key}' is missing"
    if item["type"] == "value_error":
        return f"{place}: {key + ': ' if key else ''}{item['ctx']['error']}"
    return f"{place}: {key}: {item['msg'].replace('Input should', 'should')}, got {item['input']!r}"


def _fields(location: tuple[Any, ...]) -> dict[str, Any]:
    model: Any = Config
    for part in location:
        annotation = model.model_fields[part].annotation
        candidates = get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        model = next(item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel))
    return model.model_fields
