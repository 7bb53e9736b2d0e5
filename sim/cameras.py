"""What the cameras of a MuJoCo scene show: images, where a point lies in them, and whether a block is in sight.

Knows MuJoCo's renderer and rays. Refuses to know time: it never steps physics.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.gl import RenderingUnavailable, load_mujoco
from sim.scene import BLOCK_SIZE


class Cameras:
    """The cameras `sizes` {name: (height, width)} of one model and its data, which belong to the robot.

    OpenGL is opened with the first image; its context belongs to the thread that asked for that.
    """

    def __init__(self, model: Any, data: Any, sizes: dict[str, tuple[int, int]]) -> None:
        self._model, self._data, self._sizes = model, data, sizes
        self._renderers: dict[tuple[int, int], Any] = {}

    def open(self) -> None:
        """Raises RenderingUnavailable where there is no OpenGL."""
        if self._renderers:
            return
        try:
            for height, width in sorted(set(self._sizes.values())):
                self._renderers[height, width] = load_mujoco().Renderer(self._model, height, width)
        except Exception as cause:  # MuJoCo raises a different class for every library that can be missing
            self._renderers = {}
            raise RenderingUnavailable(cause) from cause

    def close(self) -> None:
        renderers, self._renderers = self._renderers, {}
        for renderer in renderers.values():
            renderer.close()

    def render(self) -> dict[str, np.ndarray]:
        """Images of the scene as it stands, {camera: (height, width, 3) uint8 RGB}."""
        self.open()
        images = {}
        for name, size in self._sizes.items():
            self._renderers[size].update_scene(self._data, name)
            images[name] = self._renderers[size].render()
        return images

    def pixel(self, camera: str, point: np.ndarray) -> np.ndarray:
        """Where a camera sees a point (3,): (u right, v down), in [0, 1) inside the image; NaN behind the camera."""
        view, (height, width) = self._data.camera(camera), self._sizes[camera]
        x, y, z = view.xmat.reshape(3, 3).T @ (np.asarray(point) - view.xpos)
        if z > -1e-6:
            return np.full(2, np.nan)
        scale = 0.5 / np.tan(np.radians(self._model.camera(camera).fovy[0]) / 2)
        return np.array([0.5 - x / z * scale * height / width, 0.5 + y / z * scale])

    def holds(self, camera: str, point: np.ndarray) -> bool:
        """Whether a point (3,) lies inside the image, hidden or not."""
        uv = self.pixel(camera, point)
        return bool(((uv >= 0) & (uv < 1)).all())

    def sees(self, camera: str, colour: str) -> bool:
        """Whether a block's centre lies in the image and at least one of three rays from the camera meets the block."""
        block, geom = self._data.body(colour), self._model.geom(colour).id
        if not self.holds(camera, block.xpos):
            return False
        origin = self._data.camera(camera).xpos
        sideways = np.cross(block.xpos - origin, (0, 0, 1))
        sideways *= 0.35 * BLOCK_SIZE / max(float(np.linalg.norm(sideways)), 1e-9)
        hit = np.zeros(1, dtype=np.int32)
        for point in (block.xpos, block.xpos + sideways, block.xpos - sideways):
            load_mujoco().mj_ray(self._model, self._data, origin, point - origin, None, 1, -1, hit)
            if hit[0] == geom:
                return True
        return False
