"""The whole system: real processes, real sockets, the real simulator, the shipped policy."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from runs import free_port, is_gone

from control.errors import CommandFailed, NotRunning


def test_four_processes_touch_the_named_block_and_report_how_it_went(start):
    run = start("--say", "touch the red block", "--duration", "9", "--seed", "3")
    run.wait_for(lambda status: status["mode"] == "RUN")
    children = run.children()
    assert set(children) == {"robot", "encoder", "control"}
    assert run.finish() == 0, run.text
    report = run.result
    assert report["task_done"] is True, run.text
    assert report["instruction"] == "touch the red block"
    assert report["modes"]["RUN"] >= 0.9 * report["cycles"] and report["encoder_restarts"] == 0
    assert report["missed_ticks"] <= 0.02 * report["cycles"]
    assert report["feature_age_over_bound"] == 0
    wanted = {"action_hz", "encode_hz", "lateness_ms", "cycle_ms", "stage_ms", "state_age_ms", "switch_ms", "startup_s"}
    assert wanted | {"versions", "machine", "commit", "config", "encode_ms", "feature_age_ms", "cycles"} <= set(report)
    assert set(report["stage_ms"]) == {"state", "features", "head", "safety", "publish"}
    assert all(is_gone(pid) for pid in children.values())


def test_the_running_controller_takes_commands_and_refuses_bad_ones(start):
    run = start("--say", "touch the green block")
    try:
        run.wait_for(lambda status: status["mode"] == "RUN")
        reply = run.client.request("say", "touch the blue block")
        assert reply.values["instruction_id"] == 2 and 0 < reply.values["switch_ms"] < 3000
        for text in ("", "x" * 10_000):
            with pytest.raises(CommandFailed, match="the instruction"):
                run.client.request("say", text)
        with pytest.raises(CommandFailed, match="unknown command 'dance'; known: say, status, stop, resume"):
            run.client.request("dance")
        run.client.request("stop")
        assert run.wait_for(lambda status: status["mode"] == "STOP")["reason"] == "stopped by the operator"
        assert run.client.request("resume").message.startswith("RUN")
        status = run.wait_for(lambda status: status["mode"] == "RUN")
        assert status["instruction"] == "touch the blue block"
        second = start("--say", "touch the red block", address=run.address)
        assert second.finish() == 2
        assert "another run is going on" in second.text and "Traceback" not in second.text
        children = run.children()
        run.process.send_signal(signal.SIGINT)
        assert run.finish() == 0, run.text
        assert "killed" not in run.text
        assert all(is_gone(pid) for pid in children.values())
        assert "Traceback" not in run.text
    finally:
        if run.process.poll() is None:
            run.process.terminate()
            run.finish()


def test_an_encoder_that_is_stopped_holds_and_one_that_is_killed_comes_back(start):
    run = start("--say", "touch the yellow block", "--set", "freshness.stop_after_ms=60000")
    try:
        run.wait_for(lambda status: status["mode"] == "RUN")
        encoder = run.children()["encoder"]
        os.kill(encoder, signal.SIGSTOP)
        status = run.wait_for(lambda status: status["mode"] == "HOLD")
        assert "past hold_after_ms 1100" in status["reason"]
        os.kill(encoder, signal.SIGCONT)
        run.wait_for(lambda status: status["mode"] == "RUN")
        os.kill(encoder, signal.SIGKILL)
        run.wait_for(lambda status: status["mode"] == "HOLD")
        run.wait_for(lambda status: status["mode"] == "RUN")
        assert run.children()["encoder"] != encoder
    finally:
        run.process.terminate()
        assert run.finish() == 0, run.text
    assert run.result["encoder_restarts"] == 1
    assert "encoder was killed by SIGKILL: starting it again" in run.text


def test_a_controller_that_was_stopped_does_nothing_it_was_asked_meanwhile_but_stop(start):
    """Whoever asked was told that no controller answers; the message lay in the kernel's buffers."""
    run = start("--say", "touch the red block", "--set", "freshness.stop_after_ms=60000")
    try:
        run.wait_for(lambda status: status["mode"] == "RUN")
        control = run.children()["control"]
        os.kill(control, signal.SIGSTOP)
        with pytest.raises(NotRunning):
            run.client.request("say", "touch the blue block")
        os.kill(control, signal.SIGCONT)
        rejected = run.wait_for(lambda status: status["mode"] == "RUN" and status["rejected"] > 0)
        assert (rejected["instruction"], rejected["pending"]) == ("touch the red block", "")
        os.kill(control, signal.SIGSTOP)
        with pytest.raises(NotRunning):
            run.client.request("stop")
        os.kill(control, signal.SIGCONT)
        assert run.wait_for(lambda status: status["mode"] == "STOP")["reason"] == "stopped by the operator"
        threading.Event().wait(0.6)
        run.client.request("resume")
        run.client.request("say", "touch the blue block")
        run.wait_for(lambda status: status["instruction"] == "touch the blue block")
    finally:
        run.process.terminate()
        run.finish()


@pytest.mark.parametrize("victim", ["control", "robot"])
def test_a_dead_controller_or_robot_host_ends_the_run_with_the_robot_held(start, victim):
    run = start("--say", "touch the red block")
    run.wait_for(lambda status: status["mode"] == "RUN")
    children = run.children()
    os.kill(children[victim], signal.SIGKILL)
    assert run.finish() == 4, run.text
    assert "ending the run with the robot held" in run.text
    assert all(is_gone(pid) for pid in children.values())
    if victim == "control":
        assert "the robot is held, with power on" in run.text


def test_a_supervisor_that_is_killed_leaves_no_orphan_not_even_one_that_hangs(start):
    run = start("--say", "touch the red block")
    run.wait_for(lambda status: status["mode"] == "RUN")
    children = run.children()
    os.kill(children["encoder"], signal.SIGSTOP)
    run.process.kill()
    run.process.wait()
    ends = time.monotonic() + 5
    while time.monotonic() < ends and not all(is_gone(pid) for pid in children.values()):
        threading.Event().wait(0.05)
    assert all(is_gone(pid) for pid in children.values())


def held_sockets(address: str) -> list[str]:
    """What is left in the folder of a bus but files that can be locked again."""
    folder = Path(address.removeprefix("ipc://"))
    left = [path.name for path in folder.iterdir() if path.suffix not in (".lock", ".run")]
    for path in folder.glob("*.lock"):
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                left.append(path.name)
    return left


def test_a_second_start_works_at_once_after_the_supervisor_was_killed(start, tmp_path):
    """Nobody was there to end the children, and they still hold the bus when the next run begins."""
    first = start("--say", "touch the red block", "--record", str(tmp_path / "a.mcap"))
    first.wait_for(lambda status: status["mode"] == "RUN")
    children = first.children()
    assert set(children) == {"robot", "encoder", "control", "record"}
    first.process.kill()
    first.process.wait()
    second = start("--say", "touch the red block", address=first.address)
    second.wait_for(lambda status: status["mode"] == "RUN" and status["pid"] not in children.values())
    ends_s = time.monotonic() + 10.0
    while (left := [name for name, pid in children.items() if not is_gone(pid)]) and time.monotonic() < ends_s:
        threading.Event().wait(0.05)
    assert left == []
    second.process.send_signal(signal.SIGINT)
    assert second.finish() == 0, second.text
    assert held_sockets(first.address) == []


def test_ending_in_stop_has_an_exit_code_of_its_own(start):
    run = start("--say", "touch the red block", "--duration", "4")
    run.wait_for(lambda status: status["mode"] == "RUN")
    run.client.request("stop")
    assert run.finish() == 3, run.text


def test_a_second_run_on_a_tcp_address_is_refused_and_leaves_the_first_alone(start):
    address = f"tcp://127.0.0.1:{free_port()}"
    first = start("--say", "touch the green block", address=address)
    first.wait_for(lambda status: status["mode"] == "RUN")
    second = start("--say", "touch the red block", address=address)
    assert second.finish() == 2, second.text
    assert "another run is going on" in second.text and "Traceback" not in second.text
    status = first.status()
    assert (status["mode"], status["instruction_id"]) == ("RUN", 1)
    first.process.terminate()
    assert first.finish() == 0, first.text


def test_an_encoder_that_keeps_dying_ends_the_run_for_good(start):
    run = start(
        "--say", "touch the red block", "--set", "run.max_encoder_restarts=1", "--set", "run.restart_backoff_s=0.1"
    )
    for _ in range(2):
        run.wait_for(lambda status: status["mode"] == "RUN")
        os.kill(run.children()["encoder"], signal.SIGKILL)
        run.wait_for(lambda status: status["mode"] == "HOLD") if _ == 0 else None
    assert run.finish() == 4, run.text
    assert "encoder was killed by SIGKILL for good after 1 restarts in a row" in run.text


def test_a_duration_without_an_instruction_ends_too(start):
    run = start("--duration", "1")
    assert run.finish() == 0, run.text
    assert run.result["modes"]["RUN"] == 0 and run.result["instruction"] is None
