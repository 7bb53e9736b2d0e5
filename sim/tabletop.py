"""The simulated robot: the table-top scene behind the Robot and Judge protocols, in step with any Clock.

Knows MuJoCo. Physics time follows `clock.now_ns()`: with the machine's clock it runs live, with a FakeClock in lockstep
and bit for bit the same for the same seed and calls. Refuses to know who drives it, and learned models.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from control.captures import Captures
from control.clock import NS_PER_MS, NS_PER_S, Clock
from control.messages import Instruction, RobotSpec
from control.page_arm import Link
from sim import kinematics, tasks
from sim.appearance import Appearance
from sim.cameras import Cameras
from sim.evaluated import Evaluated
from sim.gl import RenderingUnavailable, load_mujoco
from sim.judging import TaskJudge
from sim.links import LINKS
from sim.options import camera_sizes, seed_number
from sim.placement import place_blocks
from sim.scene import COLOURS, TIMESTEP_S, table_top_xml

__all__ = ["HOME", "RenderingUnavailable", "TabletopRobot"]

log = logging.getLogger("robot")

HOME = kinematics.tool_down(np.array([[0.30, 0.0, 0.24]]), 0.03)[0]
STEP_NS = round(TIMESTEP_S * NS_PER_S)
MAX_STEPS_A_CALL = NS_PER_S // 4 // STEP_NS
PUSHED_M_S = 0.02  # a block this fast as a task begins is being pushed
LOOK_STEPS = 5  # physics steps from one look at the blocks to the next
_HAND = ("hand", "finger_left", "finger_right")


class TabletopRobot(Evaluated):
    """A 6-joint arm with a gripper, four blocks and a bin. State and action: six angles (rad) and the opening (m).

    `cameras` is a choice of front, left, right, top, wrist, or {name: (height, width)}; all five by default, at
    `image_size`. With `reset_on_instruction` every new instruction finds the blocks re-placed, seeded by
    (seed, its id). Raises ConfigError for options it cannot use. One thread calls it: an OpenGL context belongs to the
    thread that made it.
    """

    def __init__(
        self,
        clock: Clock,
        seed: int = 0,
        cameras: Mapping[str, tuple[int, int]] | Iterable[str] | None = None,
        image_size: tuple[int, int] = (112, 112),
        reset_on_instruction: bool = False,
    ) -> None:
        self._spec = RobotSpec(
            name="tabletop",
            cameras=camera_sizes(cameras, image_size),
            state_names=kinematics.STATE_NAMES,
            action_names=kinematics.STATE_NAMES,
            action_low=kinematics.LOW,
            action_high=kinematics.HIGH,
            max_velocity=kinematics.MAX_VELOCITY,
            action_period_s=0.1,
            max_acceleration=kinematics.MAX_ACCELERATION,
        )
        self._clock = clock
        self._seed = seed_number(seed)
        self._reset_on_instruction = reset_on_instruction
        self._mujoco: Any = None
        self._model: Any = None
        self._data: Any = None
        self._cameras: Cameras | None = None
        self._physics_ns = 0
        self._steps = 0
        self.dropped_ns = 0  # physics time given up because a call came more than 0.25 s after the one before
        self._told_dropped_ns, self._told_ns = 0, -NS_PER_S
        self._judge = TaskJudge()

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    @property
    def links(self) -> tuple[Link, ...]:
        """See `control.page_arm.HasLinks`."""
        return LINKS

    def connect(self) -> None:
        """Build the scene and open the cameras; raises RenderingUnavailable where there is no OpenGL."""
        self.cameras.open()
        self._physics_ns = self._clock.now_ns()

    def read_state(self) -> np.ndarray:
        self._catch_up()
        return self._state()

    def read_frames(self) -> dict[str, np.ndarray]:
        """The newest physics state; shadows and multisampling are off (7-35 times the time, measured)."""
        self._catch_up()
        return self.cameras.render()

    def apply(self, targets: np.ndarray) -> np.ndarray:
        targets = np.asarray(targets, dtype=np.float64)
        if targets.shape != (len(kinematics.STATE_NAMES),) or not np.isfinite(targets).all():
            raise ValueError(
                f"apply wants {len(kinematics.STATE_NAMES)} finite targets ({', '.join(kinematics.STATE_NAMES)}),"
                f" got shape {targets.shape}: {targets}"
            )
        self._catch_up()
        commanded = np.clip(targets, kinematics.LOW, kinematics.HIGH)
        self._data.ctrl[:] = commanded
        return commanded

    def hold(self) -> None:
        """The servos keep their last target by themselves; physics catches up with the clock."""
        self._catch_up()

    def close(self) -> None:
        if self._cameras is not None:
            self._cameras.close()

    def begin(self, instruction: Instruction) -> None:
        self._catch_up()
        if self._reset_on_instruction:
            self._replace_blocks(np.random.default_rng([self._seed, instruction.id]))
        self._judge = TaskJudge(tasks.parse(instruction.text), self._in_contact(), self.blocks)
        self._steps = 0  # of this judge: the same episode is judged the same, whatever was before

    def judge(self) -> bool | None:
        """Whether the task is done, as judging.py says; None for an unknown task."""
        if self._data is not None:
            self._catch_up()
        return self._judge.verdict

    @property
    def task(self) -> tasks.Task | None:
        """What the last instruction was understood as."""
        return self._judge.task

    @property
    def is_over(self) -> bool:
        """Whether nothing can change the verdict any more."""
        return self._judge.is_over

    @property
    def touched(self) -> tuple[str, ...]:
        """The blocks that the gripper touched since `begin` or `reset`, in the order of the first touch."""
        return tuple(self._judge.touched)

    @property
    def cameras(self) -> Cameras:
        """What the cameras show of the last physics step."""
        self._load()
        assert self._cameras is not None
        return self._cameras

    @property
    def blocks(self) -> dict[str, np.ndarray]:
        """Centre of every block, {colour: (3,)} m, as of the last physics step."""
        self._load()
        return {colour: self._data.body(colour).xpos.copy() for colour in COLOURS}

    @property
    def block_poses(self) -> np.ndarray:
        """(4, 4): x, y, z in m and yaw in rad of every block in the order of COLOURS, as of the last physics step."""
        self._load()
        rows = []
        for colour in COLOURS:
            body = self._data.body(colour)
            axes = body.xmat.reshape(3, 3)
            flat = int(np.argmin(np.abs(axes[2, :2])))  # of the two sides, the one that is nearer to level
            rows.append((*body.xpos, np.arctan2(axes[1, flat], axes[0, flat])))
        return np.array(rows)

    @property
    def tip(self) -> np.ndarray:
        """The point between the ends of the fingers, (3,) m, as of the last physics step."""
        self._load()
        return self._data.site("tip").xpos.copy()

    def reset(self, seed: int) -> None:
        """A fresh episode: arm at home, blocks placed at random by `seed`, at least 9 cm apart. Judging starts over."""
        self._load()
        self._mujoco.mj_resetData(self._model, self._data)
        rng = np.random.default_rng([seed_number(seed), 0xB10C])
        self._look.draw(self._model, rng)
        self.pose(HOME, place_blocks(rng, 1, avoid=None)[0])
        self._physics_ns = self._clock.now_ns()
        self._judge = TaskJudge()

    def pose(self, joints: np.ndarray, blocks: np.ndarray | None = None) -> None:
        """Put the arm at `joints` (7,) and the blocks at `blocks` (4, 4): x, y, z, yaw in the order of COLOURS.

        At rest and with the servo targets there; no physics is stepped.
        """
        self._load()
        data = self._data
        joints = np.clip(np.asarray(joints, dtype=np.float64), kinematics.LOW, kinematics.HIGH)
        data.qpos[self._joint_address] = joints[:6]
        data.qpos[self._finger_address] = joints[6] / 2
        data.qvel[:] = 0.0
        data.ctrl[:] = joints
        if blocks is not None:
            self._set_blocks(blocks)
        self._mujoco.mj_forward(self._model, data)

    def jitter(self, rng: np.random.Generator) -> None:
        """Other light, and cameras that are mounted a little differently: up to 2 mm and 0.15 degrees off."""
        self._load()
        self._look.draw(self._model, rng)
        self._mujoco.mj_forward(self._model, self._data)

    def draw(self, seed: int, count: int) -> Captures:
        """See `control.robot.Draws`: scenes and poses as in training, from this seed."""
        from sim.demonstrations import sample_batches  # it drives this robot

        batches = sample_batches(seed, count, per_frame=1, acting=1, pool=4 * count, cameras=self._spec.cameras)
        batch = next(batches)
        return Captures(batch.images, batch.states[:, 0].astype(np.float64), tuple(batch.instructions))

    def deepest_arm_contact(self) -> float:
        """How deep the arm overlaps anything right now, m; 0 where nothing touches. For choosing poses to render."""
        self._load()
        contact = self._data.contact
        arm = (self._is_arm[contact.geom1] | self._is_arm[contact.geom2]) & (contact.dist < 0)
        return float(-contact.dist[arm].min()) if arm.any() else 0.0

    def _load(self) -> None:
        if self._model is not None:
            return
        mujoco = self._mujoco = load_mujoco()
        sizes = self._spec.cameras.values()
        largest = (max((height for height, _ in sizes), default=1), max((width for _, width in sizes), default=1))
        model = self._model = mujoco.MjModel.from_xml_string(table_top_xml(largest))
        self._data = mujoco.MjData(model)
        self._joint_address = np.array([model.joint(name).qposadr[0] for name in kinematics.JOINTS])
        self._finger_address = np.array([model.joint(name).qposadr[0] for name in _HAND[1:]])
        self._block_address = [model.joint(colour).qposadr[0] for colour in COLOURS]
        self._block_velocity = [model.joint(colour).dofadr[0] for colour in COLOURS]
        self._look = Appearance(model)
        self._cameras = Cameras(model, self._data, self._spec.cameras)
        hand = [model.body(name).id for name in _HAND]
        self._is_hand = np.isin(model.geom_bodyid, hand)
        self._is_arm = (model.geom_contype == 1) & (model.geom_bodyid > 0)
        self._block_index = np.full(model.ngeom, -1)
        self._block_index[[model.geom(colour).id for colour in COLOURS]] = range(len(COLOURS))
        self.reset(self._seed)

    def _state(self) -> np.ndarray:
        qpos = self._data.qpos
        return np.append(qpos[self._joint_address], qpos[self._finger_address].sum())

    def _catch_up(self) -> None:
        self._load()
        steps = (self._clock.now_ns() - self._physics_ns) // STEP_NS
        if steps > MAX_STEPS_A_CALL:
            dropped_ns = (steps - MAX_STEPS_A_CALL) * STEP_NS
            self.dropped_ns += dropped_ns
            self._physics_ns += dropped_ns
            steps = MAX_STEPS_A_CALL
            self._tell_dropped()
        self._physics_ns += steps * STEP_NS
        if steps and self._judge.task is None:
            self._mujoco.mj_step(self._model, self._data, steps)
            return
        for _ in range(steps):
            self._mujoco.mj_step(self._model, self._data)
            touching = self._contacts()
            self._judge.watch(touching)
            self._steps += 1
            if self._steps % LOOK_STEPS == 0:
                self._judge.look(self.blocks, touching, LOOK_STEPS * TIMESTEP_S)

    def _tell_dropped(self) -> None:
        """Once a second at most: a machine that is too slow drops time in every call."""
        now_ns = self._clock.now_ns()
        if now_ns - self._told_ns < NS_PER_S:
            return
        newly_ms, all_ms = (self.dropped_ns - self._told_dropped_ns) / NS_PER_MS, self.dropped_ns / NS_PER_MS
        log.warning("dropped %.0f ms of physics (%.0f ms in all): the machine is overloaded", newly_ms, all_ms)
        self._told_dropped_ns, self._told_ns = self.dropped_ns, now_ns

    def _contacts(self) -> list[str]:
        """The blocks that hand or fingers touch in this physics step."""
        pairs = self._data.contact.geom
        hand = self._is_hand[pairs]
        if not hand.any():
            return []
        blocks = self._block_index[pairs[hand[:, ::-1]]]
        return [COLOURS[i] for i in np.unique(blocks[blocks >= 0])]

    def _in_contact(self) -> list[str]:
        """The blocks that the hand touches, and those that move: contacts chatter while a block is pushed."""
        speeds = [np.linalg.norm(self._data.qvel[velocity : velocity + 3]) for velocity in self._block_velocity]
        moving = {colour for colour, speed in zip(COLOURS, speeds, strict=True) if speed > PUSHED_M_S}
        return [colour for colour in COLOURS if colour in moving.union(self._contacts())]

    def _set_blocks(self, blocks: np.ndarray) -> None:
        for (x, y, z, yaw), position, velocity in zip(blocks, self._block_address, self._block_velocity, strict=True):
            self._data.qpos[position : position + 7] = (x, y, z, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2))
            self._data.qvel[velocity : velocity + 6] = 0.0

    def _replace_blocks(self, rng: np.random.Generator) -> None:
        """New places away from the arm as it stands: 10 cm from the tip, and in contact with no part of it."""
        for _ in range(50):
            self._set_blocks(place_blocks(rng, 1, avoid=self.tip[None, :2])[0])
            self._mujoco.mj_forward(self._model, self._data)
            contact = self._data.contact
            arm, block = self._is_arm, self._block_index >= 0
            if not (arm[contact.geom1] & block[contact.geom2] | arm[contact.geom2] & block[contact.geom1]).any():
                return
