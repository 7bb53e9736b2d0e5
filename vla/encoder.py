"""Encoder: one capture and one instruction in, features out, with everything needed to judge them.

Knows which cameras a policy reads, runs the stages and times them. Keeps the prompts of the last few instructions, and
nothing of the frames. What cannot be encoded is an `EncodeError`; features that are not finite never leave this file.

Letters: V views, T feature tokens, D width.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from control.clock import NS_PER_MS
from control.messages import Features, Frames, Instruction
from vla import weights
from vla.errors import CameraError, DeviceFault, FileFault, NonFiniteFeatures
from vla.policy import load_part, view_aggregation, view_pooling
from vla.policy_spec import PolicySpec, backbone_folder, identify, load_spec
from vla.pooling import ViewAggregation, ViewPooling
from vla.preprocess import patches, resize
from vla.prompt import Prompt, Prompter
from vla.qwen import QwenBackbone
from vla.tokenizer import build_tokenizer

REMEMBERED_PROMPTS = 8


@runtime_checkable
class Encoder(Protocol):
    """What turns frames into features. One thread calls it."""

    policy_id: str
    cameras: dict[str, tuple[int, int]]  # name -> (height, width) it expects in `Frames`

    def encode(self, frames: Frames, instruction: Instruction) -> Features:
        """Finite features of these frames under this instruction; raises `EncodeError` where that is impossible."""
        ...

    def warm_up(self) -> None:
        """Runs once on grey images, so that the first real frame is not the slow one."""
        ...


class QwenEncoder:
    """Qwen2.5-VL, pooled as the policy says."""

    def __init__(
        self,
        spec: PolicySpec,
        backbone: QwenBackbone,
        prompter: Prompter,
        pool: ViewPooling,
        aggregate: ViewAggregation,
        policy_id: str,
        encoder_epoch: int,
    ) -> None:
        self.policy_id = policy_id
        self.cameras = dict(spec.cameras)
        self._sizes = spec.model_sizes
        self._backbone, self._prompter = backbone.eval(), prompter
        self._pool, self._aggregate = pool.eval(), aggregate.eval()
        self._epoch = encoder_epoch
        self._prompts: OrderedDict[str, Prompt] = OrderedDict()
        self._seq = 0

    @torch.inference_mode()
    def encode(self, frames: Frames, instruction: Instruction) -> Features:
        watch = _Stopwatch(self._backbone.device)
        prompt = self._prompt(instruction.text)
        images = self._images(frames, prompt)
        watch.lap("preprocess")
        seen = [self._backbone.vision(part, group.size) for part, group in zip(images, prompt.groups, strict=True)]
        watch.lap("vision")
        hidden = self._backbone.language(seen, prompt)
        watch.lap("language")
        tokens = self._features(hidden, prompt)
        watch.lap("pool")
        values = tokens.float().cpu().numpy()
        encode_ms, stage_ms = watch.read()
        if not np.isfinite(values).all():
            raise NonFiniteFeatures(
                f"{np.count_nonzero(~np.isfinite(values))} of {values.size} features are NaN or infinite"
                f" for frame {frames.seq}: overflow in {self._backbone.dtype}, or damaged weights"
            )
        self._seq += 1
        return Features(
            seq=self._seq,
            stamp_ns=time.monotonic_ns(),
            frame_seq=frames.seq,
            frame_stamp_ns=frames.stamp_ns,
            session=instruction.session,
            instruction_id=instruction.id,
            encoder_epoch=self._epoch,
            policy_id=self.policy_id,
            tokens=values,
            view_age_ms=dict.fromkeys(self.cameras, 0.0),
            encode_ms=encode_ms,
            stage_ms=stage_ms,
        )

    def warm_up(self) -> None:
        """See `Encoder.warm_up`; the sequence number does not move."""
        grey = {name: np.full((*size, 3), 128, dtype=np.uint8) for name, size in self.cameras.items()}
        self.encode(Frames(0, 0, grey), Instruction(0, 0, 0, 0, "warm up"))
        self._seq = 0

    def _prompt(self, text: str) -> Prompt:
        prompt = self._prompts.get(text)
        if prompt is None:
            prompt = self._prompter.prompt(text, self._sizes).to(self._backbone.device)
            self._prompts[text] = prompt
            if len(self._prompts) > REMEMBERED_PROMPTS:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(text)
        return prompt

    def _images(self, frames: Frames, prompt: Prompt) -> list[torch.Tensor]:
        """Patches of the policy's cameras on the device, group by group."""
        names = list(self.cameras)
        for name, size in self.cameras.items():
            image = frames.images.get(name)
            if image is None:
                raise CameraError(
                    f"frame {frames.seq} lacks camera '{name}'; it has {', '.join(frames.images) or 'none'}"
                )
            if image.shape != (*size, 3) or image.dtype != np.uint8:
                raise CameraError(
                    f"frame {frames.seq}, camera '{name}': expected {size[0]}x{size[1]}x3 uint8 (height x width),"
                    f" got {'x'.join(map(str, image.shape))} {image.dtype}: check the camera's resolution"
                )
        parts = []
        for group in prompt.groups:
            views = [frames.images[names[row]] for row in group.rows]
            if len({view.shape for view in views}) == 1:
                stacked = torch.from_numpy(np.stack(views)).to(self._backbone.device)
                parts.append(patches(resize(stacked, *group.size)))
                continue
            single = [torch.from_numpy(np.array(view[None])).to(self._backbone.device) for view in views]
            parts.append(patches(torch.cat([resize(view, *group.size) for view in single])))
        return parts

    def _features(self, hidden: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """(T, D) from the last hidden states, views back in the policy's order."""
        pooled = [self._pool(tokens.float()) for tokens in self._backbone.image_hidden(hidden, prompt)]
        views = torch.cat(pooled)
        if len(pooled) > 1:
            order = torch.tensor([row for group in prompt.groups for row in group.rows], device=views.device)
            views = views[torch.argsort(order)]
        return self._aggregate(views)


def load_encoder(folder: Path, device: str, encoder_epoch: int, random_weights: bool = False) -> QwenEncoder:
    """The encoder's half of a policy. A backbone that is no folder on this machine is fetched from the hub.

    With `random_weights` the backbone is an untrained one of the same geometry, for measuring time with no download:
    its features mean nothing, and carry a policy id that no trained head accepts.
    """
    place = _device(device)
    try:
        return _load(folder, place, encoder_epoch, random_weights)
    except torch.OutOfMemoryError as error:
        raise DeviceFault(
            f"device '{device}' has too little free memory for policy {folder}: likely another process fills it"
            " (see nvidia-smi); use another GPU or a smaller policy"
        ) from error


def _load(folder: Path, place: torch.device, encoder_epoch: int, random_weights: bool) -> QwenEncoder:
    spec = load_spec(folder)
    dtype = weights.pick_dtype(place)
    pool, aggregate = view_pooling(spec), view_aggregation(spec)
    if random_weights:
        backbone = weights.random_weights(spec.geometry, place, dtype)
        prompter = Prompter(build_tokenizer(["do what the operator says"]))
    else:
        files = backbone_folder(folder, spec) or weights.resolve(spec.backbone)
        backbone = weights.load(files, place, dtype)
        prompter = Prompter.load(files)
        load_part(folder, "pool", pool)
        load_part(folder, "aggregate", aggregate)
    if backbone.width != spec.width:
        raise FileFault(
            f"{folder}: policy.yaml says width {spec.width}, its backbone '{spec.backbone}' has {backbone.width}:"
            " likely the policy of another model size"
        )
    for module in (pool, aggregate):
        module.to(place).requires_grad_(False)
    policy_id = identify(folder, random_weights)
    return QwenEncoder(spec, backbone, prompter, pool, aggregate, policy_id, encoder_epoch)


class _Stopwatch:
    """Stage times. On a GPU the stages are only marked in its queue; reading waits once for all of them."""

    def __init__(self, device: torch.device) -> None:
        self._events: list[torch.cuda.Event] | None = [] if device.type == "cuda" else None
        self._device = device
        self._names: list[str] = []
        self._began_ns = time.monotonic_ns()
        self._laps_ns = [self._began_ns]
        self._mark()

    def lap(self, name: str) -> None:
        self._names.append(name)
        self._laps_ns.append(time.monotonic_ns())
        self._mark()

    def read(self) -> tuple[float, dict[str, float]]:
        """Total from the first call to now, and each stage, in ms."""
        if self._events is not None:
            self._events[-1].synchronize()
            laps = [a.elapsed_time(b) for a, b in zip(self._events, self._events[1:], strict=False)]
        else:
            laps = [(b - a) / NS_PER_MS for a, b in zip(self._laps_ns, self._laps_ns[1:], strict=False)]
        total_ms = (time.monotonic_ns() - self._began_ns) / NS_PER_MS
        return total_ms, dict(zip(self._names, laps, strict=True))

    def _mark(self) -> None:
        if self._events is not None:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._events.append(event)


def _device(name: str) -> torch.device:
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
        torch.set_float32_matmul_precision("high")  # TF32 for the little that stays in float32
    elif device.type != "cpu":
        raise DeviceFault(f"device '{name}' is not supported: use 'cpu', 'cuda' or 'cuda:N'")
    return device
