"""Models and encodes for the rows of `bench encode`, all with the same weights and the same frames.

Weights are random, made once in bfloat16 (as they are published) and converted from there.

Letters: V views, D width.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vla import precision as precisions
from vla import weights
from vla.attention import Attention, Backend
from vla.bench_steps import Layout, Scene, Step
from vla.engine import Engine
from vla.errors import DeviceFault
from vla.floor import Work, work
from vla.geometry import geometry_config
from vla.memory import GB, free_bytes, needed_bytes
from vla.pooling import ViewPooling
from vla.precision import Precision
from vla.preprocess import patches, resize
from vla.prompt import Prompter, stack
from vla.published import to_published
from vla.qwen import QwenBackbone
from vla.sizes import model_size
from vla.stock import StockEncoder, stock_model
from vla.tokenizer import build_tokenizer

INSTRUCTION = "put the red block in the bin"


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A step ready to run on a scene."""

    encode: Callable[[], torch.Tensor]  # one capture -> (V, D) float32 features, on the device
    plain: Callable[[], torch.Tensor]  # the same without compilation or capture: what a census can see
    model: nn.Module
    tokens: int  # read by the language model for one capture, padding not counted
    work: Work


@dataclass(slots=True)
class Models:
    """Models of one geometry, all with the same weights; made when first asked for, kept until released.

    What two of them have in common lies in memory once.
    """

    geometry: str
    device: torch.device
    seed: int = 0
    _base: QwenBackbone | None = None
    _made: dict[tuple[Any, ...], nn.Module] = field(default_factory=dict)

    def get(self, key: tuple[Any, ...]) -> Any:
        """The model of a `Step.model`. Raises DeviceFault where there is too little memory to make it."""
        if key not in self._made:
            self._made[key] = self._stock(*key[1:]) if key[0] == "stock" else self._ours(*key[1:])
        return self._made[key]

    def release(self, keep: Sequence[tuple[Any, ...]] = ()) -> None:
        """Forgets all others, so that their memory is free."""
        self._made = {key: model for key, model in self._made.items() if key in keep}
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()  # or it would count as taken

    def _source(self) -> QwenBackbone:
        if self._base is None:
            self._check_room("bf16", False)
            self._base = weights.random_weights(self.geometry, self.device, torch.bfloat16, self.seed).freeze()
        return self._base

    def _stock(self, chosen: Precision) -> nn.Module:
        source = self._source()
        self._check_room(chosen, False)
        dtype = torch.float32 if chosen == "fp32" else torch.bfloat16
        ids = StockEncoder.token_ids(build_tokenizer([INSTRUCTION]))
        return stock_model(source.config, to_published(source), self.device, dtype, token_ids=ids)

    def _ours(self, chosen: Precision, quantise_vision: bool, half_depth: bool, attention: Backend) -> nn.Module:
        if half_depth or attention != "sdpa":
            backbone = _twin(self.get(("ours", chosen, quantise_vision, False, "sdpa")))
        else:
            source = self._source()
            self._check_room(chosen, quantise_vision)
            backbone = _twin(source)
            precisions.quantise(backbone, chosen, quantise_vision)
            for part, quantised in ((backbone.language, True), (backbone.visual, quantise_vision)):
                _cast(part, precisions.activation_dtype(chosen, self.device, quantised))
        if half_depth:
            backbone.language.blocks = backbone.language.blocks[: len(backbone.language.blocks) // 2]
        backbone.attention = Attention(attention)
        return backbone.freeze()

    def _check_room(self, chosen: Precision, quantise_vision: bool) -> None:
        needed = needed_bytes(geometry_config(self.geometry), chosen, quantise_vision, self.device)
        if needed > (free := free_bytes(self.device)):
            raise DeviceFault(
                f"the model takes {needed / GB:.1f} GB in {chosen} and the device has {free / GB:.1f} GB free:"
                " use a smaller geometry, or a larger device"
            )


def _twin(module: Any) -> Any:
    """A module with the same weights in the same memory, whose parts can be replaced without touching the first."""
    twin = copy.copy(module)
    twin._parameters, twin._buffers = dict(module._parameters), dict(module._buffers)
    twin._modules = {name: _twin(child) for name, child in module._modules.items()}
    return twin


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Parameters alone: the scales of quantised products are buffers, and stay in float32."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.is_floating_point() and parameter.dtype != dtype:
                part._parameters[name] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)


def prepare(step: Step, scene: Scene, models: Models) -> Prepared:
    """Builds one row for one scene. Compilation and capture wait for its first call."""
    return _stock(step, step.stock, scene, models) if step.stock else _ours(step, scene, models)


def _frames(scene: Scene, device: torch.device) -> torch.Tensor:
    """In the host's memory, pinned for a GPU."""
    return scene.frames().pin_memory() if device.type == "cuda" else scene.frames()


def _stock(step: Step, layout: Layout, scene: Scene, models: Models) -> Prepared:
    model, size = models.get(step.model), model_size(scene.height, scene.width)
    frames = _frames(scene, models.device)
    encoder = StockEncoder(model, build_tokenizer([INSTRUCTION]), INSTRUCTION, scene.cameras, size)
    lengths = encoder.lengths(layout)
    done = work(model.config, [size] * scene.views, [(length, length) for length in lengths], temporal=2)

    def encode() -> torch.Tensor:
        return encoder.encode(frames, layout)

    return Prepared(encode, encode, model, sum(lengths), done)


def _ours(step: Step, scene: Scene, models: Models) -> Prepared:
    backbone, device = models.get(step.model), models.device
    frames = _frames(scene, device)
    side = step.image_side
    size = (side, side) if side else model_size(scene.height, scene.width)
    seen = scene.cameras[:1] if step.reuse else scene.cameras
    pool = ViewPooling("mean", backbone.width)
    prompter = Prompter(build_tokenizer([INSTRUCTION]))
    prompt = prompter.prompt(INSTRUCTION, dict.fromkeys(seen, size)).to(device)
    if step.whole_rows:  # no longer than they need to be, as the stock batch has them
        prompt = stack([prompter.row(INSTRUCTION, camera, size) for camera in seen]).to(device)
    others = prompter.prompt(INSTRUCTION, dict.fromkeys(scene.cameras, size)).to(device)
    backbone.tables(size)  # once a size, and not in the census
    plain_engine = engine = Engine(backbone, pool)
    if step.compile_mode != "eager" or step.cuda_graph:
        engine = Engine(backbone, pool, compile_mode=step.compile_mode, cuda_graph=step.cuda_graph)

    def with_prefix(engine: Engine, frames: torch.Tensor, prompt: Any) -> torch.Tensor:
        prefix, _ = engine.prefix(prompt)
        return engine.pooled(engine.vision([[frames.to(device, non_blocking=True)]], prompt), prompt, prefix).squeeze(1)

    kept = with_prefix(plain_engine, frames, others)[len(seen) :].clone() if step.reuse else None

    def capture(engine: Engine) -> torch.Tensor:
        new = with_prefix(engine, frames[: len(seen)], prompt)
        return new if kept is None else torch.cat([new, kept])

    def whole(frames: torch.Tensor, prompt: Any) -> torch.Tensor:
        hidden = backbone([patches(resize(frames.to(device, non_blocking=True), *size))], prompt)
        return pool(backbone.image_hidden(hidden, prompt)[0].float()).squeeze(1)

    text, image = prompt.text_tokens, prompt.groups[0].image_index.numel() // len(seen)
    lengths = [(image + count, image + count) if step.whole_rows else (image, image + count) for count in text]
    layers = len(backbone.language.blocks)
    done = work(geometry_config(models.geometry), [size] * len(seen), lengths, layers)
    tokens = sum(queries for queries, _ in lengths)
    if step.streams:
        alone = [prompter.prompt(INSTRUCTION, {camera: size}).to(device) for camera in seen]
        run = _streams(whole, frames, alone, device)
        return Prepared(run, run, backbone, tokens, done)
    if step.whole_rows:
        plain = encode = lambda: whole(frames, prompt)
    else:
        for each in (plain_engine, engine):
            each.prefix(prompt)  # once an instruction, and not in the census
        plain = encode = lambda: capture(plain_engine)
        if engine is not plain_engine:
            encode = lambda: capture(engine)  # noqa: E731
    return Prepared(encode, plain, backbone, tokens, done)


def _streams(
    encode: Callable[[torch.Tensor, Any], torch.Tensor], frames: torch.Tensor, prompts: list[Any], device: torch.device
) -> Callable[[], torch.Tensor]:
    """Each view by itself, all at once, as far as the device runs them beside each other."""
    streams = [torch.cuda.Stream(device) for _ in prompts] if device.type == "cuda" else []

    def run() -> torch.Tensor:
        here, features = torch.cuda.current_stream(device), []
        for index, (stream, prompt) in enumerate(zip(streams, prompts, strict=True)):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                features.append(encode(frames[index : index + 1], prompt))
        for stream in streams:
            here.wait_stream(stream)
        return torch.cat(features)

    return run
