"""Cameras that fail, and scenes that only rest."""

import numpy as np
import pytest

from control.camera_watch import CameraLimits, CameraWatch
from control.clock import NS_PER_MS

SIZE = (28, 28)
PERIOD_NS = 40 * NS_PER_MS


class Scene:
    """Cameras without noise that see one bright bar, wherever it is; captures come every 40 ms."""

    def __init__(self, *cameras: str, **limits: object) -> None:
        self.cameras = cameras or ("front", "side", "wrist")
        self.watch = CameraWatch(dict.fromkeys(self.cameras, SIZE), CameraLimits(**limits))
        self.now_ns, self.bar = 0, 0

    def images(self):
        image = np.full((*SIZE, 3), 60, np.uint8)
        image[:, self.bar % SIZE[1]] = 200
        return {name: image.copy() for name in self.cameras}

    def capture(self, moves=True, captured_ns=None, **changed):
        """The faults of the next capture; `changed` are images in the place of those of the scene, None for none."""
        self.now_ns += PERIOD_NS
        self.bar += moves
        images = {name: image for name, image in (self.images() | changed).items() if image is not None}
        return self.watch.find_faults(self.now_ns, images, captured_ns)


def test_a_healthy_scene_has_no_faults_whether_it_moves_or_rests():
    scene = Scene()
    assert not any(scene.capture(moves=index % 100 < 50) for index in range(300))


def test_a_missing_and_a_misshapen_image_are_named_at_once():
    scene = Scene()
    faults = scene.capture(front=None, side=np.zeros((28, 30, 3), np.uint8))
    assert faults["front"] == "gives no image"
    assert faults["side"] == "gives uint8 images of shape (28, 30, 3), expected uint8 (28, 28, 3)"
    assert "wrist" not in faults and scene.capture() == {}


def test_an_image_that_did_not_change_is_not_looked_through_again(monkeypatch):
    scene, looked = Scene(), []
    is_black = CameraWatch._is_black
    monkeypatch.setattr(CameraWatch, "_is_black", lambda watch, image: looked.append(1) or is_black(watch, image))
    black = np.zeros((*SIZE, 3), np.uint8)
    for _ in range(10):
        assert list(scene.capture(moves=False, wrist=black)) == ["wrist"]
    assert len(looked) == 3  # one a camera
    assert scene.capture() == {} and len(looked) == 6


def test_a_black_image_is_found_and_a_dark_one_is_not():
    scene = Scene()
    black = np.full((*SIZE, 3), 8, np.uint8)
    assert scene.capture(wrist=black) == {"wrist": "is black: no light, a cap on its lens, or a broken cable?"}
    black[3, 4] = 9
    assert scene.capture(wrist=black) == {}


@pytest.mark.parametrize("frozen", [("side",), ("side", "wrist")])
def test_frozen_cameras_are_found_after_their_time_and_stay_so_until_another_image_comes(frozen):
    scene = Scene("front", "side", "wrist", "top", "left")
    scene.capture()
    stuck = {name: scene.images()[name] for name in frozen}
    found = [sorted(scene.capture(**stuck)) for _ in range(40)]
    first = found.index(sorted(frozen))
    assert all(one == [] for one in found[:first]) and 1000 <= first * 40 <= 1200
    fault = scene.capture(moves=False, **stuck)["side"]  # the arm is held by now, and nothing moves
    assert fault.startswith("is frozen: the same image for 1") and "other cameras" in fault
    assert sorted(scene.capture(moves=False, **stuck)) == sorted(frozen)
    assert scene.capture() == {}


def test_a_camera_that_sees_nothing_of_a_short_motion_is_not_frozen():
    scene = Scene()
    scene.capture()
    still = scene.images()["side"]
    for _ in range(15):  # 0.6 s
        assert scene.capture(side=still) == {}
    assert not any(scene.capture(moves=False, side=still) for _ in range(100))


def test_noise_in_one_camera_is_no_motion():
    scene, rng = Scene(), np.random.default_rng(0)
    for _ in range(100):
        noisy = scene.images()["front"] // 2 + rng.integers(0, 12, (*SIZE, 3), dtype=np.uint8)
        assert scene.capture(moves=False, front=noisy) == {}


def test_identical_images_are_no_fault_where_that_is_switched_off():
    scene = Scene(frozen_after_ms=None)
    scene.capture()
    still = scene.images()["side"]
    assert not any(scene.capture(side=still) for _ in range(100))


def test_a_camera_whose_driver_falls_behind_is_late():
    scene = Scene("front")
    assert scene.capture(captured_ns={"front": scene.now_ns}) == {}
    stopped_ns = scene.now_ns
    faults = [scene.capture(captured_ns={"front": stopped_ns}) for _ in range(13)]
    assert not any(faults[:-1])
    assert faults[-1] == {"front": "is late: its newest image is 520 ms old, limit 500"}


def test_a_camera_whose_driver_stamps_with_another_clock_is_not_fresh_for_ever():
    scene = Scene("front")
    wall_ns = 1_700_000_000 * 10**9
    [fault] = scene.capture(captured_ns={"front": scene.now_ns + wall_ns}).values()
    assert fault == "is stamped 1699999999960 ms in the future: its driver must use the monotonic clock"
    assert scene.capture(captured_ns={"front": scene.now_ns + PERIOD_NS}) == {}


def test_an_image_that_was_taken_while_the_host_waited_for_it_is_from_no_future():
    scene = Scene("front")
    taken_ns = scene.now_ns + 30 * NS_PER_MS
    faults = scene.watch.find_faults(scene.now_ns, scene.images(), {"front": taken_ns}, taken_ns + 10 * NS_PER_MS)
    assert faults == {}


def test_a_buffer_that_the_driver_uses_again_is_not_taken_for_a_frozen_camera():
    scene = Scene()
    buffers = scene.images()
    for _ in range(100):
        for name, image in scene.images().items():
            buffers[name][:] = image
        assert scene.capture(**buffers) == {}
