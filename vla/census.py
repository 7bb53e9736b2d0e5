"""What one forward costs the host and the memory: operator calls, attention calls, reads of the device, peak memory.

Knows nothing of any model: it watches a call. It cannot see into a compiled or captured graph: watch the same forward
before it is compiled.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

MIB = 2**20
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# What hands values to Python without an operator when the tensor lies on the CPU. On a GPU the same calls copy, and
# that copy is an operator.
_HANDOVERS = (torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__)
_ATTENTION = ("attention", "attn")


@dataclass(slots=True)
class Census:
    """Calls of one forward. A host read makes the host wait for the device, and no graph can be captured across it."""

    operators: int = 0
    attention_calls: int = 0
    host_reads: int = 0
    reads: Counter[str] = field(default_factory=Counter)  # host reads by what asked for them


def take_census(call: Callable[[], object]) -> Census:
    """Watches one eager call: operators as torch dispatches them, composite ones taken apart."""
    census = Census()
    # Inference mode would not take composites apart.
    with torch.inference_mode(False), torch.no_grad(), _Handovers(census), _Operators(census):
        call()
    return census


class PeakMemory:
    """Memory that calls take beyond what is held before them. On a CPU: of the process, and only on Linux."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held = self._resident = 0
        self.can_measure = device.type == "cuda" or (_STATUS.exists() and _can_reset())

    def start(self) -> None:
        if not self.can_measure:
            return
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._held = torch.cuda.memory_allocated(self._device)
            return
        _give_back_freed()
        _CLEAR.write_text("5")  # see proc(5): sets VmHWM to the present size
        self._held = _resident("VmRSS")

    def added_mb(self) -> float | None:
        """MiB at the peak since `start`; None where it cannot be measured."""
        if not self.can_measure:
            return None
        cuda = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) if cuda else _resident("VmHWM")
        return (peak - self._held) / MIB


def held_mb(module: torch.nn.Module) -> float:
    """MiB of a module's weights and tables; storage that several share counts once."""
    storages = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values()) / MIB


class _Operators(TorchDispatchMode):
    def __init__(self, census: Census) -> None:
        super().__init__()
        self._census = census

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        census, kwargs = self._census, kwargs or {}
        census.operators += 1
        result = func(*args, **kwargs)
        name = str(func)
        census.attention_calls += any(word in name for word in _ATTENTION)
        if _reads_host(func, args, result):
            census.host_reads += 1
            census.reads[name] += 1
        return result


class _Handovers(TorchFunctionMode):
    def __init__(self, census: Census) -> None:
        super().__init__()
        self._census = census

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _HANDOVERS and args[0].device.type == "cpu":
            self._census.host_reads += 1
            self._census.reads[f"Tensor.{func.__name__}"] += 1
        return func(*args, **(kwargs or {}))


def _reads_host(func: Any, args: Any, result: Any) -> bool:
    tags = func.tags
    if torch.Tag.data_dependent_output in tags:  # .item(), bool(), torch.equal
        return True
    if torch.Tag.dynamic_output_shape in tags:  # nonzero, unique, indexing by a mask
        masks = [index for index in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())]
        return "index" not in str(func) or any(_is_mask(index) for index in masks)
    if func.overloadpacket is torch.ops.aten.index_put_ or func.overloadpacket is torch.ops.aten.index_put:
        return any(_is_mask(index) for index in args[1])
    target = args[0] if func.overloadpacket is torch.ops.aten.copy_ else result
    source = args[1] if func.overloadpacket is torch.ops.aten.copy_ else args[0] if args else None
    return _is_on(target, "cpu") and _is_on(source, "cuda")


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


def _is_on(value: Any, kind: str) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == kind


def _can_reset() -> bool:
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _resident(key: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {key}: expected Linux's process status")


def _give_back_freed() -> None:
    """The allocator's free pages go back to the system, or new tensors would hide in them."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except AttributeError:  # not the GNU C library: the figure is then a lower bound
            return
