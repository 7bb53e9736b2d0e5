"""Which OpenGL is chosen, and what is said where there is none."""

import os
import subprocess
import sys

import pytest

from control.clock import FakeClock
from control.errors import RobotError
from sim import gl
from sim.tabletop import TabletopRobot

CONNECT = (
    "from control.clock import FakeClock; from sim.tabletop import TabletopRobot, RenderingUnavailable\n"
    "robot = TabletopRobot(FakeClock(), cameras=['top'])\n"
    "assert robot.read_state().shape == (7,)\n"
    "try: robot.connect()\n"
    "except RenderingUnavailable as error: print(error)\n"
)


def output(code: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
def unset(monkeypatch):
    """No backend chosen and MuJoCo not imported; delenv alone would not undo what is set after it."""
    for name in ("MUJOCO_GL", "LP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)


@pytest.mark.skipif(sys.platform != "linux", reason="EGL and OSMesa are Linux backends")
@pytest.mark.parametrize(
    ("missing", "chosen"),
    [((), "egl"), (("libEGL.so.1",), "osmesa"), (("libEGL.so.1", "libOSMesa.so.8"), "disable")],
)
def test_the_first_backend_that_loads_is_chosen(monkeypatch, unset, missing, chosen):
    monkeypatch.setattr(gl, "_loads", lambda library: library not in missing)
    gl.choose_backend()
    assert os.environ["MUJOCO_GL"] == chosen


def test_a_backend_chosen_by_the_user_stays(monkeypatch, unset):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    gl.choose_backend()
    assert os.environ["MUJOCO_GL"] == "osmesa"


def test_without_opengl_physics_runs_and_connect_names_the_packages():
    said = output(CONNECT, MUJOCO_GL="disable")
    assert "MuJoCo cannot open OpenGL for the cameras (MUJOCO_GL=disable)" in said
    assert "`libegl1 libegl-mesa0 libgl1-mesa-dri` (MUJOCO_GL=egl) or `libosmesa6` (MUJOCO_GL=osmesa)" in said


def test_without_mujoco_the_robot_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(RobotError, match=r"needs MuJoCo, which is not installed; .*`pip install -e '\.\[sim\]'`"):
        TabletopRobot(FakeClock()).connect()
