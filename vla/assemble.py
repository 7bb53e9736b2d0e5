"""From a policy folder to an encoder that runs: device, precision, attention, memory, weights.

Everything that was asked for is either done or refused with the reason, before the first frame. Nothing here falls back
to a slower or less exact way.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from vla import attention, precision, smoothing, weights
from vla.attention import Attention
from vla.encoder import QwenEncoder
from vla.engine import CompileMode, Engine
from vla.errors import DeviceFault, FileFault
from vla.geometry import geometry_config
from vla.memory import check_fits
from vla.policy import load_part, view_aggregation, view_pooling
from vla.policy_spec import PolicySpec, backbone_folder, identify, load_spec
from vla.precision import Precision
from vla.prompt import Prompter
from vla.reuse import ViewReuse
from vla.sizes import SIDE
from vla.tokenizer import build_tokenizer

log = logging.getLogger("encoder")


@dataclass(frozen=True, slots=True)
class EncoderOptions:
    """How an encoder computes. The first five change its numbers a little, the last three the policy itself."""

    precision: Precision = "fp32"
    quantise_vision: bool = False
    smoothing: Path | None = None  # factors that `bench calibrate` wrote
    attention: attention.Backend = "sdpa"
    compile_mode: CompileMode = "eager"
    cuda_graph: bool = False
    reuse_views: tuple[str, ...] = ()
    reuse_max_age_ms: float = 200.0
    reuse_threshold: float = 2.0
    cameras: tuple[str, ...] | None = None
    image_size: tuple[int, int] | None = None
    language_layers: int | None = None


def load_encoder(
    folder: Path,
    device: str,
    encoder_epoch: int,
    random_weights: bool = False,
    options: EncoderOptions | None = None,
) -> QwenEncoder:
    """The encoder's half of a policy. A backbone that is no folder on this machine is fetched from the hub.

    With `random_weights` the backbone is an untrained one of the same geometry, for measuring time with no download:
    its features mean nothing, and carry a policy id that no trained head accepts. Raises DeviceFault for what this
    machine cannot do, FileFault for what the files do not hold.
    """
    options = options or EncoderOptions()
    place = find_device(device)
    spec = load_spec(folder).adapted(
        options.cameras, options.image_size, options.language_layers, trained=not random_weights
    )
    try:
        return _load(folder, spec, place, encoder_epoch, random_weights, options)
    except torch.OutOfMemoryError as error:
        raise DeviceFault(
            f"device '{device}' has too little free memory for policy {folder}: likely another process fills it"
            " (see nvidia-smi); use another GPU, or precision int8 or int4-bnb"
        ) from error


def _load(
    folder: Path,
    spec: PolicySpec,
    place: torch.device,
    encoder_epoch: int,
    random_weights: bool,
    options: EncoderOptions,
) -> QwenEncoder:
    if problem := precision.obstacle(options.precision, place):
        raise DeviceFault(problem)
    dtype = precision.activation_dtype(options.precision, place)
    # TF32 on a GPU for the little that stays in float32, unless float32 is what was asked for
    torch.set_float32_matmul_precision("highest" if options.precision == "fp32" else "high")
    if problem := attention.obstacle(options.attention, place, dtype):
        raise DeviceFault(problem)
    if options.compile_mode != "eager" and (problem := _compiler_obstacle(place)):
        raise DeviceFault(problem)
    if options.quantise_vision and options.precision in precision.BITSANDBYTES:
        raise DeviceFault(
            f"encoder.quantise_vision: with precision {options.precision} the vision tower stays in 16 bit, since it"
            " would overflow its float16; set it to false"
        )
    if unknown := sorted(set(options.reuse_views) - set(spec.cameras)):
        raise DeviceFault(f"encoder.reuse_views names {unknown}, the policy's cameras are {list(spec.cameras)}")
    policy_id = identify(folder, random_weights)
    vision_dtype = precision.activation_dtype(options.precision, place, options.quantise_vision)
    pool, aggregate = view_pooling(spec), view_aggregation(spec)
    files = None if random_weights else backbone_folder(folder, spec) or weights.resolve(spec.backbone)
    config = geometry_config(spec.geometry) if files is None else weights.describe(files)
    check_fits(weights.shortened(config, spec.language_layers), options.precision, options.quantise_vision, place)
    factors = None
    if options.smoothing is not None:
        factors = smoothing.load(options.smoothing, policy_id, config, options.quantise_vision, spec.language_layers)
    finish = precision.finisher(options.precision, options.quantise_vision, factors)
    if files is None:
        backbone = weights.random_weights(
            spec.geometry, place, dtype, finish=finish, layers=spec.language_layers, vision_dtype=vision_dtype
        )
        prompter = Prompter(build_tokenizer(["do what the operator says"]))
    else:
        backbone = weights.load(files, place, dtype, finish, spec.language_layers, vision_dtype)
        prompter = Prompter.load(files)
        load_part(folder, "pool", pool)
        load_part(folder, "aggregate", aggregate)
    if factors is not None:
        smoothing.fold_norms(backbone, factors)
    if backbone.width != spec.width:
        raise FileFault(
            f"{folder}: policy.yaml says width {spec.width}, its backbone '{spec.backbone}' has {backbone.width}:"
            " likely the policy of another model size"
        )
    for module in (pool, aggregate):
        module.to(place).requires_grad_(False)
    backbone.attention = Attention(options.attention)
    engine = Engine(backbone, pool, compile_mode=options.compile_mode, cuda_graph=options.cuda_graph)
    reuse = ViewReuse(options.reuse_views, options.reuse_max_age_ms, options.reuse_threshold)
    log.info(
        "precision %s (states %s, vision %s), attention %s",
        options.precision,
        dtype,
        vision_dtype,
        backbone.attention.reason,
    )
    text = backbone.config.text_config
    longest = max((height // SIDE) * (width // SIDE) for height, width in spec.model_sizes.values())
    slower = precision.slower_than_bf16(
        options.precision, place, text, len(spec.cameras), longest, options.compile_mode != "eager"
    )
    if slower is not None:
        log.warning(
            "precision %s is slower than bf16 on this machine: %.1f times, for a block of the language model over %d"
            " views; set encoder.precision to bf16",
            options.precision,
            slower,
            len(spec.cameras),
        )
    return QwenEncoder(spec, engine, prompter, aggregate, policy_id, encoder_epoch, reuse)


def _compiler_obstacle(device: torch.device) -> str:
    """Why torch.compile cannot work here, found by compiling next to nothing; empty when it can."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:  # torch's own kinds, and whatever a compiler's absence meets first
        first = str(error).strip().splitlines()[0]
        return f"encoder.compile needs a working compiler (g++ on a CPU, triton on a GPU): {first}; use 'eager'"
    return ""


def find_device(name: str) -> torch.device:
    """The device of this name, current from now on. Raises DeviceFault where it is not there."""
    device = known_device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # streams and captures belong to the current device
    return device


def known_device(name: str) -> torch.device:
    """The device of this name, untouched. Raises DeviceFault where it is not there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceFault(f"device '{name}' is unknown: use 'cpu', 'cuda' or 'cuda:N'") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceFault(
                f"device '{name}' was asked for, but torch sees no CUDA GPU: use 'cpu', or install CUDA torch"
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise DeviceFault(
                f"device '{name}' was asked for, but there are {torch.cuda.device_count()} CUDA GPUs, the first is"
                " 'cuda:0': use one of them, or look at CUDA_VISIBLE_DEVICES"
            )
    elif device.type != "cpu":
        raise DeviceFault(f"device '{name}' is not supported: use 'cpu', 'cuda' or 'cuda:N'")
    return device
