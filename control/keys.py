"""Key files of the bus: which machine this is, and the public keys of the machines that belong to it.

A machine has one folder, named by `bus.keys`: its own pair in `NAME.key_secret`, and in `*.key` the public keys of all
that may talk to each other. `robot.key` is who answers on the robot's machine, `encoder.key` who answers on a remote
encoder's. The format is that of czmq and zmq.auth, so hosts in other languages can read the same files. Knows files
and key pairs, refuses to know sockets.

A file is refused where others could have read a secret or added themselves to those who are let in.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.auth import load_certificate

from control.errors import KeyFileError

ROBOT, ENCODER = "robot", "encoder"
_SECRET, _PUBLIC = ".key_secret", ".key"
_KEY_CHARS = 40  # 32 bytes in Z85
_MAX_BYTES = 4096
_MADE_BY = "make keys with `launch.py keys --out DIR`, and name this machine's folder: bus.keys: DIR/robot"


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys of one machine, in Z85. `known` are the public keys by machine, its own among them."""

    folder: Path
    name: str
    public: bytes
    secret: bytes
    known: dict[str, bytes]

    def public_of(self, machine: str) -> bytes:
        """Raises KeyFileError where the folder does not know that machine."""
        if machine not in self.known:
            raise KeyFileError(
                f"bus.keys: {self.folder} holds no {machine}{_PUBLIC}, by which the {machine}'s machine is known; it"
                f" holds {', '.join(sorted(self.known))}: copy the whole folder that `launch.py keys` made"
            )
        return self.known[machine]

    def __repr__(self) -> str:
        return f"KeyRing({self.name} of {self.folder})"  # no secret in a log or a traceback


def load_keys(folder: Path) -> KeyRing:
    """The keys in a folder. Raises KeyFileError for what is missing, damaged, or open to other users."""
    if not folder.is_dir():
        raise KeyFileError(f"bus.keys: {folder} is no folder; {_MADE_BY}")
    _check_mode(folder, 0o022, "700", "other users can add keys of their own to it")
    secrets = sorted(folder.glob(f"*{_SECRET}"))
    if len(secrets) != 1:
        got = ", ".join(path.name for path in secrets) or "none"
        inside = sorted(path.parent.name for path in folder.glob(f"*/*{_SECRET}"))
        hint = f"name one of the folders in it: {', '.join(inside)}" if inside else _MADE_BY
        raise KeyFileError(f"bus.keys: {folder}: expected one file NAME{_SECRET}, got {got}; {hint}")
    name = secrets[0].name.removesuffix(_SECRET)
    _check_mode(secrets[0], 0o077, "600", "other users can read or change it, so make new keys if they may have")
    public, secret = _read(secrets[0])
    if secret is None or zmq.curve_public(secret) != public:
        raise KeyFileError(f"key file {secrets[0]}: expected a secret-key and its public-key; the file is damaged")
    known = {}
    for path in sorted(folder.glob(f"*{_PUBLIC}")):
        _check_mode(path, 0o022, "600", "other users can put a key of their own there")
        known[path.name.removesuffix(_PUBLIC)], _ = _read(path)
    if known.setdefault(name, public) != public:
        raise KeyFileError(
            f"key file {folder / name}{_PUBLIC} is not the public key of {secrets[0].name}: they come from two runs of"
            " `launch.py keys`; copy the whole folder again"
        )
    return KeyRing(folder, name, public, secret, known)


def make_keys(out: Path, clients: Sequence[str] = ()) -> list[str]:
    """Make a folder in `out` for each machine: robot, encoder and the clients. Returns their names.

    All or nothing, and nothing is ever overwritten. Raises KeyFileError.
    """
    machines = [ROBOT, ENCODER, *clients]
    for name in clients:
        is_plain = name.isascii() and name.replace("-", "").replace("_", "").isalnum() and len(name) <= 40
        if not is_plain or machines.count(name) > 1:
            raise KeyFileError(
                f"keys --client {name!r}: expected a name of letters, digits, - and _ that stands once and is"
                f" neither {ROBOT} nor {ENCODER}"
            )
    pairs = {name: zmq.curve_keypair() for name in machines}
    try:
        made = Path(tempfile.mkdtemp(prefix=".keys-", dir=out.parent))  # of mode 700
    except OSError as error:
        raise KeyFileError(f"keys --out {out}: nothing can be made in {out.parent}: {error.strerror}") from None
    try:
        for name, (public, secret) in pairs.items():
            folder = made / name
            folder.mkdir(mode=0o700)
            _write(folder / f"{name}{_SECRET}", public, secret)
            for other, (other_public, _) in pairs.items():
                _write(folder / f"{other}{_PUBLIC}", other_public)
        made.rename(out)  # fails on anything but an empty folder
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        raise KeyFileError(
            f"keys --out {out}: {error.strerror}; keys are never overwritten: name a folder that does not exist yet"
        ) from None
    return machines


def _write(path: Path, public: bytes, secret: bytes | None = None) -> None:
    kind = "secret" if secret else "public"
    lines = [f"# CURVE {kind} key of a machine on a Saccade bus", "metadata", "curve"]
    lines.append(f'    public-key = "{public.decode()}"')
    if secret:
        lines.append(f'    secret-key = "{secret.decode()}"')
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write("\n".join(lines) + "\n")


def _read(path: Path) -> tuple[bytes, bytes | None]:
    """The public key, and the secret one if the file has it. Raises KeyFileError."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            raise KeyFileError(f"key file {path}: expected a text file of a few lines; {_MADE_BY}")
        public, secret = load_certificate(path)
    except ValueError as error:
        raise KeyFileError(f"key file {path}: expected a line public-key; the file is damaged: {error}") from None
    except OSError as error:
        if isinstance(error, KeyFileError):
            raise
        raise KeyFileError(f"key file {path} cannot be read: {error.strerror}") from None
    for what, key in (("public-key", public), ("secret-key", secret)):
        if key is not None and not _is_key(key):
            raise KeyFileError(
                f"key file {path}: expected {what} to have {_KEY_CHARS} characters of Z85, got {len(key)};"
                " the file is damaged, copy it again"
            )
    return public, secret


def _is_key(key: bytes) -> bool:
    if len(key) != _KEY_CHARS:
        return False
    try:
        zmq.curve_public(key)  # refuses what is no Z85
    except zmq.ZMQError:
        return False
    return True


def _check_mode(path: Path, forbidden: int, expected: str, why: str) -> None:
    try:
        found = path.stat()
    except OSError as error:
        raise KeyFileError(f"key file {path} cannot be read: {error.strerror}") from None
    if found.st_uid not in (os.getuid(), 0) or found.st_mode & forbidden:
        state = f"owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}"
        raise KeyFileError(f"{path}: expected your own with mode {expected}, got {state}: {why}; `chmod {expected}` it")
