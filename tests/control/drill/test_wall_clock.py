"""The wall clock of a process jumps, and nothing that the runtime goes by."""

import subprocess
import sys

import pytest

from control.drill.wall_clock import WallClock, find_compiler

WATCH = """
import time
for _ in range(3):
    input()
    began = time.monotonic_ns()
    time.sleep(0.05)
    print(time.time_ns() // 10**9, time.monotonic_ns() - began, flush=True)
"""


@pytest.mark.skipif(find_compiler() is None, reason="no C compiler")
def test_the_wall_clock_of_a_process_jumps_to_and_fro_while_its_monotonic_one_goes_on(tmp_path):
    clock = WallClock(tmp_path)
    words = clock.around([sys.executable, "-c", WATCH])
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def watched(off_s):
            clock.set(off_s)
            process.stdin.write("\n")
            process.stdin.flush()
            return map(int, process.stdout.readline().split())

        (before_s, _), (set_s, waited_ns), (after_s, _) = watched(0), watched(-86_400), watched(0)
    assert 86_300 < before_s - set_s <= 86_400 and 0 <= after_s - before_s < 60
    assert 50e6 <= waited_ns < 5e9


def test_without_a_compiler_a_command_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("control.drill.wall_clock.find_compiler", lambda: None)
    assert WallClock(tmp_path).around(["python", "x"]) == ["python", "x"]
