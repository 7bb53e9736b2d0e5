"""Onlookers yield, also where Linux shares the processor among sessions before it looks at niceness."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import os, pathlib
from control.give_way import give_way
give_way(7)
print(os.nice(0), pathlib.Path("/proc/self/autogroup").read_text().split()[-1])
"""


def priorities(own_session):
    words = [sys.executable, "-c", CODE]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, start_new_session=own_session)
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    nice, group = ran.stdout.split()
    return int(nice), group


def own_group():
    """'/autogroup-N nice M'; '' where the kernel has no such groups, or shows none, as in some containers."""
    try:
        return Path("/proc/self/autogroup").read_text()
    except OSError:
        return ""


@pytest.mark.skipif(not own_group(), reason="no scheduling groups here")
def test_a_process_of_a_run_gives_way_as_a_group_and_one_of_a_terminal_by_itself_only():
    begins_at = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[16])
    group = own_group().split()[-1]
    assert priorities(own_session=True) == (min(19, begins_at + 7), "7")
    assert priorities(own_session=False) == (min(19, begins_at + 7), group)
