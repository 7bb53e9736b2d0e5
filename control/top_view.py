"""A snapshot of `control.watch` as a person reads it: the panel of `top`, and one plain line.

Knows rich and characters; refuses to know sockets, processes and time. Every line fits the width it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from control.safety import Freshness

_BARS = "▁▂▃▄▅▆▇█"
_MODES = {"RUN": "black on green", "HOLD": "black on yellow", "STOP": "white on red", "INIT": "white on blue"}
_WIDEST = 72  # of a bar


def panel(snapshot: dict[str, Any], freshness: Freshness, address: str, width: int, hint: str = "") -> RenderableType:
    """The whole view, the most important lines first, since a low terminal cuts the last ones off."""
    head = _line(("saccade top", "bold"), (f"  {snapshot['robot'] or 'no robot yet'}  {address}  {hint}", "dim"))
    if "mode" not in snapshot:
        return Group(head, _line((waiting(snapshot, address), "")))
    lines: list[RenderableType] = [head, _mode(snapshot), _instruction(snapshot), Text()]
    lines += [_rates(snapshot), *_ages(snapshot, freshness, width), Text(), _times(snapshot), _counts(snapshot)]
    lines += [*_limits(snapshot), *_processes(snapshot), Text(), *_events(snapshot)]
    return Group(*lines)


def plain(snapshot: dict[str, Any], address: str) -> str:
    """One line."""
    if "mode" not in snapshot:
        return waiting(snapshot, address)
    rates, said = snapshot["rates_hz"], snapshot["instruction"]
    parts = [f"{snapshot['mode']}{': ' + snapshot['reason'] if snapshot['reason'] else ''}"]
    if not snapshot["live"]:
        parts.insert(0, _silence(snapshot))
    parts += [f"{name} {shown(rates[name], 1)} Hz" for name in ("actions", "encodes", "frames", "states")]
    age, late, cycle = snapshot["feature_age_ms"], snapshot["lateness_ms"], snapshot["cycle_ms"]
    parts.append(f"feature age {shown(age['last'], 0)} ms (p99 {shown(age.get('p99'), 0)})")
    parts.append(f"late p99 {shown(late.get('p99'), 2)} ms")
    parts.append(f"cycle p99 {shown(cycle.get('p99'), 2)} ms")
    parts.append(f"missed {snapshot['missed_ticks']}")
    if snapshot["encoder_restarts"]:
        parts.append(f"encoder restarts {snapshot['encoder_restarts']}")
    if snapshot["limits_window"]:
        parts.append("limits " + _counted(snapshot["limits_window"]))
    if said["newest_text"]:
        parts.append(f"#{said['newest_id']} “{said['newest_text']}”")
    return " · ".join(parts)


def waiting(snapshot: dict[str, Any], address: str) -> str:
    if snapshot["robot"]:
        return f"robot {snapshot['robot']} is there, its controller is not heard yet: waiting"
    return f"no run at {address} yet: waiting; start one with `launch.py run`"


def shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def sparkline(values: Sequence[float | None], top: float, width: int) -> str:
    """At most `width` characters, the newest last; each the largest of its share, full at `top`, a dot where there is
    none."""
    if not values:
        return ""
    width = min(width, len(values))
    marks = []
    for place in range(width):
        part = values[place * len(values) // width : (place + 1) * len(values) // width]
        known = [value for value in part if value is not None]
        marks.append(_bar(max(known), top) if known else "·")
    return "".join(marks)


def histogram(values: Sequence[float], top: float, width: int) -> str:
    """`width` characters over 0..`top`; what lies past it counts in the last one. A value is never invisible."""
    counts = [0] * width
    for value in values:
        counts[min(width - 1, max(0, int(value * width / top)))] += 1
    most = max(counts, default=0)
    return "".join(_bar(count, most) if count else " " for count in counts)


def _bar(value: float, top: float) -> str:
    return _BARS[min(len(_BARS) - 1, max(0, int(value / top * len(_BARS))))] if top > 0 else _BARS[0]


def _mode(snapshot: dict[str, Any]) -> Text:
    mode, reason = snapshot["mode"], snapshot["reason"]
    parts = [(f" {mode} ", _MODES.get(mode, "")), (f" for {_span(snapshot['mode_s'])}", "dim"), (f"  {reason}", "")]
    if not snapshot["live"]:
        parts = [(_silence(snapshot), "bold red"), (f"; the last was {mode}{': ' + reason if reason else ''}", "dim")]
    return _line(*parts)


def _silence(snapshot: dict[str, Any]) -> str:
    controller = snapshot["processes"].get("controller")
    who = "no run: the last one has ended"
    if controller:
        who = f"controller (process {controller['pid']}) is there but silent"
    return f"{who}, nothing heard for {_span(snapshot['silent_s'])}"


def _instruction(snapshot: dict[str, Any]) -> Text:
    said = snapshot["instruction"]
    if not said["id"] and not said["pending_id"]:
        return _line(("no instruction yet; give one with `say`", "dim"))
    done = {True: " (done)", False: "", None: ""}[said["done"]]
    text = f" “{said['newest_text']}”" if said["newest_text"] else ""
    if said["pending_id"]:
        acting = f"acting on #{said['id']}, " if said["id"] else ""
        return _line((f"{acting}waiting for features of #{said['pending_id']}{text}", ""))
    return _line((f"#{said['id']}{text}{done}", ""))


def _rates(snapshot: dict[str, Any]) -> Text:
    rates = snapshot["rates_hz"]
    parts: list[tuple[str, str]] = []
    for name, digits in (("actions", 2), ("encodes", 1), ("frames", 1), ("states", 1), ("cycles", 2)):
        parts += [(f"{name} ", "dim"), (f"{shown(rates[name], digits)} Hz  ", "bold")]
    return _line(*parts)


def _ages(snapshot: dict[str, Any], freshness: Freshness, width: int) -> list[Text]:
    """The ladder from 0 to `hold_after` with the age on it; under it where the ages lay, and how they went."""
    age, ages = snapshot["feature_age_ms"], snapshot["feature_ages_ms"]
    last, top = age["last"], freshness.hold_after_ms
    room = max(8, min(_WIDEST, width - 11))
    slow = min(room - 1, int(freshness.slow_after_ms * room / top))
    filled = 0 if last is None else min(room, int(last * room / top) + 1)
    ladder = "".join("█" if place < filled else "┊" if place == slow else "─" for place in range(room))
    colour = _rung(last, freshness)
    figures = ", ".join(f"{key} {shown(age.get(key), 0)}" for key in ("p50", "p99", "max"))
    known = [value for value in ages if value is not None]
    limits = f"slow {freshness.slow_after_ms:g}  HOLD {top:g}  STOP {freshness.stop_after_ms:g}"
    return [
        _line(
            ("feature age ", "dim"), (f"{shown(last, 0)} ms", f"bold {colour}"), (f"  {figures}  ", ""), (limits, "dim")
        ),
        _line((f"  0..{top:<5g} ", "dim"), (ladder, colour)),
        _line(("  spread  ", "dim"), (" ", ""), (histogram(known, top, room), "cyan")),
        _line(("  so far  ", "dim"), (" ", ""), (sparkline(ages, top, room), colour)),
    ]


def _rung(age_ms: float | None, freshness: Freshness) -> str:
    if age_ms is None:
        return "dim"
    if age_ms >= freshness.hold_after_ms:
        return "red"
    return "yellow" if age_ms > freshness.slow_after_ms else "green"


def _times(snapshot: dict[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    for _ in range(3):
        grid.add_column(justify="right", no_wrap=True)
    grid.add_row(Text("ms", style="dim"), *(Text(heading, style="dim") for heading in ("p50", "p99", "max")))
    controller = snapshot["processes"].get("controller")
    lateness = f"lateness, {controller['scheduling']}" if controller and controller["scheduling"] else "lateness"
    for label, key in ((lateness, "lateness_ms"), ("cycle", "cycle_ms"), ("encode", "encode_ms")):
        grid.add_row(label, *(shown(snapshot[key].get(column), 2) for column in ("p50", "p99", "max")))
    return grid


def _counts(snapshot: dict[str, Any]) -> Text:
    counts = {
        "missed ticks": snapshot["missed_ticks"],
        "encoder restarts": snapshot["encoder_restarts"],
        "refused messages": snapshot["rejected_messages"],
        "records lost here": snapshot["lost_records"],
    }
    parts: list[tuple[str, str]] = []
    for name, count in counts.items():
        parts += [(f"{name} ", "dim"), (f"{count}  ", "bold red" if count else "")]
    return _line(*parts, (f"encoder epoch {snapshot['encoder_epoch'] or '-'}", "dim"))


def _limits(snapshot: dict[str, Any]) -> list[Text]:
    if not snapshot["limits"]:
        return []
    now = f"  (just now: {_counted(snapshot['limits_window'])})" if snapshot["limits_window"] else ""
    return [_line(("limits hit ", "dim"), (_counted(snapshot["limits"]), "yellow"), (now, "dim"))]


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _processes(snapshot: dict[str, Any]) -> list[Text]:
    """Memory of the processes of this machine, and by how much it grew while this was looking, where it did."""
    parts = []
    for name, process in snapshot["processes"].items():
        if process is None:
            if snapshot["live"]:
                parts.append(f"{name} not found here")
            continue
        grown_mb = process["rss_mb"] - process["first_rss_mb"]
        grown = f" ({grown_mb:+.1f})" if abs(grown_mb) >= 0.05 else ""
        parts.append(f"{name} {process['rss_mb']:.0f}{grown}")
    return [_line(("memory MB  ", "dim"), ("  ".join(parts), ""))] if parts else []


def _events(snapshot: dict[str, Any]) -> list[Text]:
    lines = []
    for event in snapshot["events"]:
        times = f" ({event['cycles']} cycles)" if event["cycles"] > 1 else ""
        style = {"HOLD": "yellow", "STOP": "red"}.get(event["mode"], "")
        ago = f"{_span(event['ago_s'])} ago"
        lines.append(
            _line((f"{ago:>12}  ", "dim"), (f"{event['mode']:<4}", style), (f"  {event['reason']}", ""), (times, "dim"))
        )
    return lines


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _line(*parts: tuple[str, str]) -> Text:
    """One line that is cut with an ellipsis where the terminal ends."""
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")
