"""That a process which only passes messages on gives back what it no longer needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from control.memory import RETURNS_MEMORY

ROOT = Path(__file__).resolve().parents[2]
HELD_BACK = """
import ctypes, os, sys
from control.memory import return_freed_memory, return_large_blocks
if sys.argv[1] == "returns":
    return_large_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
libc.free(libc.malloc(8 << 20))  # glibc learns from this one
before, blocks = resident(), [libc.malloc(1 << 20) for _ in range(40)]
for block in blocks:
    libc.memset(block, 1, 1 << 20)
for block in blocks[:-1]:  # the last one keeps the heap from shrinking
    libc.free(block)
if sys.argv[1] == "trims":
    return_freed_memory()
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_large_blocks_go_back_to_the_system_as_they_are_freed_or_once_a_minute():
    def left(how):
        words = [sys.executable, "-c", HELD_BACK, how]
        return int(subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout)

    assert left("keeps") > 30 << 20
    assert left("returns") < 5 << 20
    assert left("trims") < 5 << 20


NAMES = """
import os, sys
from control.memory import return_large_blocks, settle_names
return_large_blocks()
kept = [sys.intern(f"kept {number}") for number in range(36000)]
del kept[20000:]
if sys.argv[1] == "settled":
    settle_names()
before = int(open("/proc/self/statm").read().split()[1])
for number in range(100_000):
    sys.intern(f"passes {number}")
print((int(open("/proc/self/statm").read().split()[1]) - before) * os.sysconf("SC_PAGE_SIZE"))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="only Python 3.11 was seen to do it")
def test_a_table_of_names_takes_its_final_size_before_the_first_is_recorded():
    def growth(how):
        words = [sys.executable, "-c", NAMES, how]
        environment = {**os.environ, **RETURNS_MEMORY}
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert growth("not settled") > 500_000
    assert growth("settled") < 50_000
