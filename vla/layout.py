"""The files of a model folder in the published layout, and whether they are whole. Loads no torch.

Knows names, sizes and the header of a safetensors file; what the weights mean is weights.py's business.
"""

from __future__ import annotations

import json
from pathlib import Path

from vla.errors import FileFault

INDEX_FILE, WEIGHTS_FILE, CONFIG_FILE = "model.safetensors.index.json", "model.safetensors", "config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: those its index names, or the one without an index; all exist."""
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            files = [folder / Path(name).name for name in names]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise FileFault(
                f"{index}: expected a JSON map with 'weight_map' from weight to file name, got something else:"
                " likely an interrupted download"
            ) from error
    else:
        files = [folder / WEIGHTS_FILE]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileFault(
            f"{folder}: weight file {', '.join(missing)} is missing (safetensors only; .bin and .pt are not read):"
            " likely an interrupted download"
        )
    return files


def model_files(folder: Path) -> list[Path]:
    """Every file that is read to load this model, sorted; all exist."""
    index = [folder / INDEX_FILE] if (folder / INDEX_FILE).is_file() else []
    for name in (CONFIG_FILE, *TOKENIZER_FILES):
        if not (folder / name).is_file():
            raise FileFault(
                f"{folder / name} is missing: expected a Qwen2.5-VL folder in the published layout;"
                " likely an incomplete copy or download"
            )
    return sorted([*(folder / name for name in (CONFIG_FILE, *TOKENIZER_FILES)), *index, *weight_files(folder)])


def check_whole(file: Path) -> None:
    """Raises `FileFault` unless the file is as long as its own safetensors header says. Reads only that header."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(8), "little")
        try:
            header = json.loads(opened.read(header_bytes)) if header_bytes < size else None
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]  # type: ignore[union-attr]
            expected = 8 + header_bytes + max(ends, default=0)
        except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
            raise FileFault(
                f"{file}: not a complete safetensors file ({size} bytes, its header cannot be read):"
                " likely an interrupted copy or download"
            ) from error
    if size != expected:
        raise FileFault(
            f"{file}: not a complete safetensors file (expected {expected} bytes by its header, got {size}):"
            " likely an interrupted copy or download"
        )
