"""Which OpenGL MuJoCo renders with. MuJoCo reads MUJOCO_GL once, at its import, so it is chosen here, before that.

Knows the libraries and the Debian packages that bring them. Refuses to know what is rendered.
"""

from __future__ import annotations

import ctypes
import os
import sys
from types import ModuleType

from control.errors import RobotError

_LIBRARIES = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}
_PACKAGES = "`libegl1 libegl-mesa0 libgl1-mesa-dri` (MUJOCO_GL=egl) or `libosmesa6` (MUJOCO_GL=osmesa)"


class RenderingUnavailable(RobotError):
    """MuJoCo found no OpenGL it could open, so there are no camera images; physics works without."""

    def __init__(self, cause: object) -> None:
        backend = os.environ.get("MUJOCO_GL", "unset")
        super().__init__(
            f"MuJoCo cannot open OpenGL for the cameras (MUJOCO_GL={backend}): {cause}. Likely cause: the library is"
            f" not installed. On Debian and Ubuntu install {_PACKAGES}, then start the process again"
        )


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def choose_backend() -> None:
    """Set MUJOCO_GL to egl, or osmesa where EGL cannot be loaded. A value set by the user, and other systems, stay.

    Mesa's software renderer gets one thread (LP_NUM_THREADS): no slower at 112x112, and the encoder keeps its core.
    Where neither loads it becomes `disable`, which lets physics run and makes `RenderingUnavailable` precise.
    """
    os.environ.setdefault("LP_NUM_THREADS", "1")
    if "MUJOCO_GL" in os.environ or not sys.platform.startswith("linux") or "mujoco" in sys.modules:
        return
    os.environ["MUJOCO_GL"] = next((name for name, library in _LIBRARIES.items() if _loads(library)), "disable")


def load_mujoco() -> ModuleType:
    """The mujoco module, imported with a backend that exists. Raises RobotError where it is not installed."""
    choose_backend()
    try:
        import mujoco
    except (ImportError, AttributeError, RuntimeError) as cause:
        if isinstance(cause, ModuleNotFoundError) and cause.name == "mujoco":
            raise RobotError(
                "the simulated robot needs MuJoCo, which is not installed; install it with `pip install -e '.[sim]'`"
            ) from None
        if "MUJOCO_GL" in str(cause) or "gl" in str(cause).lower():
            raise RenderingUnavailable(cause) from cause
        raise
    return mujoco
