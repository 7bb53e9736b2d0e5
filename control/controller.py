"""The controller process: sockets, commands and real-time set-up around the loop. No thread but this one, and no torch.

The head is given, whatever it computes with. Commands are served while the loop waits for its next deadline, so that an
instruction reaches the encoder at once and not a period later; they never run past the deadline. Features are taken off
the bus in the same wait, so that their age can be split into transport and waiting; they are decoded in the tick.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
from collections.abc import Callable

import zmq

from control.address import BusAddress
from control.bus import Latest, Publisher, StampedLatest, Subscriber
from control.clock import NS_PER_MS, NS_PER_S, MonotonicClock, Pacer, Tick
from control.command_bus import CommandServer
from control.head import ActionHead
from control.loop import ControlLoop, LoopSettings, Ports
from control.messages import Command, Cycle, Mode, Reply, RobotSpec
from control.reasons import CONTROLLER_ENDS, kind
from control.wire import MAX_TEXT_CHARS

log = logging.getLogger("controller")

_GUARD_NS = 2 * NS_PER_MS  # commands are left alone this close to a deadline
_NOTICE_MS = 100  # how soon a signal is noticed at low rates
_REALTIME_PRIORITY = 20


def ask_for_realtime() -> str:
    """SCHED_FIFO for this thread where the machine permits it; returns what was granted, for the report."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_REALTIME_PRIORITY))
        return f"SCHED_FIFO {_REALTIME_PRIORITY}"
    except (PermissionError, OSError, AttributeError) as error:
        return f"normal ({type(error).__name__}: real-time scheduling is not permitted here)"


class _Ending(Exception):  # noqa: N818 - no error: the way out of a wait
    """The process was asked to end while it waited for its next deadline."""


class Controller:
    """Serves commands between ticks and answers each: `say` when the switch is made, the others at once."""

    def __init__(
        self,
        bus: BusAddress,
        head: ActionHead,
        settings: LoopSettings,
        *,
        clock: MonotonicClock,
        realtime: bool,
        find_misfits: Callable[[RobotSpec], list[str]],
        needed_cameras: frozenset[str] | None = None,
    ) -> None:
        self._clock = clock
        self._period_ns = settings.period_ns
        self._server = CommandServer(bus)
        self._features = StampedLatest(bus, "features")
        self._inboxes = (
            Subscriber(bus, "robot", newest_only=True, changes_only=True),
            Latest(bus, "state"),
            self._features,
        )
        self._outboxes = (
            Publisher(bus, "instruction"),
            Publisher(bus, "action"),
            Publisher(bus, "cycle", queue=1000),
        )
        self._poller = zmq.Poller()
        for port in (self._server, self._features):
            self._poller.register(port.socket, zmq.POLLIN)
        session = clock.now_ns() // NS_PER_MS  # differs from every earlier controller of this machine since its start
        ports = Ports(*self._inboxes, *self._outboxes, lambda: self._features.arrived_ns)
        self.loop = ControlLoop(clock, head, settings, ports, session, find_misfits, needed_cameras)
        self._waiting: list[tuple[bytes, int, int]] = []  # client, request id, instruction id
        self._resuming: list[tuple[bytes, int]] = []
        self._cycle: Cycle | None = None
        self._realtime = realtime
        self.scheduling = "normal (not asked for)"

    def run(self, stopped: Callable[[], bool]) -> None:
        """Until `stopped()`. The last action says STOP, so that the robot holds at once and not by its watchdog."""
        gc.collect()
        gc.freeze()
        if self._realtime:
            self.scheduling = ask_for_realtime()
        log.info("controller at %g Hz, scheduling %s", NS_PER_S / self._period_ns, self.scheduling)
        pacer = Pacer(self._clock, self._period_ns, idle=lambda deadline_ns: self._serve_until(deadline_ns, stopped))
        mode, reason = Mode.INIT, ""
        try:
            while not stopped():
                try:
                    tick = pacer.wait()
                except _Ending:
                    break
                cycle = self._cycle = self.loop.tick(tick)
                if (cycle.mode, kind(cycle.reason)) != (mode, kind(reason)):
                    log.info("%s%s", cycle.mode, f": {cycle.reason}" if cycle.reason else "")
                    mode, reason = cycle.mode, cycle.reason
                self._answer_waiting(cycle)
                self._serve_next()  # once a tick, so that `stop` is heard even where ticks leave no time to wait
            self.loop.stop(CONTROLLER_ENDS)
            self.loop.tick(Tick(self._clock.now_ns(), 0, 0))
        finally:
            for port in (self._server, *self._inboxes, *self._outboxes):
                port.close()

    def _serve_until(self, deadline_ns: int, stopped: Callable[[], bool]) -> None:
        while (remaining_ns := deadline_ns - self._clock.now_ns() - _GUARD_NS) > NS_PER_MS:
            if stopped():
                raise _Ending
            self._poller.poll(min(remaining_ns // NS_PER_MS, _NOTICE_MS))
            self._features.collect()
            self._serve_next()

    def _serve_next(self) -> None:
        received = self._server.poll()
        if received is not None:
            self._serve(*received)

    def _serve(self, client: bytes, command: Command) -> None:
        match command.verb:
            case "say":
                self._say(client, command)
            case "status":
                self._finish(client, command.request_id, "done", "", self._status())
            case "stop":
                self.loop.stop(command.text[:200] or "stopped by the operator")
                self.loop.note(f"stop: {command.text}" if command.text else "stop")
                self._finish(client, command.request_id, "done", "stopped; `resume` goes on", {})
            case "resume":
                self.loop.resume()
                self.loop.note("resume")
                self._resuming.append((client, command.request_id))
            case verb:
                why = f"unknown command '{verb[:40]}'; known: say, status, stop, resume"
                self.loop.note(f"refused: {why}")
                self._finish(client, command.request_id, "failed", why, {})

    def _say(self, client: bytes, command: Command) -> None:
        try:
            instruction = self.loop.say(command.text)
        except ValueError as error:
            self.loop.note(f"say refused: {error}")
            self._finish(client, command.request_id, "failed", str(error), {})
            return
        self.loop.note(f"say {instruction.id}: {instruction.text}")
        for other, request_id, instruction_id in self._waiting:
            message = f"instruction {instruction_id} was replaced by {instruction.id} before it began"
            self._finish(other, request_id, "failed", message, {})
        self._waiting = [(client, command.request_id, instruction.id)]
        values = {"instruction_id": instruction.id}
        self._finish(client, command.request_id, "accepted", f"instruction {instruction.id}", values)

    def _answer_waiting(self, cycle: Cycle) -> None:
        for client, request_id in self._resuming:
            outcome = "failed" if cycle.mode is Mode.STOP else "done"
            self._finish(client, request_id, outcome, f"{cycle.mode}{': ' + cycle.reason if cycle.reason else ''}", {})
        self._resuming.clear()
        for client, request_id, instruction_id in list(self._waiting):
            if cycle.instruction_id != instruction_id:
                continue
            if cycle.switch_ms is not None:
                text = f"acting on instruction {instruction_id} after {cycle.switch_ms:.0f} ms"
                values = {"instruction_id": instruction_id, "switch_ms": cycle.switch_ms}
                self._finish(client, request_id, "done", text, values)
            elif cycle.mode is Mode.STOP:
                text = f"instruction {instruction_id} is set, but the controller is in STOP ({cycle.reason}): `resume`"
                self._finish(client, request_id, "done", text, {"instruction_id": instruction_id, "switch_ms": None})
            else:
                continue
            self._waiting.remove((client, request_id, instruction_id))

    def _finish(self, client: bytes, request_id: int, outcome: str, message: str, values: dict) -> None:
        self._server.reply(client, Reply(request_id, outcome, message[:MAX_TEXT_CHARS], values))

    def _status(self) -> dict[str, float | int | str | bool | None]:
        loop, cycle = self.loop, self._cycle
        newest = loop.pending or loop.acting
        return {
            "mode": str(loop.mode),
            "reason": loop.reason,
            "instruction_id": loop.acting.id if loop.acting else 0,
            "instruction": loop.acting.text if loop.acting else "",
            "pending": newest.text if newest is not None and loop.pending is not None else "",
            "robot": loop.spec.name if loop.spec else "",
            "cycles": cycle.seq + 1 if cycle else 0,
            "feature_age_ms": cycle.feature_age_ms if cycle else None,
            "state_age_ms": cycle.state_age_ms if cycle else None,
            "encode_ms": cycle.encode_ms if cycle else None,
            "task_done": cycle.task_done if cycle and newest and cycle.task_instruction_id == newest.id else None,
            "rejected": (cycle.rejected if cycle else 0) + self._server.rejected,
            "rate_hz": NS_PER_S / self._period_ns,
            "scheduling": self.scheduling,
            "pid": os.getpid(),
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
