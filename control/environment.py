"""Where a figure was measured: machine, versions, commit. Reads metadata only, imports none of the packages."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = ("torch", "transformers", "mujoco", "pyzmq", "msgpack", "numpy", "bitsandbytes", "flash-attn")
_VECTORS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm")
_ROOT = Path(__file__).resolve().parent.parent


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str | int]:
    """`instructions` are those that decide how fast matrix products are, in INT8 above all."""
    about = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    found: dict[str, str] = {}  # of the first core
    for line in about.splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    flags = found.get("flags", found.get("Features", "")).split()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "processor": found.get("model name") or platform.processor() or platform.machine(),
        "instructions": " ".join(flag for flag in _VECTORS if flag in flags) or "unknown",
        "cores": usable,
        "system": f"{platform.system()} {platform.release()}",
    }


def commit() -> str:
    """The commit of this checkout, with `+changes` when the tree differs from it; 'unknown' outside a checkout."""
    if not (_ROOT / ".git").exists():
        return "unknown"
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return f"unknown ({type(error).__name__})"


def _git(*words: str) -> str:
    command = ["git", "-C", str(_ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()


def environment() -> dict[str, object]:
    return {"versions": versions(), "machine": machine(), "commit": commit()}
