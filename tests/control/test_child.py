"""One subprocess of a run: how it is ended, and what is measured of it."""

import sys
import threading

import pytest

from control.child import Child

SLOW_TO_EXIT = """
import signal, sys, time
came = []
signal.signal(signal.SIGTERM, lambda *_: came.append(1))
print("ready", flush=True)
while not came:
    time.sleep(0.01)
signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Python does while it exits
print("ending", flush=True)
time.sleep(1)
"""


def started(code, **options):
    child, said = Child("recorder", [sys.executable, "-c", code], **options), []
    child.start(said.append)
    return child, said


def wait_for(found):
    for _ in range(3000):
        if found():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came")


def test_a_process_that_was_asked_to_end_is_not_killed_by_being_asked_again():
    child, said = started(SLOW_TO_EXIT)
    wait_for(lambda: any("ready" in line for line in said))
    child.ask_to_end()
    wait_for(lambda: any("ending" in line for line in said))
    child.end(30.0)
    assert child.how_it_ended() == "ended with code 0"


def test_a_share_of_a_core_is_measured_from_the_second_look_on():
    child, said = started("print('ready', flush=True)\nwhile True: pass")
    wait_for(lambda: said)
    child.measure()
    assert child.core_share is None and child.rss_mb[0] > 0
    threading.Event().wait(0.5)
    child.measure()
    assert child.core_share > 0
    child.end(5.0)
    child.measure()
    assert child.core_share > 0 and len(child.rss_mb) == 3


@pytest.mark.parametrize(("is_vital", "allocator"), [(True, "None"), (False, "malloc")])
def test_only_a_process_that_listens_keeps_small_objects_where_they_can_be_given_back(monkeypatch, is_vital, allocator):
    monkeypatch.delenv("PYTHONMALLOC", raising=False)
    monkeypatch.setenv("SACCADE_TEST", "kept")
    code = "import os; print(os.environ.get('PYTHONMALLOC'), os.environ.get('SACCADE_TEST'), flush=True)"
    child, said = started(code, is_vital=is_vital)
    wait_for(lambda: said)
    child.process.wait(10)
    assert said[0].endswith(f"{allocator} kept")
