"""The bus measured between two real processes: everything there and consistent. No time is asserted."""

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from control import bench_wire
from control.bench_wire import CAMERAS, Case, cases, cost, features, frames, latency, measure_wire, throughput
from control.errors import ConfigError, MeasurementError
from control.wire import decode, encode


def test_the_messages_are_those_of_a_run_and_cross_the_wire():
    found = {case.name: case.noun for case in cases()}
    assert [found[name].tokens.shape for name in ("features, 5 x 128", "features, 5 x 2048")] == [(5, 128), (5, 2048)]
    for name, shape in (("frames, 5 x 224x224", (224, 224, 3)), ("frames, 5 x 640x360", (360, 640, 3))):
        received = decode("frames", encode(found[name]))
        assert [image.shape for image in received.images.values()] == [shape] * len(CAMERAS)
    assert decode("features", encode(found["features, 5 x 2048"])).tokens.nbytes == 5 * 2048 * 4


def test_latency_and_throughput_are_counted_from_the_stamps():
    answer = {"latency_ns": [1_000_000, 3_000_000, 2_000_000], "arrived_ns": [], "rejected": 0}
    row = latency(answer)
    assert (row["received"], row["latency_ms"]["p50"], row["latency_ms"]["max"]) == (3, 2.0, 3.0)
    arrived = [10**9, 2 * 10**9, 3 * 10**9]  # three messages, two intervals of one second
    assert throughput({"arrived_ns": arrived}, 5_000_000) == {
        "flood_received": 3,
        "messages_per_s": 1.0,
        "megabytes_per_s": 5.0,
    }
    assert throughput({"arrived_ns": [7]}, 10)["messages_per_s"] is None


def test_what_an_encode_and_a_decode_allocate_is_at_least_the_message():
    noun = frames(64, 64)
    row = cost(noun)
    assert row["bytes"] == len(encode(noun)) > 5 * 64 * 64 * 3
    assert row["encode_alloc_bytes"] >= row["bytes"] and row["decode_alloc_bytes"] >= 5 * 64 * 64 * 3
    assert cost(frames(128, 64))["decode_alloc_bytes"] > row["decode_alloc_bytes"]


@pytest.mark.parametrize("transport", bench_wire.TRANSPORTS)
def test_messages_are_measured_between_two_processes(transport):
    shown = []
    report = measure_wire([Case("small", features(5, 128), 100.0)], [transport], 0.3, shown.append)
    (row,) = report["rows"]
    assert shown == [f"small over {transport}"]
    assert (row["message"], row["transport"], row["rejected"]) == ("small", transport, 0)
    assert 1 <= row["received"] <= row["sent"] and 1 <= row["flood_received"] <= row["flood_sent"]
    assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p99"] <= row["latency_ms"]["max"]
    console = Console(width=150, file=io.StringIO())
    console.print(bench_wire.table(report))
    assert f"{row['received']} of {row['sent']}" in console.file.getvalue()
    assert "100 Hz for 0.3 s" in bench_wire.notes(report)[0]


def test_a_receiver_that_dies_ends_the_measurement(monkeypatch):
    start = subprocess.Popen
    monkeypatch.setattr(
        bench_wire.subprocess, "Popen", lambda command, **options: start([sys.executable, "-c", "exit(3)"], **options)
    )
    with pytest.raises(MeasurementError, match="the receiving process ended before it began, code 3"):
        measure_wire([Case("small", features(1, 8), 100.0)], ["ipc"], 0.1, lambda text: None)


def test_a_transport_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="--transports takes ipc and tcp with commas, got 'udp'"):
        bench_wire.parse_transports("udp")


def test_the_figures_are_plain_json():
    assert json.loads(json.dumps(cost(features(2, 4))))["encode_ms"]["p50"] > 0
