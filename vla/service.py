"""The encoder process: newest frames and the instruction in, features out, as fast as it can.

Owns the model and no robot, and keeps no session: what arrives is all it needs. The order at start-up is load, warm up,
measure, announce. What it cannot encode is said with its reason, in the log and, twice a second while it goes on, in
`Features.fault`; the loop sees the age grow, and everyone that this process is alive. Features that are not finite
again and again end the process: its memory may be poisoned, and the supervisor starts it anew.
"""

from __future__ import annotations

import gc
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import zmq

from control.address import BusAddress
from control.bus import Kept, Latest, Publisher
from control.clock import NS_PER_MS, NS_PER_S
from control.messages import MAX_FAULT_CHARS, Features, Frames, Instruction
from control.reasons import Told
from vla.assemble import EncoderOptions, load_encoder
from vla.encoder import Encoder
from vla.errors import EncodeError, EncoderFault, NonFiniteFeatures

log = logging.getLogger("encoder")

_IDLE_MS = 50  # how often a parent's end or a signal is noticed while nothing comes in
_MEASURED_ENCODES, _MEASURE_AT_MOST_MS = 5, 2000.0
_REFUSAL_NS = NS_PER_S // 2  # between two messages that nothing can be encoded, and before the first
_POISONED_AFTER = 10  # frames in a row whose features are not finite


def run_encoder(
    bus: BusAddress,
    policy: Path,
    *,
    device: str,
    threads: int,
    random_weights: bool,
    options: EncoderOptions,
    max_rate_hz: float | None,
    stopped: Callable[[], bool],
) -> None:
    """The whole process: load, warm up, measure, announce, serve."""
    torch.set_num_threads(threads)
    began_ns = time.monotonic_ns()
    # The start time is a fine epoch: no two encoders of one machine share it.
    encoder = load_encoder(policy, device, began_ns // NS_PER_MS, random_weights, options)
    loaded_ns = time.monotonic_ns()
    encoder.warm_up()
    encode_ms = measure(encoder)
    gc.collect()
    gc.freeze()  # modules and model stay: looking through them again took 1.2 s of this process' end, with this 0.2 s
    log.info(
        "policy %s on %s: loaded in %.1f s, warmed up in %.1f s, one encode of %d views %.0f ms",
        encoder.policy_id,
        device,
        (loaded_ns - began_ns) / NS_PER_S,
        (time.monotonic_ns() - loaded_ns) / NS_PER_S,
        len(encoder.cameras),
        encode_ms,
    )
    EncoderService(encoder, bus, max_rate_hz).run(stopped)


def measure(encoder: Encoder) -> float:
    """Median encode time in ms of grey images, after warm-up; one encode is enough where it takes seconds."""
    images = {name: np.full((*size, 3), 128, dtype=np.uint8) for name, size in encoder.cameras.items()}
    frames = Frames(0, 0, images)
    times_ms: list[float] = []
    while len(times_ms) < _MEASURED_ENCODES and sum(times_ms) < _MEASURE_AT_MOST_MS:
        # another instruction each time, of the same text: no view is used again
        instruction = Instruction(0, 0, 0, 1 + len(times_ms), "measure the time of one encode")
        times_ms.append(encoder.encode(frames, instruction).encode_ms)
    return statistics.median(times_ms)


class EncoderService:
    """Encodes each new frame under the newest instruction, and the newest frame at once when that changes.

    With `max_rate_hz` frames in between are skipped, so that a device may be shared; a new instruction never waits.
    """

    def __init__(self, encoder: Encoder, bus: BusAddress, max_rate_hz: float | None = None) -> None:
        self._encoder = encoder
        self._pause_ns = round(NS_PER_S / max_rate_hz) if max_rate_hz else 0
        self._began_ns = time.monotonic_ns() - self._pause_ns  # of the newest encode
        self._frames_in = Kept(bus, "frames")  # an encode may take longer than a second
        self._instructions_in = Latest(bus, "instruction")
        self._features_out = Publisher(bus, "features", queue=8, latch=True)
        self._poller = zmq.Poller()
        for inbox in (self._frames_in, self._instructions_in):
            self._poller.register(inbox.socket, zmq.POLLIN)
        self._frames: Frames | None = None
        self._instruction: Instruction | None = None
        self._encoded: tuple[int, int, int] | None = None  # frame stamp, session, instruction id
        self._told = Told(log)
        self._spoke_ns = 0  # when the newest features or refusal went out
        self._not_finite = 0  # frames in a row
        self._rejected = {inbox: 0 for inbox in (self._frames_in, self._instructions_in)}

    def run(self, stopped: Callable[[], bool]) -> None:
        try:
            while not stopped():
                self._poller.poll(self._wait_ms())
                self.step()
        finally:
            for port in (self._frames_in, self._instructions_in, self._features_out):
                port.close()

    def step(self) -> None:
        self._features_out.greet()
        self._frames = self._frames_in.poll() or self._frames
        self._instruction = self._instructions_in.poll() or self._instruction
        self._report_rejected()
        if self._frames is None or self._instruction is None:
            return
        wanted = (self._frames.stamp_ns, self._instruction.session, self._instruction.id)
        if wanted == self._encoded:
            return
        now_ns = time.monotonic_ns()
        if self._encoded is not None and wanted[1:] == self._encoded[1:] and now_ns < self._began_ns + self._pause_ns:
            return
        self._encoded, self._began_ns = wanted, now_ns
        try:
            features = self._encoder.encode(self._frames, self._instruction)
        except EncodeError as error:
            self._refuse(self._frames, self._instruction, error)
            return
        self._features_out.send(features)
        self._spoke_ns, self._not_finite = time.monotonic_ns(), 0

    def _refuse(self, frames: Frames, instruction: Instruction, error: EncodeError) -> None:
        fault, now_ns = f"frame {frames.seq} not encoded: {error}", time.monotonic_ns()
        self._told.error(fault)
        self._not_finite = self._not_finite + 1 if isinstance(error, NonFiniteFeatures) else 0
        if self._not_finite >= _POISONED_AFTER:
            raise EncoderFault(f"{self._not_finite} frames in a row gave no finite features, the last: {error}")
        if now_ns - self._spoke_ns < _REFUSAL_NS:  # what is good and just sent must not be hidden by a refusal
            return
        self._spoke_ns = now_ns
        self._features_out.send(
            Features(
                seq=0,
                stamp_ns=now_ns,
                frame_seq=frames.seq,
                frame_stamp_ns=frames.stamp_ns,
                session=instruction.session,
                instruction_id=instruction.id,
                encoder_epoch=self._encoder.epoch,
                policy_id=self._encoder.policy_id,
                tokens=np.empty((0, 0), dtype=np.float32),
                view_age_ms={},
                encode_ms=0.0,
                fault=fault[:MAX_FAULT_CHARS],
            )
        )

    def _wait_ms(self) -> int:
        """How long nothing needs to be done unless a message comes: until the next encode is due, but not for long."""
        left_ms = (self._began_ns + self._pause_ns - time.monotonic_ns()) // NS_PER_MS + 1
        return min(_IDLE_MS, left_ms) if left_ms > 0 else _IDLE_MS

    def _report_rejected(self) -> None:
        for inbox, known in self._rejected.items():
            if inbox.rejected > known:
                self._rejected[inbox] = inbox.rejected
                self._told.error(f"refused a message: {inbox.last_error}")
