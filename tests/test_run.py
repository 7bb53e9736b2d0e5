"""The whole system: real processes, real sockets, the real simulator, the shipped policy."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from control.address import BusAddress
from control.bus import CommandClient, Publisher, Subscriber
from control.errors import CommandFailed, NotRunning
from control.messages import Frames, State

ROOT = Path(__file__).resolve().parents[1]


class Run:
    """`launch.py run` as a subprocess on a bus of its own."""

    def __init__(self, *arguments: str, address: str | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="saccade-run-"))
        self.address = address or f"ipc://{self.folder}/bus"
        self.report = self.folder / "report.json"
        words = ["run", "--no-page", "--set", f"bus.address={self.address}", "--report", str(self.report), *arguments]
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch.py"), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(
            target=lambda: self.lines.extend(iter(self.process.stdout.readline, "")), daemon=True
        )
        self._reader.start()
        self.client = CommandClient(BusAddress(self.address))

    def status(self) -> dict:
        return self.client.request("status", answer_s=2.0).values

    def wait_for(self, condition, timeout_s: float = 45.0):
        """The first status that satisfies `condition`."""
        ends = time.monotonic() + timeout_s
        status: dict = {}
        while time.monotonic() < ends:
            assert self.process.poll() is None, f"the run ended: {self.text}"
            try:
                status = self.status()
            except TimeoutError:
                continue
            if condition(status):
                return status
            threading.Event().wait(0.05)
        raise AssertionError(f"did not happen within {timeout_s} s; last status {status}; output:\n{self.text}")

    def children(self) -> dict[str, int]:
        """Process ids by subcommand."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes().split(b"\0")
            except OSError:
                continue
            if b"--parent" in words and str(self.process.pid).encode() in words:
                found[words[2].decode()] = int(entry.parent.name)
        return found

    def finish(self, timeout_s: float = 45.0) -> int:
        try:
            code = self.process.wait(timeout_s)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                for pid in self.children().values():
                    os.kill(pid, signal.SIGKILL)
        self._reader.join(5)
        self.client.close()
        return code

    @property
    def text(self) -> str:
        return "".join(self.lines)

    @property
    def result(self) -> dict:
        return json.loads(self.report.read_text())


@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    """Starts runs, and ends whatever a failed test has left of them."""
    runs: list[Run] = []

    def start(*arguments: str, address: str | None = None) -> Run:
        runs.append(Run(*arguments, address=address))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            children = run.children().values()
            os.killpg(run.process.pid, signal.SIGKILL)
            for pid in children:
                os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    """The first of eight free ports, below the range that the system hands out by itself."""
    for base in range(20_000, 30_000, 10):
        try:
            for port in range(base, base + 8):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    raise AssertionError("no eight free ports in a row")


def is_gone(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" in status.read_text()


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


def readme_block(name: str) -> str:
    """The code block of README.md that follows the comment `<!-- name -->`."""
    text = (ROOT / "README.md").read_text()
    return text.partition(f"<!-- {name} -->")[2].partition("```")[2].partition("\n")[2].partition("```")[0]


def test_the_remote_host_of_the_readme_is_driven_over_the_public_wire(start, tmp_path):
    port = free_port()
    script = tmp_path / "host.py"
    script.write_text(readme_block("remote-host").replace("5550", str(port)))
    host = subprocess.Popen([sys.executable, "-I", str(script)], stdout=subprocess.PIPE, text=True)
    try:
        address = f"tcp://127.0.0.1:{port}"
        run = start("--say", "touch the red block", "--set", "robot.name=remote", "--duration", "3", address=address)
        states = Subscriber(BusAddress(address), "state", newest_only=True)
        run.wait_for(lambda status: status["mode"] == "RUN")
        first = states.poll(2000).values
        assert run.finish() == 0, run.text
        assert np.abs(states.poll(2000).values - first).max() > 0.02
        states.close()
        assert set(run.result["modes"]) == {"INIT", "RUN", "HOLD", "STOP"} and run.result["modes"]["RUN"] > 20
        assert run.result["task_done"] is None
    finally:
        host.kill()
        host.wait()


@pytest.mark.timeout(300)
def test_the_encoder_of_the_readme_runs_on_another_machine_with_keys(tmp_path):
    """README's own commands, with two addresses of the loopback for the two machines and a home for each."""
    port, report = free_port(), tmp_path / "report.json"
    homes = {name: tmp_path / name for name in ("robot", "encoder")}
    text = readme_block("remote-encoder").replace(".venv/bin/python", sys.executable)
    for command in ("run", "encoder"):  # in fp32, since INT8 is slow on processors without its instructions
        text = text.replace(f"launch.py {command}", f"launch.py {command} --set encoder.precision=fp32")
    text = text.replace("scp -rp", "cp -rp").replace("USER@10.0.0.6:", f"{homes['encoder']}/")
    text = text.replace("10.0.0.5:5550", f"127.0.0.1:{port}").replace("10.0.0.6:6660", f"127.0.0.2:{port}")
    here, there = text.split("# on the encoder's machine")
    make_keys, run = here.split(f"{sys.executable} launch.py run")
    run = f"exec {sys.executable} launch.py run {run.strip()} --no-page --duration 4 --report {report}"

    def on(machine, command):
        environment = os.environ | {"HOME": str(homes[machine])}
        words = ["bash", "-ec", command]
        return subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    for home in homes.values():
        home.mkdir()
    keys = on("robot", make_keys)
    assert keys.communicate(timeout=30)[0] and keys.returncode == 0
    encoder, robot = on("encoder", "exec " + there.strip()), on("robot", run)
    try:
        bus = {"address": f"tcp://127.0.0.1:{port}", "encoder": f"tcp://127.0.0.2:{port}"}
        laptop = CommandClient(BusAddress(**bus, keys=str(homes["robot"] / "saccade-keys" / "laptop")))
        stranger = CommandClient(BusAddress(address=bus["address"]))
        ends_s, mode = time.monotonic() + 150.0, ""
        while mode != "RUN" and time.monotonic() < ends_s and robot.poll() is None:
            with contextlib.suppress(NotRunning):
                mode = laptop.request("status", answer_s=1.0).values["mode"]
            threading.Event().wait(0.2)
        assert mode == "RUN"
        with pytest.raises(NotRunning, match="no controller answers"):
            stranger.request("stop", answer_s=1.0)
        said, _ = robot.communicate(timeout=60)
        assert robot.returncode == 0, said
    finally:
        for process in (robot, encoder):
            if process.poll() is None:
                process.terminate()
        heard, _ = encoder.communicate(timeout=60)
        laptop.close()
        stranger.close()
    assert "Traceback" not in said + heard
    found = json.loads(report.read_text())
    assert found["modes"]["RUN"] > 30 and found["modes"]["STOP"] == 0 and found["encodes"] > 10


def test_a_remote_robot_with_other_cameras_ends_the_run_with_both_sizes(start, tmp_path):
    port = free_port()
    script = tmp_path / "host.py"
    script.write_text(readme_block("remote-host").replace("5550", str(port)).replace("[112, 112]", "[64, 64]"))
    host = subprocess.Popen([sys.executable, "-I", str(script)])
    try:
        run = start("--say", "touch it", "--set", "robot.name=remote", address=f"tcp://127.0.0.1:{port}")
        assert run.finish() == 2, run.text
        assert "camera 'front' gives 64x64, the policy was trained at 112x112" in run.text
        assert "Traceback" not in run.text
    finally:
        host.kill()
        host.wait()


def test_nan_and_garbage_in_the_state_hold_the_arm_with_a_reason(start, tmp_path):
    """A robot host that first speaks well, then sends NaN, then garbage, on the real sockets of a real run."""
    from control.clock import FakeClock
    from sim.tabletop import TabletopRobot

    address = f"ipc://{tempfile.mkdtemp(prefix='saccade-run-')}/bus"
    bus = BusAddress(address)
    robot = TabletopRobot(FakeClock())
    robot.connect()
    spec_out, state_out = Publisher(bus, "robot", latch=True), Publisher(bus, "state")
    frames_out = Publisher(bus, "frames")
    images, values = robot.read_frames(), robot.read_state()
    feed, stop = {"values": values}, threading.Event()

    def speak():
        seq = 0
        while not stop.wait(0.02):
            seq += 1
            spec_out.send(robot.spec)
            frames_out.send(Frames(seq, time.monotonic_ns(), images))
            if feed["values"] is not None:
                state_out.send(State(seq, time.monotonic_ns(), feed["values"]))
            else:
                state_out._socket.send(os.urandom(80))

    speaker = threading.Thread(target=speak)
    speaker.start()
    run = start("--say", "touch the red block", "--set", "robot.name=remote", address=address)
    try:
        run.wait_for(lambda status: status["mode"] == "RUN")
        feed["values"] = np.where(np.arange(7) == 2, np.nan, values)
        status = run.wait_for(lambda status: status["mode"] == "HOLD")
        assert status["reason"] == "the state of elbow is nan: sensor or driver fault"
        feed["values"] = None
        status = run.wait_for(lambda status: "robot host stalled" in status["reason"])
        assert "expected one msgpack map" in status["reason"] or "wire version" in status["reason"], status
        feed["values"] = values
        run.wait_for(lambda status: status["mode"] == "RUN")
    finally:
        run.process.terminate()
        code = run.finish()
        stop.set()
        speaker.join()
        for port in (spec_out, state_out, frames_out):
            port.close()
    assert code == 0
