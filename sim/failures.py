"""A folder of failed episodes: for each a JSON of how things stood and a PNG strip of what was seen. Knows files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from control.errors import ConfigError, ReportError
from sim.evaluate import Images, Outcome
from sim.evaluation import Job

MOMENTS = 8
_VIEWS = ("front", "wrist")  # of the cameras that there are; else the first two


def check_folder(folder: Path | None) -> None:
    """Before the work: what draws the strips is there, and the folder can be written."""
    if folder is None:
        return
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise ConfigError(
            "--failures needs pillow, which is not installed: pip install 'saccade[record]', or leave --failures out"
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink(missing_ok=True)  # another worker may have been there between
    except OSError as error:
        raise ConfigError(f"--failures {folder} cannot be written: {error.strerror}") from None


class FailedEpisode:
    """Keeps a few moments of a running episode, and writes them when it has failed."""

    def __init__(self, folder: Path, job: Job) -> None:
        self._folder, self._job = folder, job
        self._moments: list[Images] = []
        self._seen, self._stride = 0, 1

    def see(self, images: Images) -> None:
        """Every capture; as an episode goes on, every second one kept is dropped, so that memory stays small."""
        if self._seen % self._stride == 0:
            chosen = [name for name in _VIEWS if name in images] or list(images)[:2]
            self._moments.append({name: images[name].copy() for name in chosen})
            if len(self._moments) > 2 * MOMENTS:
                self._moments, self._stride = self._moments[::2], 2 * self._stride
        self._seen += 1

    def ended(self, outcome: Outcome, images: Images, said: dict[str, Any]) -> None:
        """`images` are the last thing seen. Raises ReportError where the disk refuses it."""
        try:
            self._write(outcome, images, said)
        except OSError as error:
            raise ReportError(
                f"--failures {error.filename or self._folder} cannot be written ({error.strerror or error}): likely a"
                " full disk. The evaluation ended there without figures: make room, or leave --failures out"
            ) from error

    def _write(self, outcome: Outcome, images: Images, said: dict[str, Any]) -> None:
        episode = self._job.episode
        name = f"{episode.task}-{self._job.age_ms:g}ms-{episode.seed}"
        values = {"episode": asdict(episode), "feature_age_ms": self._job.age_ms, "outcome": asdict(outcome), **said}
        (self._folder / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        kept = self._moments
        chosen = [kept[round(i)] for i in np.linspace(0, len(kept) - 1, min(MOMENTS - 1, len(kept)))]
        if chosen and chosen[0]:
            _save_strip(self._folder / f"{name}.png", [*chosen, {view: images[view] for view in chosen[0]}])


def _save_strip(file: Path, moments: list[Images]) -> None:
    """Time to the right, cameras below each other."""
    from PIL import Image

    views = list(moments[0])
    widths = max(moments[0][view].shape[1] for view in views)
    heights = [moments[0][view].shape[0] for view in views]
    strip = Image.new("RGB", ((widths + 2) * len(moments), sum(heights) + 2 * len(views)), "white")
    for column, images in enumerate(moments):
        for row, view in enumerate(views):
            place = (column * (widths + 2), sum(heights[:row]) + 2 * row)
            strip.paste(Image.fromarray(images[view]), place)
    strip.save(file, format="PNG")
