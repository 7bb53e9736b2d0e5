"""One noun of every topic, with every field filled that may be empty."""

import numpy as np

from control.messages import ActionChunk, Command, Cycle, Features, Frames, Instruction, Mode, Reply, State
from tests.rig import two_joint_spec

EXAMPLES = {
    "robot": two_joint_spec(max_acceleration=np.array([4.0, 8.0])),
    "frames": Frames(
        3, 99, {"front": np.arange(12, dtype=np.uint8).reshape(2, 2, 3)}, 101, {"front": 98}, {"front": "is black"}
    ),
    "state": State(1, 2, np.array([0.5, -1.0]), np.zeros((2, 2)), 4, True, {"front": "is black"}),
    "instruction": Instruction(1, 2, 3, 4, "touch the red block"),
    "features": Features(
        1, 2, 3, 4, 5, 6, 7, "policy", np.ones((2, 3), np.float32), {"front": 0.0}, 12.5, {"vision": 3.0}
    ),
    "action": ActionChunk(1, 2, 3, 4.5, Mode.RUN, np.array([[0.1, 0.2]]), 0.1, 99),
    "cycle": Cycle(
        1,
        2,
        3,
        0.1,
        0.2,
        {"head": 0.1},
        1.0,
        None,
        5,
        6,
        7.0,
        1,
        None,
        Mode.HOLD,
        "why",
        ("velocity a",),
        0,
        commands=("say 2: touch the red block", "stop"),
    ),
    "command": Command(5, "say", "touch the red block"),
    "reply": Reply(5, "done", "fine", {"switch_ms": 1.5, "mode": "RUN", "task_done": None}),
}
