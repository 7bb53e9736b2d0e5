"""What looking on costs: the arithmetic on made-up blocks, and a round beside a real run of four processes."""

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
from contextlib import ExitStack

import pytest
from aiohttp import web
from typer.testing import CliRunner

from control.bench_watchers import ALL, NOBODY, ROUGH, Block, _Process, notes, ratio_table, ratios, report, table
from control.errors import MeasurementError
from control.holders import cpu_s
from control.messages import Cycle, Mode
from launch import ROOT, app


def cycle(seq, lateness_ms, cycle_ms=1.0):
    return Cycle(seq, seq, seq, lateness_ms, cycle_ms, {}, 5.0, 40.0, 1, 1, 9.0, 1, None, Mode.RUN, "", (), 0)


def held(seq):
    return dataclasses.replace(cycle(seq, 0.5, 0.1), mode=Mode.HOLD, reason="features 2000 ms old")


def block(kind, number, lateness_ms, **core_share):
    return Block(kind, number, [cycle(seq, lateness_ms) for seq in range(20)], core_share)


def test_a_ratio_compares_blocks_of_one_round_and_noise_those_of_neighbouring_rounds():
    rounds = [(1.0, 2.0, 1.0), (2.0, 4.0, 2.2), (2.0, 6.0, 2.0)]
    blocks = [
        block(kind, number, late)
        for number, lates in enumerate(rounds)
        for kind, late in zip((NOBODY, ALL, ROUGH), lates, strict=True)
    ]
    late = ratios([item.figures() for item in blocks])["lateness_ms p99"]
    assert late["noise"] == {"median": 1.0, "least": 0.5, "most": 2.0}
    assert late[ALL] == {"median": 2.0, "least": 2.0, "most": 3.0, "within_noise": True}
    blocks[1] = block(ALL, 0, 3.0)
    late = ratios([item.figures() for item in blocks])["lateness_ms p99"]
    assert late[ALL]["median"] == 3.0 and late[ALL]["within_noise"] is False
    assert late[ROUGH]["median"] == 1.0 and late[ROUGH]["within_noise"] is True


def test_cycles_that_hold_count_for_lateness_and_not_for_the_time_of_a_cycle():
    mixed, still = block(NOBODY, 0, 0.1), Block(ALL, 0, [held(seq) for seq in range(9)])
    mixed.cycles += still.cycles
    figures = mixed.figures()
    assert (figures["cycles"], figures["in_run"], figures["cycle_ms"]["p50"]) == (29, 20, 1.0)
    assert figures["lateness_ms"]["max"] == 0.5
    found = report([mixed, still, block(ROUGH, 0, 0.1)], 2.0)
    assert "median" not in found["ratios"]["cycle_ms p50"][ALL] and table(found).row_count == 3


def test_one_round_has_no_noise_to_be_compared_with_and_says_so():
    found = report([block(kind, 0, 1.0, controller=0.25) for kind in (NOBODY, ALL, ROUGH)], 2.0)
    late = found["ratios"]["lateness_ms p50"]
    assert late["noise"] == {} and late[ALL]["within_noise"] is None
    assert found["kinds"][ALL]["cycles"] == 20 and found["kinds"][ALL]["core_share"] == {"controller": 0.25}
    assert "share of one core beside nobody: controller 25.0%" in notes(found)
    assert table(found).row_count == 3 and ratio_table(found).row_count == 4


def test_without_a_whole_round_there_is_nothing_to_compare():
    with pytest.raises(MeasurementError, match="before the first round was whole"):
        report([block(NOBODY, 0, 1.0), block(ALL, 0, 1.0)], 2.0)


def test_a_process_that_ends_early_is_an_error_with_its_last_words():
    with ExitStack() as processes:
        words = [sys.executable, "-c", "print('first'); print('no port is free'); raise SystemExit(3)"]
        ended = _Process(processes, "page", words)
        ended.wait(30)
        with pytest.raises(MeasurementError, match="`page` ended early with code 3: no port is free"):
            ended.must_run()


def test_processor_time_grows_with_work_and_is_nothing_for_a_process_that_is_gone():
    before_s = cpu_s(os.getpid())
    while cpu_s(os.getpid()) < before_s + 0.05:
        sum(range(10_000))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert cpu_s(gone.pid) is None


def test_a_window_whose_page_closes_it_at_once_waits_before_it_is_reloaded():
    async def page(_):
        return web.Response(text="page")

    async def closes(request):
        opened = web.WebSocketResponse()
        await opened.prepare(request)
        await asyncio.sleep(0.05)
        await opened.close()
        return opened

    async def main():
        app = web.Application()
        app.add_routes([web.get("/", page), web.get("/ws", closes)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        command = [sys.executable, "-m", "control.window_worker", "rough"]
        command += [f"http://127.0.0.1:{runner.addresses[0][1]}/", str(os.getpid())]
        window = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
        try:
            await asyncio.sleep(3.0)  # it imports what it needs
            before_s = cpu_s(window.pid)
            await asyncio.sleep(2.0)
            return cpu_s(window.pid) - before_s
        finally:
            window.kill()
            await window.wait()
            await runner.cleanup()

    assert asyncio.run(main()) < 0.5  # of two seconds


@pytest.mark.timeout(300)
def test_a_round_beside_a_real_run_has_cycles_of_every_kind_and_a_share_of_every_process(bus, tmp_path):
    file = tmp_path / "watchers.json"
    unhurried = ["control.state_max_age_ms=20000", "robot.watchdog_ms=5000", "robot.camera_hz=10"]
    unhurried += ["freshness.slow_after_ms=50000", "freshness.hold_after_ms=60000", "freshness.stop_after_ms=90000"]
    words = [word for item in (f"bus.address={bus.address}", *unhurried) for word in ("--set", item)]
    ran = CliRunner().invoke(
        app, ["bench", "watchers", "--rounds", "1", "--duration", "2", *words, "--report", str(file)]
    )
    assert ran.exit_code == 0, ran.output
    found = json.loads(file.read_text())
    assert all(found["kinds"][kind]["cycles"] >= 5 for kind in (NOBODY, ALL, ROUGH))
    assert set(found["kinds"][NOBODY]["core_share"]) == {"robot", "encoder", "controller"}
    onlookers = {"page", "window", "recorder", "profiler"}
    assert set(found["kinds"][ALL]["core_share"]) == {"robot", "encoder", "controller"} | onlookers
    assert set(found["kinds"][ROUGH]["core_share"]) >= {"robot", "encoder", "controller", "window"}
    assert "over nobody in the same round" in ran.output
