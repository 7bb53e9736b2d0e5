"""Memory of a process that runs for hours, so that it can be seen that nothing grows.

glibc learns: once a large block was freed, blocks of that size come from the heap, where what is freed between others
stays. A recorder that was sent messages eight times as fast as by a run grew from 56.1 to 64.3 MB in three minutes, and
had 60.2 after malloc_trim; with the threshold fixed it had 56.6 at first and, trimmed, 56.8 at the end. The threshold
alone was not enough: in an hour's run a recorder went from 61.1 to 63.0, with nothing more in use (tracemalloc, and
mallinfo2 over as many messages). Nor was a trim once a minute: from 60.8 to 63.9, since Python itself keeps small
objects in blocks of 1 MB, of which each goes back only when all of it is free. With small objects in glibc's heap too,
page by page, the recorder took as much processor time as before (8 % of a core at two and a half times a run's rate),
and an hour took it from 62.5 to 64.1. What was left were the messages that ZeroMQ's CONFLATE loses (control/bus.py),
and one step of 940 kB after thirteen minutes: Python's table of the names that it keeps once counts what was taken out
as used. Every decoded image puts in a few names and takes them out again (20 a second, of 28,656), and once the table
is full it is built anew, there twice as large.
For processes that only pass messages on: one that computes takes and frees blocks all the time, and wants its heaps.
"""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
_LARGE = 128 * 1024  # bytes; where glibc begins to learn
_NAMES = 200_000  # more than a table with room for 87,000 of a process with up to 43,000 can take
RETURNS_MEMORY = {"PYTHONMALLOC": "malloc"}  # variables that a process has to be started with


def return_large_blocks() -> None:
    """From now on a large block goes back to the system when it is freed. Does nothing where there is no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """What is free in the heap goes back to the system; about a millisecond. Does nothing where there is no glibc."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def settle_names() -> None:
    """Python's table of names takes the size now that it would come to within hours. To be called after the imports.

    About 50 ms. Does nothing from Python 3.12 on, which kept all names for good and would keep these.
    """
    if sys.version_info >= (3, 12):
        return
    for number in range(_NAMES):
        sys.intern(f"saccade settles {number}")  # nobody keeps it: out again at once, and its place is used up
