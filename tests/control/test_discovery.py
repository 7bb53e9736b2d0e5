import sys

import pytest

from control.clock import FakeClock
from control.discovery import installed_robots, make_robot
from control.errors import RobotError

ARM = """
import numpy as np
from control.messages import RobotSpec

class DeskArm:
    def __init__(self, clock, port="usb0"):
        self.port = port
        self.spec = RobotSpec("desk-arm", {}, ("a",), ("a",), np.zeros(1), np.ones(1), np.ones(1), 0.1)
    def connect(self): pass
    def read_state(self): return np.zeros(1)
    def read_frames(self): return {}
    def apply(self, targets): return targets
    def hold(self): pass
    def close(self): pass

class NoArm:
    def __init__(self, clock): pass

class BadArm:
    def __init__(self, clock, fault="", value=None):
        if fault == "attribute":
            None.port
        elif fault == "type":
            "a" + 1
        elif fault == "port":
            raise OSError("no such port: usb0")
        elif fault == "extra":
            import no_such_driver
        elif fault == "value":
            raise ValueError(f"value must be positive, got {value}")
"""


@pytest.fixture
def desk_arm(tmp_path, monkeypatch):
    """Somebody's own package: a module and its entry points, as an installer would lay them down."""
    (tmp_path / "desk_arm.py").write_text(ARM)
    metadata = tmp_path / "desk_arm-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: desk-arm\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[saccade.robots]\ndesk-arm = desk_arm:DeskArm\nno-arm = desk_arm:NoArm\nlost-arm = no_such_module:Arm\n"
        "bad-arm = desk_arm:BadArm\nno-class = desk_arm:Missing\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("desk_arm", None)


def test_somebodys_own_arm_is_found_by_its_name(desk_arm):
    assert "desk-arm" in installed_robots()
    robot = make_robot("desk-arm", FakeClock(), {"port": "usb1"})
    assert robot.spec.name == "desk-arm" and robot.port == "usb1"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dsek-arm", {}, r"robot 'dsek-arm' is not installed; did you mean 'desk-arm'\? Installed: .*tabletop.*remote"),
        ("desk-arm", {"speed": 1}, "robot 'desk-arm' does not take these robot.options"),
        ("no-arm", {}, "is no control.robot.Robot: methods are missing"),
        ("lost-arm", {}, "cannot be imported: No module named 'no_such_module'; is its extra installed"),
        ("no-class", {}, "cannot be imported: module 'desk_arm' has no attribute 'Missing'; is its extra installed"),
        ("bad-arm", {"fault": "attribute"}, "could not be made with .*: AttributeError: 'NoneType' .*; see its driver"),
        ("bad-arm", {"fault": "type"}, "could not be made with .*: TypeError: can only concatenate .*; see its driver"),
        ("bad-arm", {"fault": "port"}, "could not be made with .*: OSError: no such port: usb0; see its driver"),
        ("bad-arm", {"fault": "extra"}, "cannot be imported: No module named 'no_such_driver'; is its extra installed"),
        ("bad-arm", {"fault": "value", "value": -1}, "does not take these robot.options .*: value must be positive"),
    ],
)
def test_a_robot_that_cannot_be_made_says_why(desk_arm, name, options, message):
    with pytest.raises(RobotError, match=message):
        make_robot(name, FakeClock(), options)
