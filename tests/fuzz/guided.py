"""A fuzzer that follows coverage (Atheris), on what reads bytes from outside: the wire, configs, and recordings.

`pip install -e '.[fuzz]'`, then `python -m tests.fuzz.guided wire -max_total_time=600`: what follows the target goes to
libFuzzer. A finding is an exception that the reader does not promise; it is kept as a file `crash-...`, and printed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["control"]):
    from control import config, recording_reader, wire
    from control.errors import ConfigError
    from tests.fuzz.messages import outcome
    from tests.nouns import EXAMPLES

_TOPICS = sorted(wire.SCHEMAS)
_FOLDER = Path(tempfile.mkdtemp(prefix="saccade-fuzz-"))


def read_message(data: bytes) -> None:
    """The first byte chooses the topic."""
    if data:
        outcome(_TOPICS[data[0] % len(_TOPICS)], data[1:])


def read_config(data: bytes) -> None:
    file = _FOLDER / "fuzz.yaml"
    file.write_bytes(data)
    try:
        config.load_config(file)
    except ConfigError:
        return


def read_recording(data: bytes) -> None:
    file = _FOLDER / "fuzz.mcap"
    file.write_bytes(data)
    try:
        recording_reader.read_recording(file)
    except ConfigError:
        return


TARGETS = {"wire": read_message, "config": read_config, "recording": read_recording}


def seeds(target: str) -> Path:
    """A folder of whole inputs to begin with."""
    folder = _FOLDER / f"seeds-{target}"
    folder.mkdir()
    if target == "wire":
        for topic, noun in EXAMPLES.items():
            (folder / topic).write_bytes(bytes([_TOPICS.index(topic)]) + wire.encode(noun))
    elif target == "config":
        for file in (Path(__file__).parents[2] / "configs").glob("*.yaml"):
            (folder / file.name).write_bytes(file.read_bytes())
    else:
        from control.recording import RecordingWriter
        from control.recording_images import ImageCodec

        with RecordingWriter(folder / "whole.mcap", EXAMPLES["robot"], images=ImageCodec("webp")) as writer:
            for topic in ("state", "action", "cycle", "instruction", "features"):
                writer.write(EXAMPLES[topic])
    return folder


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"expected a target, one of {', '.join(TARGETS)}, got {sys.argv[1:] or 'none'}")
    target = sys.argv.pop(1)
    atheris.Setup([*sys.argv, str(seeds(target))], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
