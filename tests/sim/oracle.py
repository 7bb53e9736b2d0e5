"""Stand-ins for a trained policy: an encoder that reads the simulator's truth, and a head that asks the expert.

They know what a perfect policy would: where the blocks were when the frame was taken, which task the sentence means,
and, of the time since, how the arm itself has moved.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from control.clock import NS_PER_MS
from control.messages import Features
from sim import expert, kinematics, tasks
from sim.scene import COLOURS
from sim.situation import Situation, indices
from sim.tabletop import TabletopRobot


class SeeingTabletop(TabletopRobot):
    """Its only image is the truth: the poses of the blocks. Needs no OpenGL."""

    def __init__(self, clock, **options):
        super().__init__(clock, **{"cameras": {}} | options)
        self.looks = 0

    def read_frames(self):
        self._catch_up()
        self.looks += 1
        return {"truth": self.block_poses}


class TruthEncoder:
    """Tokens (1, 20): stamp in ms, the task as three numbers (-1: none), the poses in the frame."""

    def __init__(self):
        self.heard, self.poses, self.instructions = [], [], []

    def encode(self, frames, instruction):
        self.heard.append(instruction.text)
        self.poses.append(frames.images["truth"])
        self.instructions.append((instruction.session, instruction.id))
        task = tasks.parse(instruction.text)
        wanted = (-1, -1, -1) if task is None else indices(task)
        values = [frames.stamp_ns / NS_PER_MS, *wanted, *frames.images["truth"].ravel()]
        ids = (instruction.session, instruction.id, 1, "stand-in")
        tokens = np.array([values], dtype=np.float64).astype(np.float32)
        stamp_ns = frames.stamp_ns
        return Features(frames.seq, stamp_ns, frames.seq, stamp_ns, *ids, tokens, {}, encode_ms=500.0)


class OracleHead:
    """The expert on the blocks as seen, moved on by what the arm has done since. Records the ages it was told."""

    policy_id = "stand-in"
    state_names = action_names = kinematics.STATE_NAMES
    horizon, period_s, window_samples = 8, 0.1, 0

    def __init__(self, clock=None):
        self.clock = clock
        self.true_age_ms, self.told_age_ms, self.windows = [], [], []
        self.states = deque(maxlen=20)

    def act(self, tokens, state, feature_age_ms, window=None):
        if self.clock is not None:
            self.true_age_ms.append(self.clock.now_ns() / NS_PER_MS - float(tokens[0, 0]))
        self.told_age_ms.append(feature_age_ms)
        self.windows.append(window)
        self.states.append(state)
        kind, first, second = (int(value) for value in tokens[0, 1:4])
        if kind < 0:
            return np.tile(state, (self.horizon, 1))
        task = tasks.Task(tasks.KINDS[kind], COLOURS[first], COLOURS[second] if tasks.KINDS[kind] == "stack" else None)
        past = list(self.states)[-1 - min(round(feature_age_ms / 100), len(self.states) - 1) :]
        now = Situation.of(past[0][None], tokens[0, 4:].reshape(1, 4, 4), [task])
        for joints in past[1:]:
            now = expert._after(now, joints[None])
        return expert.targets(Situation.of(state[None], now.blocks, [task]), self.horizon)[0]
