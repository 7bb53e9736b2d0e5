"""Encoder: one capture and one instruction in, features out, with everything needed to judge them.

Knows which cameras a policy reads, runs the stages and times them. Keeps the prompts of the last few instructions, and
of the frames only the views it may use again (reuse.py). What cannot be encoded is an `EncodeError`; features that are
not finite never leave this file.

Letters: V views, Q feature tokens of a view, T feature tokens, D width.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from control.clock import NS_PER_MS
from control.messages import Features, Frames, Instruction
from vla.engine import Engine
from vla.errors import CameraError, EncodeError, NonFiniteFeatures
from vla.policy_spec import PolicySpec
from vla.pooling import ViewAggregation
from vla.preprocess import GREY
from vla.prompt import Prompt, Prompter
from vla.qwen import QwenBackbone
from vla.reuse import ViewReuse
from vla.upload import Upload

log = logging.getLogger("encoder")

REMEMBERED_PROMPTS = 8


@runtime_checkable
class Encoder(Protocol):
    """What turns frames into features. One thread calls it."""

    policy_id: str
    epoch: int  # differs between any two encoders of a machine
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
        engine: Engine,
        prompter: Prompter,
        aggregate: ViewAggregation,
        policy_id: str,
        encoder_epoch: int,
        reuse: ViewReuse | None = None,
    ) -> None:
        self.policy_id = policy_id
        self.cameras = dict(spec.cameras)
        self._sizes, self._optional = spec.model_sizes, frozenset(spec.optional_cameras)
        self._engine, self._prompter = engine, prompter
        self._aggregate = aggregate.eval()
        self.epoch = encoder_epoch
        self._reuse = reuse or ViewReuse()
        self._upload = Upload(engine.backbone.device)
        self._prompts: OrderedDict[tuple[str, tuple[str, ...]], Prompt] = OrderedDict()
        self._seq = 0

    @property
    def backbone(self) -> QwenBackbone:
        return self._engine.backbone

    @torch.inference_mode()
    def encode(self, frames: Frames, instruction: Instruction) -> Features:
        frames = self._usable(frames)
        watch = _Stopwatch(self.backbone.device)
        captures = self._engine.captures
        due = self._reuse.due(frames, instruction, tuple(self.cameras))
        try:
            pooled = self._encode(frames, instruction, due, watch) if due else None
        except torch.OutOfMemoryError as error:
            self._engine.forget()
            self._reuse.forget()
            raise EncodeError(
                f"too little free memory on '{self.backbone.device}' for this instruction ({len(instruction.text)}"
                " characters): a shorter one needs less, or another process fills the device"
            ) from error
        views, ages_ms = self._reuse.complete(frames, instruction, due, pooled, tuple(self.cameras))
        values = self.aggregated(views)
        watch.lap("aggregate")
        encode_ms, stage_ms = watch.read()
        if not np.isfinite(values).all():
            self._reuse.forget()
            raise NonFiniteFeatures(
                f"{np.count_nonzero(~np.isfinite(values))} of {values.size} features are NaN or infinite"
                f" for frame {frames.seq}: overflow in {self.backbone.dtype}, or damaged weights"
            )
        if self._engine.captures > captures and self._seq:
            log.warning(
                "frame %d took %.0f ms: a graph was made for a new length or set of views", frames.seq, encode_ms
            )
        self._seq += 1
        return Features(
            seq=self._seq,
            stamp_ns=time.monotonic_ns(),
            frame_seq=frames.seq,
            frame_stamp_ns=frames.stamp_ns,
            session=instruction.session,
            instruction_id=instruction.id,
            encoder_epoch=self.epoch,
            policy_id=self.policy_id,
            tokens=values,
            view_age_ms=ages_ms,
            encode_ms=encode_ms,
            stage_ms=stage_ms,
            frame_published_ns=frames.published_ns,
        )

    def warm_up(self) -> None:
        """See `Encoder.warm_up`; the sequence number does not move."""
        grey = {name: np.full((*size, 3), 128, dtype=np.uint8) for name, size in self.cameras.items()}
        for _ in range(2 if self._reuse.cameras else 1):  # without the views that are used again it is another graph
            self.encode(Frames(0, 0, grey), Instruction(0, 0, 0, 0, "warm up"))
        self._reuse.forget()
        self._seq = 0

    def pooled(self, frames: Frames, text: str) -> torch.Tensor:
        """(V, Q, D) float32 features of each camera before they are aggregated: what accuracy is judged by."""
        frames = self._usable(frames)
        names = tuple(self.cameras)
        with torch.inference_mode():
            watch = _Stopwatch(self.backbone.device)
            pooled = self._encode(frames, Instruction(0, 0, 0, 0, text), names, watch).clone()
            watch.read()  # waits: the next capture overwrites the buffers of this one
            return pooled

    def aggregated(self, views: torch.Tensor) -> np.ndarray:
        """(T, D) float32 feature tokens on the host, from the (V, Q, D) features of each camera."""
        return self._aggregate(views).cpu().numpy()

    def _encode(
        self, frames: Frames, instruction: Instruction, names: tuple[str, ...], watch: _Stopwatch
    ) -> torch.Tensor:
        """(views, Q, D) of these cameras, in their order. The next call may overwrite it."""
        prompt = self._prompt(instruction.text, names)
        images = [
            self._upload([frames.images[names[row]] for row in group.rows], group.size) for group in prompt.groups
        ]
        watch.lap("preprocess")
        embedded = self._engine.vision(images, prompt)
        watch.lap("vision")
        prefix, is_new = self._engine.prefix(prompt)
        if is_new:  # once an instruction
            watch.lap("prefix")
        pooled = self._engine.pooled(embedded, prompt, prefix)
        watch.lap("language")
        return pooled

    def _prompt(self, text: str, names: tuple[str, ...]) -> Prompt:
        prompt = self._prompts.get((text, names))
        if prompt is None:
            sizes = {name: self._sizes[name] for name in names}
            prompt = self._prompter.prompt(text, sizes, self._engine.row_multiple).to(self.backbone.device)
            self._prompts[text, names] = prompt
            if len(self._prompts) > REMEMBERED_PROMPTS:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end((text, names))
        return prompt

    def _usable(self, frames: Frames) -> Frames:
        """The frames with grey for optional cameras that fail. Raises CameraError for the others."""
        failing = {name for name in self._optional if name in frames.faults or name not in frames.images}
        if failing:
            grey = {name: np.full((*self.cameras[name], 3), GREY, dtype=np.uint8) for name in failing}
            captured_ns = {name: at for name, at in frames.captured_ns.items() if name not in failing}
            frames = replace(frames, images=frames.images | grey, captured_ns=captured_ns)
        for name, size in self.cameras.items():
            image = frames.images.get(name)
            if name in frames.faults and name not in failing:
                raise CameraError(f"frame {frames.seq}: camera '{name}' {frames.faults[name]}")
            if image is None:
                raise CameraError(
                    f"frame {frames.seq} lacks camera '{name}'; it has {', '.join(frames.images) or 'none'}"
                )
            if image.shape != (*size, 3) or image.dtype != np.uint8:
                raise CameraError(
                    f"frame {frames.seq}, camera '{name}': expected {size[0]}x{size[1]}x3 uint8 (height x width),"
                    f" got {'x'.join(map(str, image.shape))} {image.dtype}: check the camera's resolution"
                )
        return frames


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
