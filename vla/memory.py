"""How much memory a model takes in a precision, and whether the device has it. Known before a byte is loaded.

Counts weights exactly, from the configuration; what an encode needs besides is one figure with room to spare.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vla.errors import DeviceFault
from vla.precision import PRECISIONS, Precision, activation_dtype
from vla.qwen import QwenBackbone

GB = 1e9
_BYTES: dict[Precision, float] = {"fp32": 4, "bf16": 2, "int8": 1, "fp8": 1, "int8-bnb": 1, "int4-bnb": 0.5}
_ROOM = 1.1  # scales, tables, and what the allocator cannot use
_WORK_BYTES = {"cuda": 1.0e9, "cpu": 0.3e9}  # states of five large views, kernels' own buffers


def needed_bytes(config: Any, precision: Precision, quantise_vision: bool, device: torch.device) -> float:
    """Bytes that weights and work of this configuration take on this device."""
    with torch.device("meta"):
        backbone = QwenBackbone(config)
    full = activation_dtype(precision, device).itemsize
    total = 0.0
    for name, module in backbone.named_modules():
        count = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        in_vision = name.startswith("visual.")
        low = isinstance(module, nn.Linear) and (not in_vision or (quantise_vision and "bnb" not in precision))
        total += count * (_BYTES[precision] if low else full)
    return total * _ROOM + _WORK_BYTES[device.type]


def free_bytes(device: torch.device) -> float:
    """Bytes that can still be had on this device; infinite where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return float("inf")
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return float(lines["MemAvailable"].split()[0]) * 1024


def check_fits(config: Any, precision: Precision, quantise_vision: bool, device: torch.device) -> None:
    """Raises DeviceFault with the amount needed and the precisions that would fit, unless this one does."""
    needed, free = needed_bytes(config, precision, quantise_vision, device), free_bytes(device)
    if needed <= free:
        return
    others = {name: needed_bytes(config, name, quantise_vision, device) for name in PRECISIONS if name != precision}
    fitting = [f"{name} ({size / GB:.1f} GB)" for name, size in others.items() if size <= free]
    advice = f"these would fit: {', '.join(fitting)}" if fitting else "none would fit: use a larger device"
    raise DeviceFault(
        f"device '{device}' has {free / GB:.1f} GB free, precision {precision} needs {needed / GB:.1f} GB;"
        f" {advice}. Likely another process fills it"
    )
