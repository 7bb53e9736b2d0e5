"""`launch.py run` for tests: real processes on a bus of their own, talked to and ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from control.address import BusAddress
from control.command_bus import CommandClient

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
            self.kill()
        self._reader.join(5)
        self.client.close()
        return code

    def kill(self) -> None:
        """All its processes, where it still runs: for what a failed test has left."""
        if self.process.poll() is not None:
            return
        children = self.children().values()
        os.killpg(self.process.pid, signal.SIGKILL)
        for pid in children:
            os.kill(pid, signal.SIGKILL)

    @property
    def text(self) -> str:
        return "".join(self.lines)

    @property
    def result(self) -> dict:
        return json.loads(self.report.read_text())


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
