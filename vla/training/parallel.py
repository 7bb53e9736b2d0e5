"""One training on several processes, as `torchrun` starts them: gradients are averaged, the first process decides.

Where torchrun did not start the process it is alone, and everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vla.assemble import known_device
from vla.errors import DeviceFault

LOOPBACK = "lo"


def check_device(name: str, processes: int) -> None:
    """Raises DeviceFault for a device that is not there, or not once for each of so many processes."""
    device = known_device(name)
    if device.type != "cuda" or processes == 1:
        return
    if device.index is not None:
        raise DeviceFault(
            f"device '{name}' was asked for {processes} processes, which take a GPU each: use 'cuda', or --workers 1"
        )
    if processes > (count := torch.cuda.device_count()):
        raise DeviceFault(
            f"device '{name}' was asked for {processes} processes, which take a GPU each, but there are {count}: use"
            f" --workers {count}, or look at CUDA_VISIBLE_DEVICES"
        )


class Group:
    """This process among its peers, each on a GPU of its own. A context: leaving it leaves the group."""

    def __init__(self, device: torch.device) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        has_own = self.size > 1 and device.type == "cuda" and device.index is None
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if has_own else device

    def __enter__(self) -> Group:
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)  # else collectives and streams of each process fall to the first GPU
        if self.size > 1:
            if os.environ.get("MASTER_ADDR", "") in ("127.0.0.1", "localhost"):
                os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)  # else it asks the name of the host
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.size > 1:
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module whose backward averages gradients over the group."""
        if self.size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Of parameters that no `wrap` looks after."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def agree(self, value: float) -> float:
        """The first process' value, everywhere."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(shared, src=0)
        return float(shared)

    def widest(self, span: tuple[float, float]) -> tuple[float, float]:
        """From the lowest to the highest of all processes' spans, everywhere."""
        if self.size == 1:
            return span
        ends = torch.tensor([-span[0], span[1]], dtype=torch.float64, device=self.device)
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        return -float(ends[0]), float(ends[1])

    def share(self, module: nn.Module) -> None:
        """The first process' buffers and parameters, everywhere."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)
