"""The figures of a profile, from a run whose every nanosecond is known."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from profiled import (
    ANOTHER_CLOCK_NS,
    CAMERA_MS,
    CYCLE_MS,
    ENCODE_MS,
    HELD,
    QUEUE_MS,
    START_NS,
    TRANSPORT_MS,
    ns,
    record,
    run,
)
from rich.console import Console

from control.errors import ConfigError
from control.messages import Mode
from control.profile_cost import measure_cost
from control.profile_figures import COLUMNS, load_profile, profile, spread
from control.profile_parts import age_parts, foreign_epochs
from control.profile_source import Samples, recorded
from control.profile_tables import compared_counts, comparison, cost_line, summary, table
from control.safety import Freshness

LADDER = Freshness(400, 600, 10_000)


def samples(**how):
    cycles, features = run(**how)
    made = Samples("a run", cycles)
    for row in features:
        made.add(row)
    return made


def split(made):
    foreign = foreign_epochs(made)
    rows = [(cycle, age_parts(cycle, made, foreign)) for cycle in made.cycles]
    return [(cycle, parts) for cycle, parts in rows if parts is not None]


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("shift_ns", [0, ANOTHER_CLOCK_NS, -ANOTHER_CLOCK_NS])
def test_the_parts_add_up_to_the_feature_age_whatever_is_stamped_and_by_which_clock(is_old, shift_ns):
    rows = split(samples(is_old=is_old, shift_ns=shift_ns))
    assert len(rows) > 90
    for cycle, parts in rows:
        assert sum(parts.values()) == pytest.approx(cycle.feature_age_ms, abs=1e-6), cycle.seq


def test_every_part_is_what_really_happened():
    for cycle, parts in split(samples()):
        assert parts["camera"] == CAMERA_MS and parts["queue"] == QUEUE_MS and parts["transport"] == TRANSPORT_MS
        assert (parts["vision"], parts["language"], parts["other"]) == (20.0, 15.0, 0.5)
        assert parts["reuse"] == (8.0 if cycle.feature_seq % 2 else 0.0)
        assert parts["cache"] >= 0 and set(parts) == {
            *("reuse", "camera", "queue", "preprocess", "vision", "language", "aggregate", "other"),
            *("transport", "cache"),
        }


def test_what_nobody_stamped_is_named_together_and_not_estimated():
    _, parts = split(samples(is_old=True))[50]
    assert parts["camera + queue"] == CAMERA_MS + QUEUE_MS
    assert "transport + cache" in parts and not {"camera", "queue", "transport", "cache"} & set(parts)


def test_an_encoder_on_another_clock_is_found_and_its_two_ways_are_named_together():
    made = samples(shift_ns=ANOTHER_CLOCK_NS)
    assert foreign_epochs(made) == {3}
    _, parts = split(made)[50]
    assert parts["queue + transport"] == pytest.approx(QUEUE_MS + TRANSPORT_MS) and parts["camera"] == CAMERA_MS
    _, parts = split(samples(shift_ns=ANOTHER_CLOCK_NS, is_old=True))[50]
    assert "camera + queue + transport + cache" in parts
    assert any("another machine" in note for note in profile(made, LADDER)["notes"])


def test_one_interrupted_tick_is_not_taken_for_another_clock():
    """It began, lost the processor for 20 ms, and then read features that are younger than itself."""
    made = samples()
    index = next(i for i, cycle in enumerate(made.cycles) if i > 10 and cycle.feature_seq is not None)
    began_ns = made.encodes[3, made.cycles[index].feature_seq].stamp_ns - ns(20)
    made.cycles[index] = dataclasses.replace(made.cycles[index], stamp_ns=began_ns, feature_arrived_ns=began_ns)
    assert foreign_epochs(made) == set()


def test_the_figures_of_cycles_are_those_of_the_run():
    result = profile(samples(), LADDER)
    figures = result["figures"]
    assert (result["cycles"], result["start_up_cycles"], result["missed_ticks"]) == (97, 3, 1)
    assert result["period_ms"] == 100.0 and result["lost_records"] == 0
    assert result["modes"] == {"INIT": 0, "RUN": 77, "HOLD": 20, "STOP": 0}
    assert result["reasons"] == {"HOLD: features # ms old": 20}
    assert figures["cycle"]["work"]["p50"] == sum(CYCLE_MS.values())
    assert figures["cycle"]["lateness"]["max"] == 0.5
    assert figures["cycle"]["period"]["max"] == pytest.approx(200 - 0.5)
    assert figures["cycle"]["jitter"]["p50"] == 0.125 and figures["cycle"]["jitter"]["max"] == 0.5
    assert {name: row["p99"] for name, row in figures["stages of a cycle"].items() if name != "wait"} == CYCLE_MS
    assert figures["stages of a cycle"]["wait"]["max"] == pytest.approx(200 - 0.5 - 1.0)
    assert figures["encode"]["encode"]["p99.9"] == ENCODE_MS
    assert figures["hops"]["frames, to an idle encoder"]["max"] == QUEUE_MS
    assert figures["hops"]["features, to the controller"]["max"] == TRANSPORT_MS


def test_feature_ages_are_of_cycles_in_run_and_the_means_of_their_parts_add_up():
    made = samples()
    rows = profile(made, LADDER)["figures"]["feature age"]
    running = [cycle.feature_age_ms for cycle in made.steady if cycle.mode is Mode.RUN]
    held = [cycle.feature_age_ms for cycle in made.cycles if cycle.seq in HELD]
    assert rows["feature age"]["max"] == max(running) < max(held)
    parts = sum(row["mean"] for name, row in rows.items() if name != "feature age")
    assert parts == pytest.approx(rows["feature age"]["mean"])


def test_a_lost_record_gives_no_wrong_period_and_lost_features_are_said():
    made = samples()
    del made.cycles[70:75]
    key = made.encodes[3, made.cycles[80].feature_seq].key
    del made.encodes[key]
    result = profile(made, LADDER)
    assert result["lost_records"] == 5 and result["figures"]["cycle"]["period"]["max"] < 200
    assert "1 cycles used features that this profile did not hear: not split" in result["notes"]


def test_a_run_that_never_ran_still_has_a_profile():
    cycles, _ = run(ticks=3)
    result = profile(Samples("a run", [dataclasses.replace(cycle, feature_age_ms=None) for cycle in cycles]), LADDER)
    assert result["cycles"] == 3 and result["action_hz"] is None and result["figures"]["feature age"] == {}
    assert table(result, 120).row_count > 5 and "modes in cycles: INIT 3" in summary(result)
    single = profile(Samples("a run", cycles[:1]), LADDER)
    assert single["seconds"] == 0.0 and single["period_ms"] == 0.0


def test_a_figure_of_known_numbers():
    row = spread(range(1001))
    assert [row[name] for name in COLUMNS] == pytest.approx([500.0, 500.0, 950.0, 990.0, 999.0, 1000.0])
    assert row["count"] == 1001 and sum(row["histogram"]["counts"]) == 1001
    assert len(row["histogram"]["edges"]) == len(row["histogram"]["counts"]) + 1
    assert sum(spread([0.3, 0.1 + 0.2])["histogram"]["counts"]) == 2, "two numbers that differ in the last bit"
    edges = spread([5.0, 5.0])["histogram"]["edges"]
    assert (np.diff(edges) > 0).all(), "bins of no width cannot be drawn"
    assert spread([]) == {}


def test_a_recording_gives_the_same_profile_as_the_run_itself(tmp_path):
    pytest.importorskip("mcap")
    made = recorded(record(tmp_path / "run.mcap", run()))
    ours, theirs = profile(made, LADDER), profile(samples(), LADDER)
    assert ours | {"source": ""} == theirs | {"source": ""}


def test_a_recording_without_cycles_and_one_that_was_cut(tmp_path):
    pytest.importorskip("mcap")
    with pytest.raises(ConfigError, match="holds no cycle, and a profile is made of cycles: it is a demonstration"):
        recorded(record(tmp_path / "none.mcap", ([], run()[1])))
    whole = record(tmp_path / "whole.mcap", run())
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    made = recorded(cut)
    assert 20 < len(made.cycles) < 80 and "was not closed" in made.notes[0]
    assert made.notes[0] in profile(made, LADDER)["notes"]


def text(*printed, width=120):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for item in printed:
        console.print(item)
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_shows_every_figure_and_shares_and_is_never_cut(width):
    shown = text(table(profile(samples(), LADDER), width), width=width)
    for name in ("lateness", "jitter", "wait", "publish", "feature age", "vision", "transport", "cache", "p99", "max"):
        assert name in shown
    assert "…" not in shown and "199.5" in shown
    assert ("histogram" in shown and "█" in shown) == (width == 120)


def test_two_profiles_stand_side_by_side_with_their_ratios():
    ours, theirs = (profile(samples(), LADDER) for _ in range(2))
    theirs["figures"]["cycle"]["work"]["p50"] = 4.0
    theirs["figures"]["hops"]["cycle, to this listener"] = ours["figures"]["cycle"]["work"]
    theirs["machine"], theirs["period_ms"] = {"cores": 99}, 50.0
    shown = text(comparison(ours, theirs, "old.json", 120))
    row = next(line for line in shown.splitlines() if "work" in line).split()
    assert row[1:4] == ["1.000", "4.000", "0.25"]
    row = next(line for line in shown.splitlines() if "cycle, to this listener" in line).split()
    assert row[4:6] == ["-", "1.000"], "a figure that only one of them has"
    said = "\n".join(compared_counts(ours, theirs))
    assert "missed ticks: 1 against 1" in said and "another machine" in said and "100 against 50 ms" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; `launch.py profile --report FILE.json` writes one"),
        ("{", "expected the JSON of `launch.py profile --report`: "),
        ("[1]", "expected the JSON of `launch.py profile --report`, got list"),
        ('{"action_hz": 10}', "got the report of another command"),
        ('{"format": "saccade profile", "version": 0}', "expected a profile of version 1, got 0; another Saccade"),
        ('{"format": "saccade profile", "version": 1, "figures": {"a": {"b": {"p50": "x"}}}}', "is damaged"),
    ],
)
def test_an_old_or_foreign_json_is_refused_with_its_name(tmp_path, content, message):
    file = tmp_path / "old.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_profile(file)
    assert f"--against {file}" in str(caught.value) and message in str(caught.value)


def test_a_report_reads_back_as_it_was_written(tmp_path):
    result = profile(samples(), LADDER)
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(result))
    assert load_profile(file) == result


def test_what_the_stamps_cost_is_measured_and_said():
    cost = measure_cost(100.0, cycles=30)
    assert cost["us"]["p50"] > 0 and cost["share"] == pytest.approx(cost["us"]["p50"] / 1000 / 100.0)
    assert "of 100 ms" in cost_line(cost)


def test_the_made_up_run_is_consistent():
    """The tests above stand on it."""
    cycles, features = run()
    assert all(cycle.stamp_ns > START_NS for cycle in cycles)
    stages = {name: np.sum(list(row.stage_ms.values())) for name, row in zip("ab", features, strict=False)}
    assert set(stages.values()) == {ENCODE_MS - 0.5}
