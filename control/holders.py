"""Which processes of this machine make up the run on a bus, and what memory they take.

No message carries process ids. They stand in the locks of control/address.py: whoever binds a topic holds its lock and
has written its id there, and so have supervisor, recorder and page in locks of their own. A process elsewhere, or one
that speaks the wire without our lease, is not found. Nothing is locked here, not even for a moment: that could make a
starting run believe that another one is going on.
"""

from __future__ import annotations

import os
from pathlib import Path

from control.address import BusAddress, lock_file, presence

_TOPICS = {"controller": "command", "robot": "robot", "encoder": "features"}
_PRESENCES = {"supervisor": "run", "recorder": "recorder", "page": "page"}


def find_processes(bus: BusAddress) -> dict[str, int]:
    """Process id by name of those of controller, robot, encoder, supervisor, recorder and page that run here."""
    found = {}
    held = {name: bus.endpoint(topic) for name, topic in _TOPICS.items()}
    held |= {name: presence(bus, what) for name, what in _PRESENCES.items()}
    for name, endpoint in held.items():
        pid = _holder(lock_file(endpoint))
        if pid is not None:
            found[name] = pid
    return found


def rss_mb(pid: int) -> float | None:
    """Resident memory in MiB, None when the process has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_s(pid: int) -> float | None:
    """Seconds of processor time so far, all threads together, None when the process has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def scheduling(pid: int) -> str:
    """`SCHED_FIFO 20`, or `normal`; '' when the process has ended."""
    try:
        policy, priority = os.sched_getscheduler(pid), os.sched_getparam(pid).sched_priority
    except OSError:
        return ""
    names = {os.SCHED_FIFO: "SCHED_FIFO", os.SCHED_RR: "SCHED_RR"}
    return f"{names[policy]} {priority}" if policy in names else "normal"


def _holder(lock: Path) -> int | None:
    """The process that has written its id into a lock and has the file open: a lease is held as long as that."""
    try:
        written = lock.read_text().strip()
        held = lock.stat()
        opened = list(Path(f"/proc/{int(written)}/fd").iterdir())
    except (OSError, ValueError):  # no lock, an empty one, or a process that has ended or is another user's
        return None
    return int(written) if any(_is_same(file, held) for file in opened) else None


def _is_same(file: Path, held: os.stat_result) -> bool:
    try:
        return os.path.samestat(file.stat(), held)
    except OSError:  # closed meanwhile, or no file at all
        return False
