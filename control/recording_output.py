"""The file of a recording: every byte goes straight to the operating system, and it knows where it is whole. Beside it,
until its end, the index that the end of the file needs.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from control.errors import ConfigError, RecordingError
from control.recording_format import require


class Output:
    """What mcap's writer writes to. `commit` after each whole part; a write that fails is cut back to the last one."""

    def __init__(self, file: Path, overwrite: bool) -> None:
        self._file = file
        try:
            self._raw = open(file, "wb" if overwrite else "xb", buffering=0)  # noqa: SIM115 - closed by close
        except FileExistsError:
            raise ConfigError(f"recording {file} exists already; name another file, or remove it first") from None
        except OSError as error:
            raise ConfigError(f"recording {file} cannot be made: {error.strerror}") from None
        self._position = self.committed = 0

    @property
    def is_closed(self) -> bool:
        return self._raw.closed

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:  # an unbuffered write on a nearly full disk takes a part
            written = self._raw.write(rest)
            self._position += written
            rest = rest[written:]

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """Nothing waits here."""

    def commit(self) -> None:
        self.committed = self._position

    def close(self) -> None:
        self._raw.close()

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turns a failed write into one clear line, with the file left whole and closed."""
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError):  # a device cannot be cut; the reader states what is left over
                self._raw.truncate(self.committed)
            with contextlib.suppress(OSError):
                self._raw.close()
            raise RecordingError(
                f"recording {self._file} cannot be written on: {error.strerror or error}; its first"
                f" {self.committed:,} bytes are whole and can be read; is the disk full?"
            ) from None


class SpilledIndex:
    """Stands in for the list in which mcap's writer keeps what it knows of each chunk until the end: 1 KB a second, by
    which a recorder grew by 3.5 MB an hour (measured). Here it waits in a file without a name, as mcap writes it.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close

    def append(self, index: Any) -> None:
        builder = require("mcap.data_stream").RecordBuilder()
        index.write(builder)
        self._file.write(builder.end())

    def __iter__(self) -> Iterator[Any]:
        stream = require("mcap.data_stream").ReadDataStream(self._file)
        records = require("mcap.records")
        end = self._file.seek(0, 2)
        self._file.seek(0)
        while self._file.tell() < end:
            stream.read(9)  # opcode and length
            yield records.ChunkIndex.read(stream)

    def close(self) -> None:
        self._file.close()
