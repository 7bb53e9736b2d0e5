"""Where the topics live, who binds which, and that nobody else holds the address already."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from control.errors import AddressInUse, BusError

# topic -> the process that binds it; the order fixes the tcp ports
OWNERS = {
    "robot": "robot",
    "frames": "robot",
    "state": "robot",
    "features": "encoder",
    "instruction": "controller",
    "action": "controller",
    "cycle": "controller",
    "command": "controller",
}
_MAX_IPC_PATH = 100  # the kernel allows 107 bytes


@dataclass(frozen=True, slots=True)
class BusAddress:
    """Where the topics live: `ipc://NAME` or `ipc:///DIR` (one machine, this user only), or `tcp://HOST:PORT` (a port a
    topic, counted up from PORT). `encoder` may name another tcp address for the one process that may be remote.

    Anyone who reaches a tcp port can command the robot: hosts other than loopback need `keys`, the folder of this
    machine's keys (control/keys.py), which then hold on every tcp socket.
    """

    address: str = "ipc://saccade"
    encoder: str | None = None
    keys: str | None = None

    def __post_init__(self) -> None:
        for topic in OWNERS:
            self.endpoint(topic)

    def endpoint(self, topic: str) -> str:
        base = self.encoder if self.encoder and OWNERS[topic] == "encoder" else self.address
        scheme, _, rest = base.partition("://")
        if scheme == "ipc" and rest:
            path = ipc_folder(rest) / topic
            if len(str(path).encode()) > _MAX_IPC_PATH:
                raise BusError(f"bus address '{base}': its socket path {path} is longer than {_MAX_IPC_PATH} bytes")
            return f"ipc://{path}"
        host, _, port = rest.rpartition(":")
        if scheme != "tcp" or not host or not port.isdigit() or not 1024 <= int(port) <= 65000:
            raise BusError(
                f"bus address '{base}': expected ipc://NAME, ipc:///FOLDER or tcp://HOST:PORT, port 1024..65000"
            )
        if host not in ("127.0.0.1", "localhost") and self.keys is None:
            raise BusError(
                f"bus address '{base}' is open to the network, and whoever reaches it can command the robot;"
                " use tcp://127.0.0.1:PORT, or make keys with `launch.py keys --out DIR` and set bus.keys: DIR/robot"
            )
        return f"tcp://{host}:{int(port) + list(OWNERS).index(topic)}"

    def machine(self, topic: str) -> str:
        """By whose key the owner of a topic is known: `robot`, or `encoder` where that has an address of its own."""
        return "encoder" if self.encoder and OWNERS[topic] == "encoder" else "robot"


def ipc_folder(name: str) -> Path:
    """The folder of the sockets of `ipc://NAME`; private to this user."""
    if name.startswith("/"):
        return Path(name)
    return _base_folder() / name


def lock_file(endpoint: str) -> Path:
    """Where a `Lease` keeps the lock of an endpoint, with the id of the process that holds it."""
    scheme, _, rest = endpoint.partition("://")
    return Path(rest + ".lock") if scheme == "ipc" else _base_folder() / f"{scheme}-{rest.replace(':', '-')}.lock"


def _base_folder() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) if runtime else Path(tempfile.gettempdir()) / f"saccade-{os.getuid()}"


def _make_private(folder: Path) -> None:
    """Make the folder if need be. Whoever may write in it, or in the one above, could put a socket in our place."""
    for part in (folder.parent, folder) if folder.parent == _base_folder() else (folder,):
        part.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = part.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            state = f"owner {found.st_uid}, mode {found.st_mode & 0o777:o}"
            raise BusError(
                f"bus folder {part} can be changed by other users ({state}):"
                " `chmod 700` it if it is yours, or choose another bus address"
            )


class Lease:
    """Holds an endpoint for this process. ZeroMQ itself would silently take over an ipc path that is in use, and a
    second run on a tcp address would talk to the first one's controller before its own fails to bind.

    The kernel gives the lock back when the process ends, however it ends.
    """

    def __init__(self, endpoint: str) -> None:
        path = lock_file(endpoint)
        self._socket = Path(endpoint.removeprefix("ipc://")) if endpoint.startswith("ipc://") else None
        try:
            _make_private(path.parent)
            self._file = open(path, "a+")  # noqa: SIM115 - held until release
        except OSError as error:
            if isinstance(error, BusError):
                raise
            raise BusError(f"bus address {endpoint}: {path} cannot be made: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise AddressInUse(
                f"bus address {endpoint} is in use by process {holder}: another run is going on;"
                " stop it, or give this one its own with --set bus.address=ipc://NAME"
            ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self, removes_socket: bool = False) -> None:
        """Twice is fine. With `removes_socket` the file of a bound ipc endpoint is removed: ZeroMQ leaves it."""
        if removes_socket and self._socket is not None and not self._file.closed:
            self._socket.unlink(missing_ok=True)  # while the lock is held, it can be nobody else's
        self._file.close()


@contextmanager
def announced(bus: BusAddress, name: str) -> Iterator[None]:
    """So that `top` finds a process that binds no topic. Of several with one name the first is found."""
    try:
        lease = Lease(presence(bus, name))
    except AddressInUse:
        yield  # unlisted, and as good as the other in everything else
        return
    try:
        yield
    finally:
        lease.release()


def presence(bus: BusAddress, name: str) -> str:
    """What a process of this name holds beside the topics: supervisor `run`, `page`, `recorder`."""
    return f"{bus.endpoint('command')}.{name}"


def check_free(bus: BusAddress, owners: set[str]) -> None:
    """Raises BusError when another process of this machine holds a topic that one of these owners would bind."""
    for topic, owner in OWNERS.items():
        if owner in owners:
            Lease(bus.endpoint(topic)).release()
