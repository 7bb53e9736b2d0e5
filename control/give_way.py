"""How a process that only looks on gives way to those that move the robot."""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger("run")

_GROUP = Path("/proc/self/autogroup")


def give_way(niceness: int) -> None:
    """Lower the priority of this process, and of its scheduling group where that is its own.

    Linux (autogroup) shares the processor among sessions first, and a process of a run is a session of its own: its
    niceness alone would change nothing against the others. The group of a terminal is left alone, since it holds the
    terminal's other programs too.
    """
    os.nice(niceness)
    if os.getsid(0) != os.getpid() or not _GROUP.exists() or not _GROUP.read_text():
        return
    try:
        _GROUP.write_text(str(niceness))
    except OSError as error:  # the kernel takes one change in a tenth of a second
        log.warning("this process may take time from the robot's: %s cannot be set: %s", _GROUP, error.strerror)
