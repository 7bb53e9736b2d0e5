"""A run for a drill: the real supervisor and the real processes, each on a bus of its own with the relay between them.

Knows how they are started, watched and started again; refuses to know what is done to them. The supervisor runs in a
thread of the drill's process, so its children are the drill's, and are ended only by their own ids.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from control.address import BusAddress
from control.bus import Subscriber
from control.child import Child, python_command
from control.clock import NS_PER_MS, NS_PER_S
from control.command_bus import CommandClient
from control.config import Config
from control.drill.judge import Promises, Seen
from control.drill.relay import Relay
from control.drill.robot import read_journal, tell
from control.drill.wall_clock import WallClock
from control.errors import NotRunning, SaccadeError, WireError
from control.messages import ActionChunk, Cycle, Mode, RobotSpec
from control.report import RunFigures
from control.script import Script
from control.supervisor import RECORDER, Supervisor
from control.wire import decode

PROCESSES = {"robot": "robot", "encoder": "encoder", "controller": "control"}  # name -> subcommand
_SAY_EVERY_S = 2.5  # so that the arm is always under way
_STARTS_S = 90.0
_LOADED = "one encode of"  # in the line of an encoder that is ready
_POLL_MS = 20


class Rig:
    """Started once; `restart` after a fault that ended the run. `stopped` ends every wait."""

    def __init__(
        self,
        settings: Config,
        spec: RobotSpec,
        launcher: Path,
        arguments: Sequence[str],
        instructions: Sequence[str],
        folder: Path,
        stopped: Callable[[], bool],
    ) -> None:
        """`arguments` name config and overrides as for a process; `instructions` are said in turn, again and again."""
        self._settings, self._launcher, self._arguments, self._folder = settings, launcher, list(arguments), folder
        self._instructions, self._stopped = list(instructions), stopped
        self.journal, self.faults = folder / "journal", folder / "faults.json"
        self.buses = {name: BusAddress(f"ipc://{folder}/{name}") for name in PROCESSES}
        for name in PROCESSES:
            (folder / name).mkdir(mode=0o700)
        self.spec = spec
        self.wall_clock = WallClock(folder)
        self.seen, self.lines = Seen(), list[tuple[int, str]]()
        self.relay = Relay(self.buses)
        self._read = self._ready_ns = 0
        self._generation = 0
        self._lock = threading.Lock()
        self._ends = threading.Event()
        self._children: dict[str, Child] = {}
        self._run: threading.Thread | None = None
        self.exit_code: int | None = None

    @property
    def promises(self) -> Promises:
        settings = self._settings
        period_ns = settings.loop_settings().period_ns
        return Promises(
            spec=self.spec,
            period_ns=period_ns,
            host_period_ns=round(NS_PER_S / settings.robot.host_hz),
            watchdog_ns=settings.watchdog_ns,
            hold_after_ms=settings.freshness.hold_after_ms,
            state_max_age_ms=settings.control.state_max_age_ms,
            longest_silence_ns=5 * period_ns,
        )

    def start(self) -> None:
        """Returns in RUN. Raises NotRunning when that does not come."""
        self._ends.clear()
        self.exit_code = None
        self._generation += 1
        tell(self.faults, {})
        self.wall_clock.set(0)
        children = [Child(name, self._command(subcommand, self._words(name))) for name, subcommand in PROCESSES.items()]
        recording = self._folder / f"recording-{self._generation}.mcap"
        words = ["--live", "--out", str(recording), *self._words("controller")]
        children.insert(0, Child(RECORDER, self._command("record", words), is_vital=False))
        self._children = {child.name: child for child in children}
        bus, run = self.buses["controller"], self._settings.run
        figures = RunFigures(1000 / self._settings.control.rate_hz, self._settings.view_period_ms, time.monotonic_ns())
        supervisor = Supervisor(
            bus,
            children,
            Script(bus, [], float("inf")),
            figures,
            max_encoder_restarts=run.max_encoder_restarts,
            restart_backoff_s=run.restart_backoff_s,
            start_timeout_s=run.start_timeout_s,
            encoder_hung_s=self._settings.encoder_hung_s,
            show=self._note,
            show_status=lambda text: None,
            is_terminal=False,
        )
        self._run = threading.Thread(target=self._supervise, args=(supervisor,), daemon=True)
        self._run.start()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.wait(lambda: self.is_healthy(0) or self.has_ended, _STARTS_S)
        if not self.is_healthy(0):
            last = self.last_cycle
            said = "\n".join(line for _, line in self.lines[-12:]) or "nothing"
            raise NotRunning(
                f"the run did not begin within {_STARTS_S:g} s: {last.reason if last else 'no cycle'}; it said:\n{said}"
            )

    def end(self) -> None:
        """As Ctrl-C ends a run; returns when no process is left."""
        self._ends.set()
        for thread in (self._run, self._listener):
            if thread is not None:
                thread.join()

    def close(self) -> None:
        self.end()
        self.relay.close()

    @property
    def has_ended(self) -> bool:
        return self._run is None or not self._run.is_alive()

    @property
    def last_cycle(self) -> Cycle | None:
        with self._lock:
            return self.seen.cycles[-1] if self.seen.cycles else None

    def child(self, name: str) -> Child:
        return self._children[name]

    def is_healthy(self, since_ns: int) -> bool:
        """Whether the newest cycle is a plain RUN, not long ago, on a capture that was taken after `since_ns`."""
        cycle, now_ns = self.last_cycle, time.monotonic_ns()
        if cycle is None or cycle.feature_age_ms is None or cycle.mode is not Mode.RUN or cycle.reason:
            return False
        is_new = cycle.stamp_ns > now_ns - 3 * self.promises.period_ns
        return is_new and cycle.stamp_ns - cycle.feature_age_ms * NS_PER_MS > since_ns

    def was_healthy(self, from_ns: int) -> bool:
        """Whether every cycle since then was a plain RUN, none of them missing."""
        with self._lock:
            cycles = [cycle for cycle in self.seen.cycles[-200:] if cycle.stamp_ns >= from_ns]
        if not cycles or any(cycle.mode is not Mode.RUN or cycle.reason for cycle in cycles):
            return False
        return cycles[0].stamp_ns - from_ns < 2 * self.promises.period_ns

    def processes(self) -> dict[str, int | None]:
        """The id of each process, None where it has ended."""
        return {name: child.process.pid if child.is_running() else None for name, child in self._children.items()}

    def lines_since(self, from_ns: int) -> list[tuple[int, str]]:
        """What the processes and the supervisor wrote, and when."""
        with self._lock:
            return [line for line in self.lines if line[0] >= from_ns]

    def wait(self, condition: Callable[[], bool], most_s: float) -> bool:
        """Whether it came true in time."""
        ends_ns = time.monotonic_ns() + round(most_s * NS_PER_S)
        while not condition():
            if self._stopped() or time.monotonic_ns() > ends_ns:
                return False
            threading.Event().wait(0.01)
        return True

    def client(self) -> CommandClient:
        return CommandClient(self.buses["controller"])

    @property
    def is_loading(self) -> bool:
        """Whether the newest encoder has been started and is not ready."""
        return self.child("encoder").is_running() and self._ready_ns < self._encoder_began_ns

    def load_ms(self, since_ns: int) -> float | None:
        """How long the newest encoder took from its start until it was ready; None for one of before `since_ns`."""
        began_ns = self._encoder_began_ns
        return (self._ready_ns - began_ns) / NS_PER_MS if since_ns < began_ns < self._ready_ns else None

    @property
    def _encoder_began_ns(self) -> int:
        return round(self.child("encoder").started_s * NS_PER_S)

    def snapshot(self, since_ns: int) -> Seen:
        """What was seen since then, with what each first thing follows."""
        with self._lock:
            rows, self._read = read_journal(self.journal, self._read)
            self.seen.rows += rows
            self.seen.passed = sorted([*self.seen.passed, *self._passed()], key=lambda action: action.stamp_ns)
            return self.seen.since(since_ns)

    def _passed(self) -> list[ActionChunk]:
        """What the robot host has got since it was asked last, without what it refused."""
        passed = []
        while self.relay.actions_passed:
            with contextlib.suppress(WireError):
                passed.append(decode("action", self.relay.actions_passed.popleft()))
        return passed

    def forget(self, before_ns: int) -> None:
        """Drops what was seen before, so that a long campaign does not grow."""
        with self._lock:
            self.seen = self.seen.since(before_ns)
            self.lines = [line for line in self.lines if line[0] >= before_ns]

    def _command(self, subcommand: str, words: Sequence[str]) -> list[str]:
        return self.wall_clock.around(python_command(self._launcher, subcommand, words))

    def _words(self, process: str) -> list[str]:
        robot = self._settings.robot
        options = {
            "robot": robot.name,
            "options": robot.options,
            "journal": str(self.journal),
            "faults": str(self.faults),
        }
        words = [*self._arguments, "--set", f"bus.address={self.buses[process].address}"]
        if process == "robot":
            words += ["--set", "robot.name=drill", "--set", f"robot.options={json.dumps(options)}"]
        return words

    def _supervise(self, supervisor: Supervisor) -> None:
        try:
            self.exit_code = supervisor.run(lambda: self._ends.is_set() or self._stopped(), None)
        except SaccadeError as error:
            self._note(f"       run | {error}")
            self.exit_code = error.exit_code

    def _note(self, line: str) -> None:
        now_ns = time.monotonic_ns()
        if line.strip().startswith("encoder") and _LOADED in line:
            self._ready_ns = now_ns
        with self._lock:
            self.lines.append((now_ns, line))

    def _listen(self) -> None:
        """Cycles and actions as the controller sends them; and an instruction now and then."""
        bus = self.buses["controller"]
        cycles = Subscriber(bus, "cycle", newest_only=False)
        actions = Subscriber(bus, "action", newest_only=False)
        client, said_s, count = CommandClient(bus), 0.0, 0
        try:
            while not self._ends.is_set() and not self.has_ended:
                cycles.socket.poll(_POLL_MS)
                now_ns = time.monotonic_ns()
                with self._lock:
                    while (action := actions.poll()) is not None:
                        self.seen.actions.append(action)
                    while (cycle := cycles.poll()) is not None:
                        self.seen.cycles.append(cycle)
                        self.seen.cycle_heard_ns.append(now_ns)
                while client.receive():
                    pass
                if self.seen.cycles and time.monotonic() - said_s > _SAY_EVERY_S:
                    client.send("say", self._instructions[count % len(self._instructions)])
                    said_s, count = time.monotonic(), count + 1
        finally:
            for port in (cycles, actions, client):
                port.close()
