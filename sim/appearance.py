"""How a scene looks on one day: its light, and how exactly its cameras are mounted. Seeded; refuses to know physics."""

from __future__ import annotations

from typing import Any

import numpy as np

MOUNT_M, MOUNT_RAD = 0.002, np.radians(0.15)  # how far off a camera may be
_BRIGHTNESS = (0.82, 1.12)


class Appearance:
    """Remembers how a model was built, so that every draw starts from there."""

    def __init__(self, model: Any) -> None:
        self._camera_pos, self._camera_quat = model.cam_pos.copy(), model.cam_quat.copy()
        self._light_dir, self._light_diffuse = model.light_dir.copy(), model.light_diffuse.copy()
        headlight = model.vis.headlight
        self._ambient, self._headlight = headlight.ambient.copy(), headlight.diffuse.copy()

    def draw(self, model: Any, rng: np.random.Generator) -> None:
        """Takes the same number of draws every time, so that what is drawn next does not depend on the model."""
        model.cam_pos[:] = self._camera_pos + rng.uniform(-MOUNT_M, MOUNT_M, self._camera_pos.shape)
        turn = np.concatenate(
            [np.ones((len(self._camera_quat), 1)), rng.uniform(-MOUNT_RAD, MOUNT_RAD, (len(self._camera_quat), 3)) / 2],
            axis=1,
        )
        model.cam_quat[:] = _product(self._camera_quat, turn / np.linalg.norm(turn, axis=1, keepdims=True))
        direction = self._light_dir + rng.normal(0.0, 0.25, self._light_dir.shape)
        model.light_dir[:] = direction / np.linalg.norm(direction, axis=1, keepdims=True)
        model.light_diffuse[:] = self._light_diffuse * rng.uniform(*_BRIGHTNESS) * rng.uniform(0.95, 1.05, 3)
        model.vis.headlight.ambient[:] = self._ambient * rng.uniform(*_BRIGHTNESS) * rng.uniform(0.97, 1.03, 3)
        model.vis.headlight.diffuse[:] = self._headlight * rng.uniform(*_BRIGHTNESS)


def _product(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Of two arrays of quaternions (N, 4): first `q`, then `p`."""
    vector = p[:, :1] * q[:, 1:] + q[:, :1] * p[:, 1:] + np.cross(p[:, 1:], q[:, 1:])
    return np.concatenate([p[:, :1] * q[:, :1] - (p[:, 1:] * q[:, 1:]).sum(axis=1, keepdims=True), vector], axis=1)
