"""From samples to the figures of a profile: one plain dict that is printed, written, drawn and compared.

Start-up, everything before the first RUN, is in no figure but its own count. Feature ages and their parts are of cycles
in RUN, where there are any: they are what the robot was moved by. The rest is of all cycles.

A figure is `{count, mean, p50, p95, p99, p99.9, max, histogram}`. Means of parts add up to the mean of the whole,
percentiles do not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from control.clock import NS_PER_MS, NS_PER_S
from control.errors import ConfigError
from control.messages import Cycle, Mode
from control.profile_parts import age_parts, encode_parts, foreign_epochs, in_order
from control.profile_source import Encode, Samples
from control.reasons import kind
from control.report import check_writable
from control.safety import Freshness

FORMAT, VERSION = "saccade profile", 1
COLUMNS = ("mean", "p50", "p95", "p99", "p99.9", "max")
STAGES = ("wait", "state", "features", "head", "safety", "publish")
_BINS = 40

Figures = dict[str, dict[str, Any]]


def profile(samples: Samples, freshness: Freshness) -> dict[str, Any]:
    """All figures; times in ms. `figures` is by group and name."""
    cycles, encodes = samples.steady, used_encodes(samples)
    foreign = foreign_epochs(samples)
    running = [cycle for cycle in cycles if cycle.mode is Mode.RUN] or cycles
    ages = [cycle.feature_age_ms for cycle in running if cycle.feature_age_ms is not None]
    split = [(cycle, row) for cycle in running if (row := age_parts(cycle, samples, foreign)) is not None]
    parts = [row for _, row in split]
    seconds = (cycles[-1].deadline_ns - cycles[0].deadline_ns) / NS_PER_S if len(cycles) > 1 else 0.0
    notes = list(samples.notes)
    if foreign:
        notes.append("the encoder's clock is another machine's: queue and transport cannot be told apart")
    if len(parts) < len(ages):
        notes.append(f"{len(ages) - len(parts):,} cycles used features that this profile did not hear: not split")
    return {
        "format": FORMAT,
        "version": VERSION,
        "source": samples.source,
        "seconds": seconds,
        "period_ms": samples.period_ms,
        "freshness_ms": {
            "slow_after": freshness.slow_after_ms,
            "hold_after": freshness.hold_after_ms,
            "stop_after": freshness.stop_after_ms,
        },
        "cycles": len(cycles),
        "start_up_cycles": len(samples.cycles) - len(cycles),
        "lost_records": sum(max(0, b.seq - a.seq - 1) for a, b in zip(cycles, cycles[1:], strict=False)),
        "missed_ticks": sum(cycle.missed_ticks for cycle in cycles[1:]),
        "encodes": len(encodes),
        "action_hz": _rate(sum(cycle.mode is Mode.RUN for cycle in cycles), seconds),
        "encode_hz": _encode_rate(encodes),
        "frames_skipped": _skipped(encodes),
        "modes": {str(mode): sum(cycle.mode is mode for cycle in cycles) for mode in Mode},
        "reasons": dict(Counter(_why(cycle) for cycle in cycles if cycle.reason).most_common(20)),
        "limits": dict(Counter(limit for cycle in cycles for limit in cycle.limits).most_common(20)),
        "switch_ms": [cycle.switch_ms for cycle in cycles if cycle.switch_ms is not None],
        "notes": notes,
        "figures": {
            "cycle": _present(_of_cycles(samples, cycles)),
            "stages of a cycle": _present(_of_stages(samples, cycles)),
            "feature age": _present({"feature age": ages} | _columns(parts)),
            "encode": _present({"encode": [row.encode_ms for row in encodes]} | _columns(map(encode_parts, encodes))),
            "hops": _present(_hops(samples, encodes, split, foreign)),
        },
    }


def used_encodes(samples: Samples) -> list[Encode]:
    """In the order of their making, without those made before the first steady cycle, as far as that is known."""
    cycles = samples.steady
    keys = {(cycle.encoder_epoch, cycle.feature_seq) for cycle in cycles}
    first = next((encode.key for encode in samples.encodes.values() if encode.key in keys), None)
    rows = sorted(samples.encodes.values(), key=lambda encode: encode.key)
    return [encode for encode in rows if first is not None and encode.key >= first]


def spread(values: Iterable[float]) -> dict[str, Any]:
    """One figure; {} when there is nothing."""
    array = np.asarray(list(values), dtype=np.float64)
    if not array.size:
        return {}
    p50, p95, p99, p999 = (float(value) for value in np.percentile(array, (50, 95, 99, 99.9)))
    low = float(array.min())
    edges = np.linspace(low, max(float(array.max()), low + max(1e-6, 0.01 * abs(low))), _BINS + 1)
    counts, _ = np.histogram(array, bins=edges)
    return {
        "count": array.size,
        **dict(zip(COLUMNS, (float(array.mean()), p50, p95, p99, p999, float(array.max())), strict=True)),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def load_profile(file: Path) -> dict[str, Any]:
    """A profile that `--report` wrote. Raises ConfigError for anything else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"--against {file} does not exist; `launch.py profile --report FILE.json` writes one"
        ) from None
    except OSError as error:
        raise ConfigError(f"--against {file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--against {file}: expected the JSON of `launch.py profile --report`: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        what = "the report of another command" if isinstance(found, dict) else type(found).__name__
        raise ConfigError(f"--against {file}: expected the JSON of `launch.py profile --report`, got {what}")
    if found.get("version") != VERSION:
        raise ConfigError(
            f"--against {file}: expected a profile of version {VERSION}, got {str(found.get('version'))[:20]}; another"
            " Saccade wrote it: profile that recording again"
        )
    if not _is_whole(found):
        raise ConfigError(f"--against {file} is damaged: its figures are not groups of numbers in ms")
    return found


def check_file(option: str, file: Path | None) -> None:
    """Before the measurement: a file that cannot be written must not cost it."""
    try:
        check_writable(file)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--report", option, 1)) from None


def _is_whole(found: dict[str, Any]) -> bool:
    groups = found.get("figures")
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        return False
    rows = [row for group in groups.values() for row in group.values()]
    return all(isinstance(row, dict) and all(type(row.get(name)) in (int, float) for name in COLUMNS) for row in rows)


def _of_cycles(samples: Samples, cycles: list[Cycle]) -> dict[str, list[float]]:
    pairs = samples.pairs(cycles)
    return {
        "lateness": [cycle.lateness_ms for cycle in cycles],
        "period": [(b.stamp_ns - a.stamp_ns) / NS_PER_MS for a, b in pairs],
        "jitter": [abs(b.lateness_ms - a.lateness_ms) for a, b in pairs],
        "work": [cycle.cycle_ms for cycle in cycles],
        "state age": [cycle.state_age_ms for cycle in cycles if cycle.state_age_ms is not None],
    }


def _of_stages(samples: Samples, cycles: list[Cycle]) -> dict[str, list[float]]:
    """`wait` is from the action before to the beginning of the tick; commands are served in it."""
    waits = [(b.stamp_ns - a.stamp_ns) / NS_PER_MS - a.cycle_ms for a, b in samples.pairs(cycles)]
    columns = _columns(cycle.stage_ms for cycle in cycles)
    return {"wait": waits} | {name: columns[name] for name in sorted(columns, key=_stage_order)}


def _stage_order(name: str) -> int:
    return STAGES.index(name) if name in STAGES else len(STAGES)


def _hops(
    samples: Samples, encodes: list[Encode], split: list[tuple[Cycle, dict[str, float]]], foreign: set[int]
) -> dict[str, list[float]]:
    """Ways over the bus. Frames count where the encoder was idle when they came: then its queue is the way alone."""
    frames = [
        (b.begun_ns - b.frame_published_ns) / NS_PER_MS
        for a, b in zip(encodes, encodes[1:], strict=False)
        if b.frame_published_ns is not None
        and b.epoch not in foreign
        and a.key == (b.epoch, b.seq - 1)
        and a.frame_seq != b.frame_seq
        and a.stamp_ns < b.frame_published_ns
    ]
    heard = {cycle.feature_arrived_ns: row for cycle, row in split if "transport" in row}
    hops = {"frames, to an idle encoder": frames}
    hops["features, to the controller"] = [row["transport"] for row in heard.values()]
    for topic, values in samples.hop_ms.items():
        hops[f"{topic}, to this listener"] = values
    return hops


def _columns(rows: Iterable[dict[str, float]]) -> dict[str, list[float]]:
    """What a row does not name took no time: means of columns add up."""
    rows = list(rows)
    names = in_order({name for row in rows for name in row})
    return {name: [row.get(name, 0.0) for row in rows] for name in names}


def _present(columns: dict[str, list[float]]) -> Figures:
    return {name: spread(values) for name, values in columns.items() if values}


def _why(cycle: Cycle) -> str:
    return f"{cycle.mode}: {kind(cycle.reason)[:160]}"


def _rate(count: int, seconds: float) -> float | None:
    return (count - 1) / seconds if count > 1 and seconds > 0 else None


def _encode_rate(encodes: list[Encode]) -> float | None:
    """Of the newest encoder: an older one's stamps do not continue."""
    rows = [encode for encode in encodes if encode.epoch == encodes[-1].epoch]
    return _rate(len(rows), (rows[-1].stamp_ns - rows[0].stamp_ns) / NS_PER_S) if rows else None


def _skipped(encodes: list[Encode]) -> int:
    """Captures between two encodes that were never encoded."""
    return sum(max(0, b.frame_seq - a.frame_seq - 1) for a, b in zip(encodes, encodes[1:], strict=False))
