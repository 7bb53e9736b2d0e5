"""A wall clock that can be set for the processes of a drill alone, without being root: a small library is preloaded.

It is compiled when a drill begins; where there is no C compiler, the drill says that it leaves these faults out.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("wall_clock.c")
_OFF_S = struct.Struct("=q")
_COMPILE_S = 60.0


def find_compiler() -> str | None:
    return shutil.which("cc")


class WallClock:
    """In `folder`. Without a compiler its processes keep the clock of the machine."""

    def __init__(self, folder: Path) -> None:
        self._file, self._library = folder / "wall-clock", folder / "wall-clock.so"
        self._file.write_bytes(_OFF_S.pack(0))
        self._compiler = find_compiler()
        if self._compiler is not None:
            words = [self._compiler, "-shared", "-fPIC", "-O2", "-o", str(self._library), str(_SOURCE)]
            subprocess.run(words, check=True, timeout=_COMPILE_S)

    def set(self, off_s: int) -> None:
        """By how much it is off from now on, in all processes at once."""
        file = os.open(self._file, os.O_WRONLY)  # in place: the processes share its memory
        try:
            os.pwrite(file, _OFF_S.pack(off_s), 0)
        finally:
            os.close(file)

    def around(self, command: list[str]) -> list[str]:
        """The same command, with this clock."""
        if self._compiler is None:
            return command
        return ["env", f"LD_PRELOAD={self._library}", f"SACCADE_WALL_CLOCK={self._file}", *command]
