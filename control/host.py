"""The robot host process: drives one Robot, stamps what it measures, interpolates between targets, holds by itself.

Knows the robot and the bus; refuses to know why a target was chosen. It follows an action only while the controller
says RUN, the chunk is valid and the last action is younger than the watchdog; in every other case it holds. Positions
are clipped once more to the robot's own limits: this process is the last one before the arm.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator

import numpy as np

from control.address import BusAddress
from control.bus import Latest, Publisher
from control.camera_watch import CameraLimits, CameraWatch
from control.clock import NS_PER_MS, NS_PER_S, Clock, MonotonicClock, Pacer
from control.errors import RobotError, RobotFailure, SaccadeError, WireError
from control.history import StateHistory
from control.messages import ActionChunk, Frames, Instruction, Mode, RobotSpec, State
from control.reasons import Told
from control.robot import Judge, Robot, StampsImages
from control.wire import decode, encode, max_bytes

log = logging.getLogger("robot")

_FRAMES_HEADER_BYTES = 32 << 10  # all of a message but its pixels: names, stamps and faults of the most cameras
_PUSHED_S = 0.05  # at its velocity limit: an arm that came so much further from its command in STOP was moved by hand


class Follower:
    """Interpolates a chunk at the host's rate: row k is due k + 1 periods after its stamp, straight lines between.

    No two targets are further apart than the robot's velocity limit allows in one host period, whatever came late: a
    chunk that arrives overdue, a stall of this process, an arm that stands elsewhere than the controller thinks.
    """

    def __init__(self, spec: RobotSpec, watchdog_ns: int, host_period_ns: int) -> None:
        self._spec = spec
        self._watchdog_ns = watchdog_ns
        self._max_step = spec.max_velocity * (host_period_ns / NS_PER_S)
        self._chunk: ActionChunk | None = None
        self._from: np.ndarray | None = None
        self._from_ns = 0
        self._newest_ns = 0  # the latest stamp of an action that was not from the future
        self._nearest: np.ndarray | None = (
            None  # (A,) how near to its command the arm has been in STOP, None outside it
        )
        self.commanded: np.ndarray | None = None  # (A,) the newest command, None while only a measurement can tell
        self.reason = "no action yet"

    def find_old(self, chunk: ActionChunk) -> str:
        """Why an action is none to take: one that was sent later has been taken. '' when it is the newest.

        The same action again is harmless: its stamp is the watchdog's.
        """
        if chunk.stamp_ns >= self._newest_ns:
            return ""
        late_ms = (self._newest_ns - chunk.stamp_ns) / NS_PER_MS
        return f"action {chunk.seq} is {late_ms:.0f} ms older than the newest: out of order, or sent again; ignored"

    def take(self, chunk: ActionChunk, measured: np.ndarray | None, now_ns: int) -> None:
        """A new chunk replaces the one before. Its way begins at the last command, else at what is `measured` (A,).

        The last command is forgotten where the arm was moved by hand in STOP, and only there: a gripper that holds a
        block is never measured where it is commanded to, and must not open when it is resumed.
        """
        if chunk.stamp_ns <= now_ns + NS_PER_MS:  # one from the future must not make all others seem old
            self._newest_ns = chunk.stamp_ns
        if chunk.mode is Mode.STOP or self.is_stopped:
            self._look_for_hands(measured)
        if chunk.mode is not Mode.STOP:
            self._nearest = None
        self._chunk, self._from_ns = chunk, now_ns
        self._from = measured if self.commanded is None else self.commanded

    @property
    def is_stopped(self) -> bool:
        """Whether the last action said STOP; then `take` has to be told what is measured."""
        return self._chunk is not None and self._chunk.mode is Mode.STOP

    def _look_for_hands(self, measured: np.ndarray | None) -> None:
        if self.commanded is None or measured is None:
            return
        velocity = self._spec.max_velocity
        off = np.abs(measured - self.commanded)
        self._nearest = off if self._nearest is None else np.fmin(self._nearest, off)  # one that is NaN tells nothing
        if (off > self._nearest + np.where(np.isfinite(velocity), _PUSHED_S * velocity, 0.0)).any():
            self.commanded = None

    def target(self, now_ns: int) -> np.ndarray | None:
        """(A,) to command now, None to hold; `reason` says why. Report what was really commanded to `commanded`."""
        chunk = self._chunk
        self.reason = self._find_fault(chunk, now_ns)
        if self.reason or chunk is None:
            return None
        start = chunk.targets[0] if self._from is None else self._from  # nobody measures it: begin at the first target
        reference = start if self.commanded is None else self.commanded
        period_ns = chunk.period_s * NS_PER_S
        points_ns = chunk.stamp_ns + period_ns * np.arange(1, len(chunk.targets) + 1)
        times = np.concatenate(([self._from_ns], np.maximum(points_ns, self._from_ns + 1)))
        path = np.vstack((start, chunk.targets))
        wanted = np.array([np.interp(now_ns, times, column) for column in path.T])
        inside = np.clip(wanted, self._spec.action_low, self._spec.action_high)
        target = reference + np.clip(inside - reference, -self._max_step, self._max_step)
        if not np.isfinite(target).all():
            self.reason = "the way from the measured state to the action holds NaN or infinity"
            return None
        return target

    def _find_fault(self, chunk: ActionChunk | None, now_ns: int) -> str:
        if chunk is None:
            return "no action yet"
        if chunk.mode is not Mode.RUN:
            return f"controller is in {chunk.mode}"
        if chunk.targets.ndim != 2 or chunk.targets.shape[1] != len(self._spec.action_names) or not len(chunk.targets):
            return f"action of shape {chunk.targets.shape}, expected (H, {len(self._spec.action_names)})"
        if not np.isfinite(chunk.targets).all() or not 0.001 <= chunk.period_s <= 10.0:
            return "action with NaN, infinity, or a period outside 0.001..10 s"
        age_ns = now_ns - chunk.stamp_ns
        if age_ns > self._watchdog_ns:
            return f"watchdog: no action for {self._watchdog_ns / NS_PER_MS:.0f} ms"
        if age_ns < -NS_PER_MS:
            return "action stamped in the future: controller and robot host must share one clock"
        if now_ns > chunk.valid_until_ns:
            return "the action chunk has run out"
        return ""


class RobotHost:
    """One robot on the bus. `step` does everything that is due now; `run` paces it."""

    def __init__(
        self,
        robot: Robot,
        bus: BusAddress,
        *,
        clock: Clock | None = None,
        host_hz: float = 100.0,
        state_hz: float = 50.0,
        camera_hz: float = 25.0,
        watchdog_ns: int = 300 * NS_PER_MS,
        history_samples: int = 0,
        cameras: CameraLimits | None = None,
    ) -> None:
        """`history_samples` above 0: the robot is measured at every step, and a state carries so many of the last.

        Raises RobotError for a robot that is larger than messages may be.
        """
        _check_fits_the_wire(robot.spec)
        self._robot = robot
        self._judge = robot if isinstance(robot, Judge) else None
        self._stamps = robot if isinstance(robot, StampsImages) else None
        self._watch = CameraWatch(robot.spec.cameras, cameras or CameraLimits())
        self._camera_faults: dict[str, str] = {}
        self._told = Told(log)
        self._clock = clock or MonotonicClock()
        self._spec = robot.spec
        self._follower = Follower(self._spec, watchdog_ns, round(NS_PER_S / host_hz))
        self._periods_ns = {
            "host": round(NS_PER_S / host_hz),
            "state": round(NS_PER_S / state_hz),
            "frames": round(NS_PER_S / camera_hz),
            "robot": NS_PER_S,
        }
        self._history = StateHistory(history_samples, host_hz) if history_samples else None
        self._due_ns = dict.fromkeys(self._periods_ns, 0)
        self._seq = {"state": 0, "frames": 0}
        self._moving = False
        self._instruction: tuple[int, int] = (0, 0)  # session, id
        self._rejected = 0
        self._state_out = Publisher(bus, "state")
        self._frames_out = Publisher(bus, "frames")
        self._spec_out = Publisher(bus, "robot", latch=True)
        self._actions = Latest(bus, "action")
        self._instructions = Latest(bus, "instruction")

    def run(self, stopped: Callable[[], bool]) -> None:
        """Until `stopped()`; whatever ends it, the robot is held and closed."""
        with contextlib.ExitStack() as on_exit:
            on_exit.callback(self.close)
            on_exit.callback(self._robot.close)
            with self._explained("could not be connected"):
                self._robot.connect()
            on_exit.callback(self._hold_at_the_end)
            log.info("robot '%s' is ready: %s", self._spec.name, self._rates())
            pacer = Pacer(self._clock, self._periods_ns["host"])
            with self._explained("failed in mid-run"):
                while not stopped():
                    pacer.wait()
                    self.step()

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """A driver may raise anything, and the operator needs one clear line."""
        try:
            yield
        except SaccadeError:
            raise
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
            raise RobotFailure(f"robot '{self._spec.name}' {what}: {fault}; see its driver") from error

    def _hold_at_the_end(self) -> None:
        with self._explained("could not be held; use its emergency stop"):
            self._robot.hold()
        log.info("the robot is held, with power on")

    def step(self) -> None:
        now_ns = self._clock.now_ns()
        self._spec_out.greet()
        if self._is_due("robot", now_ns):
            self._spec_out.send(self._spec)
        self._take_instruction()
        self._follow()
        is_due = self._is_due("state", now_ns)
        if is_due or self._history is not None:
            stamp_ns = self._clock.now_ns()
            values = self._robot.read_state()
            if self._history is not None:
                self._history.add(stamp_ns, values)
            if is_due:
                self._publish_state(stamp_ns, values)
        if self._is_due("frames", now_ns):
            self._publish_frames()

    def _follow(self) -> None:
        """Each decision is made on the time of that moment: whatever came before in this step took its own."""
        chunk = self._actions.poll()
        if self._actions.rejected > self._rejected:
            self._rejected = self._actions.rejected
            self._told.warn(f"refused a message: {self._actions.last_error}")
        if chunk is not None and (old := self._follower.find_old(chunk)):
            self._told.warn(old)
        elif chunk is not None:
            needed = self._follower.commanded is None or chunk.mode is Mode.STOP or self._follower.is_stopped
            measured = self._measured() if needed else None
            self._follower.take(chunk, measured, self._clock.now_ns())
        target = self._follower.target(self._clock.now_ns())
        if target is not None:
            self._follower.commanded = self._robot.apply(target)
        elif self._moving:
            self._robot.hold()
        if self._moving != (target is not None):
            self._moving = target is not None
            log.info("moving" if self._moving else f"holding: {self._follower.reason}")

    def _measured(self) -> np.ndarray | None:
        """(A,) the measured value of every action, None where one is not measured."""
        state = dict(zip(self._spec.state_names, self._robot.read_state(), strict=True))
        if not state.keys() >= set(self._spec.action_names):
            return None
        return np.array([state[name] for name in self._spec.action_names])

    def _take_instruction(self) -> None:
        if self._judge is None:
            return
        instruction: Instruction | None = self._instructions.poll()
        if instruction is not None and (instruction.session, instruction.id) != self._instruction:
            self._instruction = (instruction.session, instruction.id)
            self._judge.begin(instruction)

    def _publish_state(self, stamp_ns: int, values: np.ndarray) -> None:
        window = self._history.window() if self._history is not None else None
        done = self._judge.judge() if self._judge is not None else None
        task_id, faults = self._instruction[1], self._camera_faults
        self._state_out.send(State(self._next("state"), stamp_ns, values, window, task_id, done, faults))

    def _publish_frames(self) -> None:
        stamp_ns = self._clock.now_ns()
        images = self._robot.read_frames()
        captured_ns = self._stamps.captured_ns if self._stamps is not None else {}
        read_ns, before = self._clock.now_ns(), self._camera_faults
        self._camera_faults = self._watch.find_faults(stamp_ns, images, captured_ns, read_ns)
        for name in before.keys() - self._camera_faults.keys():
            log.info("camera '%s' is well again", name)
        for name, fault in self._camera_faults.items():
            self._told.warn(f"camera '{name}' {fault}")
        seq, ready_ns = self._next("frames"), self._clock.now_ns()
        self._frames_out.send(Frames(seq, stamp_ns, images, ready_ns, captured_ns, self._camera_faults))

    def _is_due(self, what: str, now_ns: int) -> bool:
        if now_ns < self._due_ns[what]:
            return False
        period_ns = self._periods_ns[what]
        late_ns = now_ns - self._due_ns[what]
        # On the grid when on time; after a stall from now on, without catching up.
        self._due_ns[what] = now_ns + period_ns if late_ns > period_ns else self._due_ns[what] + period_ns
        return True

    def _next(self, topic: str) -> int:
        self._seq[topic] += 1
        return self._seq[topic]

    def _rates(self) -> str:
        return ", ".join(f"{name} {NS_PER_S / period_ns:g} Hz" for name, period_ns in self._periods_ns.items())

    def close(self) -> None:
        for port in (self._state_out, self._frames_out, self._spec_out, self._actions, self._instructions):
            port.close()


def _check_fits_the_wire(spec: RobotSpec) -> None:
    """Its readers would refuse what is too large, and it would wait for them for ever."""
    try:
        decode("robot", encode(spec))
    except (WireError, TypeError) as error:
        raise RobotError(f"robot '{spec.name}' cannot be announced: {error}; see the spec of its driver") from None
    pixels = sum(3 * height * width for height, width in spec.cameras.values())
    most = max_bytes("frames") - _FRAMES_HEADER_BYTES
    if pixels > most:
        raise RobotError(
            f"robot '{spec.name}': its {len(spec.cameras)} cameras give {pixels:,} bytes a capture, expected at most"
            f" {most:,} (a message of `frames`); give fewer cameras or smaller images"
        )


def stop_on_signals() -> Callable[[], bool]:
    """True once SIGINT or SIGTERM has come: each process ends its own loop in order."""
    came: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda signum, frame: came.append(signum))
    return lambda: bool(came)


def end_on_sigterm() -> None:
    """SIGTERM as Ctrl-C: for a command that waits for processes of its own, so that they are ended too."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
