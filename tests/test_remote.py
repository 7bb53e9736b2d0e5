"""What stands on the other end of the wire: a robot host of somebody's own, an encoder elsewhere, and one that lies."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest
from runs import ROOT, free_port

from control.address import BusAddress
from control.bus import Publisher, Subscriber
from control.command_bus import CommandClient
from control.errors import NotRunning
from control.messages import Frames, State


def readme_block(name: str) -> str:
    """The code block of control/README.md that follows the comment `<!-- name -->`."""
    text = (ROOT / "control/README.md").read_text()
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
    """The documented commands, with two addresses of the loopback for the two machines and a home for each."""
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
