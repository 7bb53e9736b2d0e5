"""The supervisor: starts the processes of a run, watches them, restarts the encoder, and ends everything in order.

Knows processes and the operator's commands; refuses to know robots, models and torch. The robot is always held first:
the controller is told to stop before anything is ended, and the robot host, which holds by its watchdog anyway, is
ended last. Children that only listen, like the recorder, may die at any time: that is told, and the run goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from control.address import BusAddress, Lease, check_free, presence
from control.bus import Subscriber
from control.child import Child
from control.command_bus import CommandClient
from control.encoder_watch import EncoderWatch
from control.errors import AddressInUse, SaccadeError
from control.memory import return_freed_memory, settle_names
from control.messages import Mode
from control.reasons import RUN_ENDS
from control.report import RunFigures
from control.script import Script

RECORDER = "recorder"
EXIT_DONE, EXIT_NOT_POSSIBLE, EXIT_USAGE, EXIT_STOPPED, EXIT_DIED = 0, 1, 2, 3, 4
_LAST_LINES_S = 0.5  # for what a child that only listens has said about its end
_STATUS_PERIOD_S = {True: 0.25, False: 5.0}  # on a terminal, and in a log
_ANSWER_S, _CONTROLLER_S, _ROBOT_S, _ENCODER_S = 0.4, 1.2, 1.5, 0.8  # with the status 0.4 s more: 4.3 s
_ORPHANS_S = 4.0
_LISTENERS_S = 5.0  # then the robot is long held, and a recording is worth the wait for its index
_TRIM_S = 60.0
_STABLE_S = 15.0  # an encoder that gave features for so long starts again with the shortest pause


class Supervisor:
    """One run. `children` are robot, encoder and controller, where they are not remote, and those that only listen."""

    def __init__(
        self,
        bus: BusAddress,
        children: Sequence[Child],
        script: Script,
        figures: RunFigures,
        *,
        max_encoder_restarts: int,
        restart_backoff_s: float,
        start_timeout_s: float,
        encoder_hung_s: float,
        show: Callable[[str], None],
        show_status: Callable[[str], None],
        is_terminal: bool,
    ) -> None:
        self._bus, self._children, self._script, self.figures = bus, {c.name: c for c in children}, script, figures
        self._max_restarts, self._backoff_s = max_encoder_restarts, restart_backoff_s
        self._start_timeout_s = start_timeout_s
        self._show, self._show_status, self._is_terminal = show, show_status, is_terminal
        self.encoder_restarts = self._restarts_in_a_row = 0
        self._pause_s = restart_backoff_s
        self._restart_at_s: float | None = None
        self._works_since: tuple[int, float] | None = None  # the epoch of the encoder, and when its first features came
        self._ended_early: set[str] = set()  # of those that only listen
        self._mode: Mode | None = None
        self._encoder_watch = EncoderWatch(bus, encoder_hung_s, start_timeout_s)
        self._client = CommandClient(bus)
        self._status: dict[str, Any] = {}  # the controller's own, asked once a second

    def run(self, stopped: Callable[[], bool], duration_s: float | None) -> int:
        """Until `stopped()`, the duration has passed since the first RUN, the episodes are over, or a process died for
        good; the exit code.
        """
        lease = Lease(presence(self._bus, "run"))
        self._wait_until_free(stopped)
        cycles = Subscriber(self._bus, "cycle", newest_only=False)
        features = Subscriber(self._bus, "features", newest_only=False)
        try:
            for child in self._children.values():
                child.start(self._show)
            code = self._watch(stopped, duration_s, cycles, features)
            self._ask_status()
        finally:
            self._end_in_order()
            for port in (cycles, features, self._script, self._client, self._encoder_watch):
                port.close()
            lease.release()
        return code

    def _wait_until_free(self, stopped: Callable[[], bool]) -> None:
        """The processes of a run whose supervisor was killed end by themselves, in a moment. Raises BusError when they
        do not, or belong to somebody else; at once for any other fault of the address.
        """
        gives_up_s, is_told = time.monotonic() + _ORPHANS_S, False
        while True:
            try:
                check_free(self._bus, set(self._children))
                return
            except AddressInUse as error:
                if stopped() or time.monotonic() > gives_up_s:
                    raise
                if not is_told:
                    self._show(f"       run | waiting at most {_ORPHANS_S:g} s for an earlier process to end: {error}")
                is_told = True
            threading.Event().wait(0.05)

    def _watch(
        self, stopped: Callable[[], bool], duration_s: float | None, cycles: Subscriber, features: Subscriber
    ) -> int:
        ends_s: float | None = None
        gives_up_s = time.monotonic() + self._start_timeout_s
        status_s = measure_s = trim_s = 0.0
        settle_names()  # while the others start
        while not stopped():
            self._drain(cycles, features)
            self._kill_hung_encoder()
            code = self._check_children()
            if code is not None:
                return code
            self._script.step(ready=self.figures.last is not None)
            now_s = time.monotonic()
            is_started = self.figures.has_run or (self._script.is_empty and self.figures.last is not None)
            is_finished = duration_s is None and self._script.is_finished
            if is_started and ends_s is None and duration_s is not None:
                ends_s = now_s + duration_s
            if not is_started and (is_finished or (self._is_bounded(duration_s) and now_s > gives_up_s)):
                return self._give_up()
            if is_finished or (ends_s is not None and now_s >= ends_s):
                break
            if now_s >= status_s:
                self._show_status(self.status_line())
                status_s = now_s + _STATUS_PERIOD_S[self._is_terminal]
            if now_s >= measure_s and self.figures.has_run:
                self._ask_status()
                for child in self._children.values():
                    child.measure()
                measure_s = now_s + 1.0
            if now_s >= trim_s:
                return_freed_memory()
                trim_s = now_s + _TRIM_S
            cycles.socket.poll(50)
        return EXIT_STOPPED if self._mode is Mode.STOP else EXIT_DONE

    def _is_bounded(self, duration_s: float | None) -> bool:
        """Whether this run is to end by itself; another may wait for an encoder for as long as its operator does."""
        return duration_s is not None or self._script.ends

    def _give_up(self) -> int:
        waited = f"within {self._start_timeout_s:g} s" if not self._script.is_finished else "in any episode"
        why = self.figures.last.reason if self.figures.last else "the controller never spoke"
        self._show(f"       run | no RUN cycle {waited}: {why}")
        return EXIT_STOPPED if self._mode is Mode.STOP else EXIT_NOT_POSSIBLE

    def _drain(self, cycles: Subscriber, features: Subscriber) -> None:
        while (cycle := cycles.poll()) is not None:
            self._mode = cycle.mode
            self.figures.add_cycle(cycle)
            self._encoder_watch.add_cycle(cycle)
            self._script.see(cycle)
        while (encoded := features.poll()) is not None:
            self.figures.add_features(encoded)
            self._encoder_watch.add_features(encoded)
            if not encoded.fault:
                self._note_work(encoded.encoder_epoch)

    def _note_work(self, epoch: int) -> None:
        """Only an encoder that works is stable: one that loads for minutes, and dies of its first frame, is not."""
        if self._works_since is None or self._works_since[0] != epoch:
            self._works_since = (epoch, time.monotonic())
        if time.monotonic() - self._works_since[1] > _STABLE_S:
            self._pause_s, self._restarts_in_a_row = self._backoff_s, 0

    def _kill_hung_encoder(self) -> None:
        """It is then found dead, and started again as after any other end."""
        encoder = self._children.get("encoder")
        if encoder is not None and encoder.is_running() and (fault := self._encoder_watch.find_fault()):
            self._show(f"       run | encoder hangs ({fault}): ending it")
            encoder.kill()
            self._encoder_watch.started()

    def _check_children(self) -> int | None:
        """The exit code once something died for good; a dead encoder is started again after a growing pause."""
        for child in self._children.values():
            if child.is_running() or child.name in self._ended_early:
                continue
            code, how = child.process.returncode, child.how_it_ended()
            if not child.is_vital:
                self._ended_early.add(child.name)
                child.forwarder.join(_LAST_LINES_S)
                self._show(f"       run | {child.name} {how}: the run goes on without it")
                continue
            if code == EXIT_USAGE and not self.figures.has_run:
                self._show(f"       run | {child.name} {how}: nothing to restart, see its message above")
                return EXIT_USAGE
            if child.name != "encoder":
                self._show(f"       run | {child.name} {how}: ending the run with the robot held")
                return EXIT_DIED
            if self._restart_at_s is None:
                if self._restarts_in_a_row >= self._max_restarts:
                    self._show(f"       run | encoder {how} for good after {self._restarts_in_a_row} restarts in a row")
                    return EXIT_DIED
                self._restart_at_s = time.monotonic() + self._pause_s
                self._show(f"       run | encoder {how}: starting it again in {self._pause_s:g} s, the robot holds")
            elif time.monotonic() >= self._restart_at_s:
                self._restart_at_s, self._pause_s = None, min(2 * self._pause_s, 30.0)
                self.encoder_restarts += 1
                self._restarts_in_a_row += 1
                child.start(self._show)
                self._encoder_watch.started()
        return None

    def status_line(self) -> str:
        """Mode, rates, ages and the instruction in one line."""
        last = self.figures.last
        if last is None:
            waiting = [name for name, child in self._children.items() if child.is_running()]
            return f"starting: {', '.join(waiting)}"
        action_hz, encode_hz = self.figures.action_hz, self.figures.encode_hz
        parts = [f"{last.mode}{': ' + last.reason if last.reason else ''}"]
        if action_hz:
            parts.append(f"actions {action_hz:.2f} Hz")
        if encode_hz:
            parts.append(f"encodes {encode_hz:.1f} Hz")
        if last.feature_age_ms is not None:
            parts.append(f"feature age {last.feature_age_ms:.0f} ms")
        if text := self._status.get("pending") or self._status.get("instruction"):
            parts.append(f"“{text}”{' (done)' if self._status.get('task_done') else ''}")
        if self.encoder_restarts:
            parts.append(f"encoder restarts {self.encoder_restarts}")
        parts += [f"no {name} any more" for name in sorted(self._ended_early)]
        return " · ".join(parts)

    def result(self) -> dict[str, Any]:
        """The report of the run, without the environment it ran in."""
        episodes = self._script.episodes
        judged = [episode for episode in episodes if episode.done is not None]
        return self.figures.report() | {
            "encoder_restarts": self.encoder_restarts,
            "instruction": self._status.get("instruction") or None,
            "task_done": self._status.get("task_done"),
            "episodes": [asdict(episode) for episode in episodes],
            "episodes_done": sum(bool(episode.done) for episode in judged),
            "episodes_judged": len(judged),
            "scheduling": self._status.get("scheduling"),
            "recording": self._recording(),
            "rss_mb": self.memory_mb(),
            "core_share": {name: child.core_share for name, child in self._children.items()},
        }

    def _recording(self) -> dict[str, Any] | None:
        """What became of the recording, once the run has ended; None where none was wanted."""
        recorder = self._children.get(RECORDER)
        if recorder is None:
            return None
        is_whole = recorder.process.returncode == 0 and RECORDER not in self._ended_early
        return {"is_whole": is_whole, "ended": recorder.how_it_ended(), "said": recorder.last_line}

    def _ask_status(self) -> None:
        try:
            self._status = self._client.request("status", answer_s=_ANSWER_S).values
        except SaccadeError:
            return  # too busy just now, and asked again in a second; a dead controller is found elsewhere

    def memory_mb(self) -> dict[str, dict[str, float]]:
        keys = ("first", "last", "max")
        return {
            name: {key: round(value, 1) for key, value in zip(keys, child.rss_mb, strict=False)}
            for name, child in self._children.items()
        }

    def _end_in_order(self) -> None:
        """Hold the robot, then end controller, encoder and robot host, and last the children that only listen, which
        have then heard everything; whatever is left after that is killed.
        """
        controller = self._children.get("controller")
        if controller is not None and controller.is_running():
            try:
                self._client.request("stop", RUN_ENDS, answer_s=_ANSWER_S)
            except SaccadeError as error:
                self._show(
                    f"       run | the controller did not answer `stop` ({error}); the robot's watchdog holds it"
                )
        self._terminate("encoder")
        listeners = [child.name for child in self._children.values() if not child.is_vital]
        for name, patience_s in (("controller", _CONTROLLER_S), ("robot", _ROBOT_S)):
            if name in self._children:
                self._children[name].end(patience_s)
        self._terminate(*listeners)
        if "encoder" in self._children:
            self._children["encoder"].end(_ENCODER_S)
        for name in listeners:
            self._children[name].end(_LISTENERS_S, _LAST_LINES_S)

    def _terminate(self, *names: str) -> None:
        for name in names:
            if name in self._children:
                self._children[name].ask_to_end()
