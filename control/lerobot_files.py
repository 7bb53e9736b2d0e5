"""The files of a LeRobot dataset, version 3.0: many episodes a parquet file, their index, tasks and statistics.

    meta/info.json  meta/stats.json  meta/tasks.parquet
    meta/episodes/chunk-000/file-000.parquet    a row an episode: tasks, length, where its rows lie, its statistics
    data/chunk-000/file-000.parquet             a row an action

Quantiles of the whole dataset are the episodes' own, weighted by length, as LeRobot aggregates them: not exact.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from control.messages import RobotSpec
from control.recording_format import require
from control.recording_images import StoredFrames

CODEBASE_VERSION = "v3.0"
_FILE_BYTES = 100 << 20
_FILES_A_CHUNK = 1000
_SAMPLED_IMAGES = 100  # of an episode and camera, for the statistics: as many as LeRobot takes of a short episode
_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_SUFFIX = {"jpeg": "jpg", "webp": "webp"}
_INDEX = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_PATH = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"

Stats = dict[str, dict[str, np.ndarray]]  # feature -> min, max, mean, std, count and quantiles


def load_pyarrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet. Raises ConfigError where the extra `lerobot` is not installed."""
    return require("pyarrow", "lerobot"), require("pyarrow.parquet", "lerobot")


def describe(files: Sequence[Path]) -> str:
    """The first three by name."""
    return ", ".join(str(file) for file in files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


class DatasetFiles:
    """Writes one dataset into a new folder; `close` completes it. Memory is one episode, and 2 KB for each before."""

    def __init__(self, folder: Path, spec: RobotSpec, period_s: float) -> None:
        self._arrow, self._parquet = load_pyarrow()
        self._folder, self._spec = folder, spec
        fps = round(1 / period_s, 3)
        self._fps: int | float = round(fps) if abs(fps - round(fps)) < 0.02 * fps else fps
        self._features = _features(spec)
        self._schema = self._data_schema()
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._stats: list[Stats] = []
        self._rows = self._file = 0
        self._writer: Any = None
        self._written_bytes = 0

    def add(self, task: str, states: np.ndarray, actions: np.ndarray, captures: list[StoredFrames]) -> None:
        """One episode: (N, S) and (N, A) float32, and N captures."""
        writer = self._writer_with_room()
        count, task_index = len(states), self._tasks.setdefault(task, len(self._tasks))
        numbers = {
            "timestamp": (np.arange(count) / self._fps).astype(np.float32),
            "frame_index": np.arange(count),
            "episode_index": np.full(count, len(self._episodes)),
            "index": np.arange(self._rows, self._rows + count),
            "task_index": np.full(count, task_index),
        }
        columns: dict[str, Any] = {"observation.state": states.tolist(), "action": actions.tolist()}
        stats = {"observation.state": vector_stats(states), "action": vector_stats(actions)}
        for camera in self._spec.cameras:
            images = [capture.images[camera] for capture in captures]
            columns[_image(camera)] = [
                {"bytes": image.data, "path": f"frame-{index:06d}.{_SUFFIX[image.format]}"}
                for index, image in enumerate(images)
            ]
            chosen = np.linspace(0, count - 1, min(count, _SAMPLED_IMAGES)).round().astype(int)
            stats[_image(camera)] = image_stats(captures[index].decode(camera).images[camera] for index in chosen)
            self._written_bytes += sum(len(image.data) for image in images)
        stats |= {name: vector_stats(values[:, None]) for name, values in numbers.items()}
        writer.write_table(self._arrow.table(columns | numbers, schema=self._schema))
        chunk, file = divmod(self._file, _FILES_A_CHUNK)
        place = {"data/chunk_index": chunk, "data/file_index": file}
        place |= {"dataset_from_index": self._rows, "dataset_to_index": self._rows + count}
        row: dict[str, Any] = {"episode_index": len(self._episodes), "tasks": [task], "length": count} | place
        row |= {f"stats/{name}/{key}": value.tolist() for name, part in stats.items() for key, value in part.items()}
        self._episodes.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        self._stats.append(stats)
        self._rows += count

    def close(self) -> None:
        self._writer.close()
        meta = self._folder / "meta"
        episodes = meta / "episodes" / _PATH.format(chunk_index=0, file_index=0)
        episodes.parent.mkdir(parents=True)
        self._parquet.write_table(self._arrow.Table.from_pylist(self._episodes), episodes)
        self._parquet.write_table(self._task_table(), meta / "tasks.parquet")
        stats = {
            name: {key: value.tolist() for key, value in aggregate([one[name] for one in self._stats]).items()}
            for name in self._stats[0]
        }
        (meta / "stats.json").write_text(json.dumps(stats, indent=4))
        info = {
            "codebase_version": CODEBASE_VERSION,
            "robot_type": self._spec.name,
            "total_episodes": len(self._episodes),
            "total_frames": self._rows,
            "total_tasks": len(self._tasks),
            "chunks_size": _FILES_A_CHUNK,
            "data_files_size_in_mb": _FILE_BYTES >> 20,
            "video_files_size_in_mb": 200,
            "fps": self._fps,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": "data/" + _PATH,
            "video_path": None,
            "features": self._features,
        }
        (meta / "info.json").write_text(json.dumps(info, indent=4))

    def _writer_with_room(self) -> Any:
        if self._writer is not None and self._written_bytes < _FILE_BYTES:
            return self._writer
        if self._writer is not None:
            self._writer.close()
            self._file += 1
        chunk, file = divmod(self._file, _FILES_A_CHUNK)
        path = self._folder / "data" / _PATH.format(chunk_index=chunk, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = self._parquet.ParquetWriter(path, self._schema)
        self._written_bytes = 0
        return self._writer

    def _data_schema(self) -> Any:
        """Arrow's types, and in its metadata those of Hugging Face's `datasets`, which shows images by them."""
        arrow = self._arrow
        image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        types, shown = [], {}
        for name, feature in self._features.items():
            value = {"dtype": feature["dtype"], "_type": "Value"}
            if feature["dtype"] == "image":
                kind, shown[name] = image, {"_type": "Image"}
            elif name in _INDEX:
                kind, shown[name] = getattr(arrow, feature["dtype"])(), value
            else:
                length = feature["shape"][0]
                kind = arrow.list_(arrow.float32(), length)
                shown[name] = {"feature": value, "length": length, "_type": "Sequence"}
            types.append((name, kind))
        return arrow.schema(types, metadata={"huggingface": json.dumps({"info": {"features": shown}})})

    def _task_table(self) -> Any:
        """As pandas writes a frame whose index is the task: LeRobot looks tasks up there."""
        table = self._arrow.table({"task_index": list(self._tasks.values()), "__index_level_0__": list(self._tasks)})
        columns = [("task_index", "int64", "int64"), (None, "unicode", "object")]
        described = [
            {"name": name, "field_name": name or "__index_level_0__", "pandas_type": kind, "numpy_type": numpy_type}
            | {"metadata": None}
            for name, kind, numpy_type in columns
        ]
        pandas = {"index_columns": ["__index_level_0__"], "column_indexes": [], "columns": described}
        return table.replace_schema_metadata({"pandas": json.dumps(pandas | {"pandas_version": "2.2.0"})})


def vector_stats(values: np.ndarray) -> dict[str, np.ndarray]:
    """Of (N, D), each (D,); `count` is (1,)."""
    values = values.astype(np.float64)
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    quantiles = np.quantile(values, list(_QUANTILES.values()), axis=0)
    return found | {"count": np.array([len(values)])} | dict(zip(_QUANTILES, quantiles, strict=True))


def image_stats(images: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Of N times (H, W, 3) uint8, each (3, 1, 1) in 0..1; `count` is (1,). Held as a histogram, one image at a time."""
    histogram, count = np.zeros((3, 256)), 0
    for image in images:
        histogram += [np.bincount(channel, minlength=256) for channel in image.reshape(-1, 3).T]
        count += 1
    levels = np.arange(256) / 255.0
    shares = histogram / histogram.sum(1, keepdims=True)
    mean = shares @ levels
    found = {"min": levels[(histogram > 0).argmax(1)], "max": levels[255 - (histogram[:, ::-1] > 0).argmax(1)]}
    found |= {"mean": mean, "std": np.sqrt((shares * (levels - mean[:, None]) ** 2).sum(1))}
    reached = shares.cumsum(1)
    found |= {key: levels[(reached >= share - 1e-9).argmax(1)] for key, share in _QUANTILES.items()}
    return {key: value.reshape(3, 1, 1) for key, value in found.items()} | {"count": np.array([count])}


def aggregate(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Of several episodes, weighted by their counts; exact but for the quantiles."""
    counts = np.array([part["count"][0] for part in parts], dtype=np.float64)
    stacked = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
    mean = np.average(stacked["mean"], axis=0, weights=counts)
    variance = np.average(stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2, axis=0, weights=counts)
    total = {"min": stacked["min"].min(axis=0), "max": stacked["max"].max(axis=0), "mean": mean}
    total |= {"std": np.sqrt(variance), "count": np.array([int(counts.sum())])}
    return total | {key: np.average(stacked[key], axis=0, weights=counts) for key in _QUANTILES}


def _image(camera: str) -> str:
    return f"observation.images.{camera}"


def _features(spec: RobotSpec) -> dict[str, dict[str, Any]]:
    """The columns, in LeRobot's words."""
    features: dict[str, dict[str, Any]] = {
        "observation.state": {
            "dtype": "float32",
            "shape": [len(spec.state_names)],
            "names": list(spec.state_names),
        },
        "action": {"dtype": "float32", "shape": [len(spec.action_names)], "names": list(spec.action_names)},
    }
    for camera, (height, width) in spec.cameras.items():
        shape, names = [height, width, 3], ["height", "width", "channels"]
        features[_image(camera)] = {"dtype": "image", "shape": shape, "names": names}
    for name in _INDEX:
        dtype = "float32" if name == "timestamp" else "int64"
        features[name] = {"dtype": dtype, "shape": [1], "names": None}
    return features
