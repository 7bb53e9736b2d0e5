"""The benchmark tables: every row there, honest, and comparable with its neighbours. No time is asserted."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from control.errors import ConfigError
from tests.vla.conftest import CPU
from vla import bench
from vla.bench import measure_encode
from vla.bench_head import head_table, measure_head
from vla.bench_report import check_chart, draw, notes, tables
from vla.bench_steps import Scene, Step, steps
from vla.errors import DeviceFault
from vla.policy_spec import PolicySpec

PROMISED = {
    *("step", "views", "height", "width", "precision", "p50_ms", "p95_ms", "speedup", "cosine", "operators"),
    *("host_reads", "peak_memory_mb", "tokens", "tflop", "floor_ms"),
}
UNCOMPILED = (
    "stock",
    "static",
    "prefix",
    "early",
    "but one kept",
    "resized",
    "alone",
    "CUDA",
    "FP8",
)  # compiling takes long


@pytest.fixture(autouse=True)
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MOST_REPEATS", 4)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """Two views and one of 80x300, by every step that is not compiled."""
    return measure_encode("tiny", CPU, views=(2, 1), sizes=((80, 300),), only=UNCOMPILED, log=lambda line: None)


def row(report: dict[str, Any], step: str, precision: str = "fp32", views: int = 2) -> dict[str, Any]:
    (found,) = (
        row for row in report["rows"] if (row["step"], row["precision"], row["views"]) == (step, precision, views)
    )
    return found


def test_every_row_has_every_promised_figure_or_a_reason(report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report)) == report
    assert len(report["rows"]) > 20
    for row in report["rows"]:
        assert set(row) >= PROMISED
        missing = {key for key in PROMISED if row[key] is None}
        if row["reason"]:
            assert {"p50_ms", "speedup", "operators"} <= missing
        else:
            assert not missing and row["repeats"] >= bench.LEAST_REPEATS and row["prepare_s"] > 0
            assert row["p50_ms"] <= row["p95_ms"] and row["floor_ratio"] == row["p50_ms"] / row["floor_ms"]


def test_rows_that_cannot_run_here_say_why(report: dict[str, Any]) -> None:
    assert row(report, "CUDA graph")["reason"] == "CUDA graphs need a CUDA GPU, the device is 'cpu'"
    assert "float8 needs an NVIDIA GPU" in row(report, "full engine, FP8 language", "fp8")["reason"]
    assert row(report, "all views but one kept", views=1)["reason"].startswith("one view")
    assert row(report, "all views but one kept")["reason"] is None
    assert any(line.startswith("not run: CUDA graph: CUDA graphs need") for line in notes(report))


def test_speedups_are_over_the_first_row_of_the_run_and_of_the_scene(report: dict[str, Any]) -> None:
    first, first_here = report["rows"][0], row(report, "stock, one sequence", views=1)
    assert first["step"] == "stock, one sequence" and first["views"] == 2 and first["speedup"] == 1.0
    for each in report["rows"]:
        if each["p50_ms"]:
            here = first_here if each["views"] == 1 else first
            assert each["speedup"] == first["p50_ms"] / each["p50_ms"]
            assert each["speedup_here"] == here["p50_ms"] / each["p50_ms"]


def test_exact_ways_give_the_stock_features_and_the_others_say_how_far_they_are(report: dict[str, Any]) -> None:
    for each in report["rows"]:
        if each["p50_ms"] and each["exact"]:
            assert each["cosine"] > (0.99999 if each["precision"] == "fp32" else 0.999), each["step"]
    assert 0.3 < row(report, "early exit, half the layers")["cosine"] < 0.99
    assert 0.3 < row(report, "resized to 224x224")["cosine"] < 0.9999
    assert 0.99 < row(report, "INT8 language alone", "int8")["cosine"] < 0.99999
    assert not row(report, "INT8 language alone", "int8")["exact"]


def test_the_engine_reads_nothing_from_the_device_and_the_stock_forward_does(report: dict[str, Any]) -> None:
    assert row(report, "stock, batch of views")["host_reads"] > 20
    assert row(report, "stock, view after view")["operators"] > 1.5 * row(report, "stock, batch of views")["operators"]
    assert row(report, "prefix kept")["host_reads"] == 0
    assert row(report, "prefix kept")["operators"] < row(report, "static module")["operators"]


def test_levers_save_the_work_that_they_save(report: dict[str, Any]) -> None:
    batch, kept = row(report, "stock, batch of views"), row(report, "prefix kept")
    one = row(report, "prefix kept", views=1)
    assert kept["tokens"] == 2 * 3 * 11 < batch["tokens"]  # 80x300 is read as 84x308
    assert row(report, "resized to 224x224")["tokens"] == 2 * 8 * 8
    again = row(report, "all views but one kept")
    assert (again["tokens"], again["tflop"]) == (one["tokens"], one["tflop"])
    assert row(report, "early exit, half the layers")["tflop"] < kept["tflop"] < batch["tflop"]


def test_a_row_that_fails_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(step: Step, scene: Scene, models: Any) -> Any:
        if step.name == "static module":
            raise RuntimeError("no such kernel\nand a long story")
        return prepare(step, scene, models)

    prepare = bench.prepare
    monkeypatch.setattr(bench, "prepare", fail)
    lines: list[str] = []
    result = measure_encode("tiny", CPU, views=(1,), sizes=((56, 56),), only=("static", "prefix"), log=lines.append)
    first, static, kept = (row for row in result["rows"] if "streams" not in row["step"])
    assert static["reason"] == "RuntimeError: no such kernel" and static["p50_ms"] is None
    assert first["p50_ms"] and kept["p50_ms"]
    assert "1 x 56x56, static module, fp32: not run: RuntimeError: no such kernel" in lines


def test_quick_leaves_nothing_out_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "QUICK_S", 0.0)
    result = measure_encode("tiny", CPU, quick=True, only=("stock", "max-autotune"), log=lambda line: None)
    assert {(row["views"], row["height"], row["width"]) for row in result["rows"]} == {(5, 224, 224), (5, 112, 112)}
    assert all(row["reason"] and row["p50_ms"] is None for row in result["rows"])
    assert row(result | {"rows": result["rows"][:5]}, "stock, batch of views", views=5)["reason"].startswith("left out")


def test_the_large_geometries_are_quick_at_224_alone_and_in_16_bit() -> None:
    names = [(step.name, step.precision) for step in steps(CPU, "bf16")]
    assert names[0] == ("stock, one sequence", "bf16")
    assert ("stock, batch of views", "fp32") in names and ("stock, batch of views", "bf16") in names
    assert len(names) == len(set(names))


def test_rows_have_what_the_issue_lists() -> None:
    for device in (CPU, torch.device("cuda")):
        text = " ".join(step.name for step in steps(device, "bf16"))
        for word in (
            *("one sequence", "view after view", "batch of views", "streams", "static", "CUDA graph", "compiled"),
            *("224x224", "INT8 language", "INT8 everything", "FP8", "bitsandbytes INT8", "bitsandbytes INT4"),
            *("prefix", "early exit", "varlen", "flash_attention_2", "kept", "exact levers", "all levers"),
        ):
            assert word in text or (word == "compiled" and device == CPU), word


def test_an_unknown_geometry_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DeviceFault, match="geometry '7b' is unknown: expected one of 3b, mid, embedded, tiny"):
        measure_encode("7b", CPU)


def test_the_tables_show_every_row(report: dict[str, Any]) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    for table in tables(report):
        console.print(table)
    text = console.export_text()
    assert "2 views of 300x80" in text and "1 view of 300x80" in text
    for each in report["rows"]:
        assert each["step"] in text
    assert text.count("not run") == sum(bool(each["reason"]) for each in report["rows"])


def test_the_chart_is_a_png(report: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "charts" / "encode.png"
    check_chart(file)
    draw(report, file)
    data = file.read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 10_000


def test_a_chart_that_cannot_be_drawn_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"--chart needs matplotlib, .* pip install 'saccade\[bench\]'"):
        check_chart(Path("encode.png"))


def test_a_chart_that_cannot_be_written_is_refused_before_the_work() -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ConfigError, match="--chart /proc/none/e.png cannot be written"):
        check_chart(Path("/proc/none/e.png"))


def test_the_head_is_timed_in_the_policys_own_sizes_and_in_the_large_ones(policy_folder: Path) -> None:
    report = measure_head(policy_folder, calls=20)
    assert json.loads(json.dumps(report)) == report
    own, large = report["rows"]
    assert (own["head"], own["tokens"], own["width"], own["chunk"]) == ("policy 'tiny'", 2, 32, 4)
    assert (large["tokens"], large["width"], large["chunk"], large["actions"]) == (5, 2048, 8, 7)
    assert large["parameters"] == 4_110_648
    for each in report["rows"]:
        assert each["calls"] == 20 and each["kind"] == "RegressionHead"
        assert 0 < each["p50_ms"] <= each["p95_ms"] <= each["max_ms"]
        assert each["under_limit"] == (each["p95_ms"] < 2.0)
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(head_table(report))
    assert "4,110,648" in console.export_text()


def test_a_head_that_holds_is_timed_too(tmp_path: Path, write_policy: Callable[..., PolicySpec]) -> None:
    write_policy(tmp_path, head={"kind": "hold"}, pooling={"view": "mean", "aggregation": "concat"})
    own = measure_head(tmp_path, calls=5)["rows"][0]
    assert own["kind"] == "HoldHead" and own["parameters"] == 0 and own["p50_ms"] > 0


@pytest.mark.gpu
def test_all_rows_of_a_gpu_run_on_it() -> None:
    result = measure_encode(
        "tiny", torch.device("cuda"), views=(2,), sizes=((112, 112),), only=(*UNCOMPILED, "streams")
    )
    assert row(result, "CUDA graph", "bf16")["p50_ms"] < row(result, "prefix kept", "bf16")["p50_ms"]
    assert row(result, "prefix kept", "bf16")["host_reads"] == 0
    for each in result["rows"]:
        if each["p50_ms"] and each["exact"]:
            assert each["cosine"] > 0.999, each["step"]
