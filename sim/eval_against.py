"""Two evaluations side by side: another one's report, read and set beside this one's. Knows the report's layout alone.

The interval of a difference is made of the two Wilson intervals (Newcombe, Statistics in Medicine 17, 1998, method 10).
It takes the episodes for independent, so it is wide where both met the same seeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import hypot
from pathlib import Path
from typing import Any

from control.errors import ConfigError
from sim.evaluation import wilson_interval

ALL = "all"
_OF_BOTH = ("seed", "wordings", "robot")  # what says whether they met the same episodes


def load_report(file: Path) -> dict[str, Any]:
    """Raises ConfigError for a file that is no report of an evaluation."""
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        rows = [row for by_age in report["success"].values() for row in by_age.values()]
        whole = rows and all(0 <= row["successes"] <= row["episodes"] > 0 and len(row["ci95"]) == 2 for row in rows)
        if not (whole and isinstance(report["policy"], str)):
            raise ValueError("it holds no successes")
    except OSError as error:
        raise ConfigError(f"--against {file} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"--against {file} is no report of `launch.py eval --report` ({type(error).__name__}: {error})"
        ) from None
    return report


def compare(report: Mapping[str, Any], other: Mapping[str, Any], name: str) -> dict[str, Any]:
    """For the report: who the other is, what else is not the same, and `points` (this minus the other, in percentage
    points, with `ci95`) for each task at each age that both have, and for all of these tasks together.
    """
    points: dict[str, dict[str, Any]] = {}
    for age in dict.fromkeys(age for by_age in report["success"].values() for age in by_age):
        tasks = [
            task for task, by_age in report["success"].items() if age in by_age.keys() & other["success"].get(task, {})
        ]
        pairs = [(report["success"][task][age], other["success"][task][age]) for task in tasks]
        for task, pair in zip(tasks, pairs, strict=True):
            points.setdefault(task, {})[age] = _difference(*pair)
        if pairs:
            points.setdefault(ALL, {})[age] = _difference(*(_together(rows) for rows in zip(*pairs, strict=True)))
    if ALL in points:
        points[ALL] = points.pop(ALL)  # last
    both = [{key: of.get(key) for key in _OF_BOTH} | {"episodes": _episodes(of)} for of in (report, other)]
    return {
        "file": name,
        "policy": other["policy"],
        "precision": other.get("precision"),
        "differs": [f"{key}: {ours}, there {both[1][key]}" for key, ours in both[0].items() if ours != both[1][key]],
        "points": points,
    }


def _episodes(report: Mapping[str, Any]) -> str:
    """Of a task at an age: another number draws other ones from the same seed."""
    numbers = {row["episodes"] for by_age in report["success"].values() for row in by_age.values()}
    return " or ".join(str(number) for number in sorted(numbers))


def _together(rows: tuple[Mapping[str, Any], ...]) -> dict[str, Any]:
    successes, episodes = sum(row["successes"] for row in rows), sum(row["episodes"] for row in rows)
    return {"successes": successes, "episodes": episodes, "ci95": wilson_interval(successes, episodes)}


def _difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    here, there = (row["successes"] / row["episodes"] for row in (ours, theirs))
    (low, high), (their_low, their_high) = ours["ci95"], theirs["ci95"]
    return {
        "points": 100 * (here - there),
        "ci95": [
            100 * (here - there - hypot(here - low, their_high - there)),
            100 * (here - there + hypot(high - here, there - their_low)),
        ],
        "done": [ours["successes"], theirs["successes"]],
        "of": [ours["episodes"], theirs["episodes"]],
    }
