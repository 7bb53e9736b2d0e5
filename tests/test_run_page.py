"""A real run seen and driven in a real browser. The limits on ages are wide: nothing here is about speed."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import Browser, find_browser
from runs import Run, is_gone

EXECUTABLE = find_browser()
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here: apt-get install chromium"),
]
PATIENCE_S = 120.0
UNHURRIED = {
    "robot.watchdog_ms": 5000,
    "encoder.max_rate_hz": 10,
    "control.state_max_age_ms": 20_000,
    "control.switch_max_ms": 60_000,
    "control.max_missed_ticks": 1000,
    "freshness.slow_after_ms": 50_000,
    "freshness.hold_after_ms": 60_000,
    "freshness.stop_after_ms": 90_000,
}
MARKUP = "<img src=x onerror=\"document.title='owned'\"><b>touch</b> the blue block"


@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    """Starts runs, and ends whatever a failed test has left of them."""
    runs: list[Run] = []

    def start(*arguments: str) -> Run:
        words = [word for key, value in UNHURRIED.items() for word in ("--set", f"{key}={value}")]
        runs.append(Run("--page", *words, *arguments))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            run.process.terminate()
            run.finish()


@pytest.fixture
def browser() -> Iterator[Browser]:
    opened = Browser(str(EXECUTABLE))
    yield opened
    opened.close()


def page_of(run: Run) -> str:
    """The address that the run has printed."""

    def address(_) -> str:
        said = (line.partition("the page is at ")[2] for line in run.lines)
        return next((url.strip() for url in said if url), "")

    run.wait_for(address, PATIENCE_S)
    return address(None)


def joints(browser: Browser) -> list[float]:
    """What the page shows as measured."""
    shown = browser.evaluate("[...document.querySelectorAll('.axis b')].map((b) => b.innerText)")
    return [float(text.replace("\u2212", "-")) for text in shown]


def drawn(browser: Browser, selector: str) -> int:
    """Pixels of a canvas that are not empty."""
    canvas = f"document.querySelector('{selector} canvas')"
    data = f"{canvas}.getContext('2d').getImageData(0, 0, {canvas}.width, {canvas}.height).data"
    return browser.evaluate(f"{data}.filter((value, i) => i % 4 === 3 && value).length")


def test_an_instruction_typed_in_a_browser_moves_the_arm_and_escape_stops_it(start, browser, tmp_path: Path):
    run = start("--set", "page.port=0", "--seed", "3")
    browser.open(page_of(run))
    browser.wait_for(
        "[...document.querySelectorAll('.axis b')].filter((b) => /[0-9]/.test(b.innerText)).length === 7", PATIENCE_S
    )
    before = joints(browser)

    browser.click("#text")
    browser.type("#text", "touch the red block")
    browser.press("Enter")
    browser.wait_for("document.body.dataset.mode === 'RUN'", PATIENCE_S)
    status = run.wait_for(lambda status: status["mode"] == "RUN")
    assert (status["instruction_id"], status["instruction"]) == (1, "touch the red block")
    browser.wait_for("document.querySelector('#history li.acting')", PATIENCE_S)
    assert browser.text("#history li.acting p") == "touch the red block"
    run.wait_for(lambda _: any(abs(a - b) > 0.05 for a, b in zip(joints(browser), before, strict=True)), PATIENCE_S)
    browser.wait_for("document.querySelectorAll('figure:not(.unseen) img').length === 5", PATIENCE_S)
    browser.wait_for("[...document.images].every((image) => image.naturalWidth === 112)")
    assert all(drawn(browser, chart) > 300 for chart in ("#age", "#cycle", ".axis"))

    browser.type("#text", MARKUP)
    browser.press("Enter")
    run.wait_for(lambda status: status["instruction"] == MARKUP, PATIENCE_S)
    browser.wait_for("document.querySelector('#history li.acting p').innerText.includes('blue')")
    assert browser.text("#history li.acting p") == MARKUP
    assert browser.evaluate("document.querySelectorAll('#history img, #history b').length") == 0
    assert browser.evaluate("document.title") == "RUN · Saccade"

    cycles = run.status()["cycles"]
    browser.reload()
    browser.wait_for("document.querySelectorAll('#history li').length === 2", PATIENCE_S)
    assert browser.text("#history li.acting p") == MARKUP
    status = run.status()
    assert status["cycles"] > cycles and (status["mode"], status["instruction_id"]) == ("RUN", 2)

    browser.click("#text")  # Escape works from the field, too
    browser.press("Escape")
    browser.wait_for("document.body.dataset.mode === 'STOP'", PATIENCE_S)
    assert run.wait_for(lambda status: status["mode"] == "STOP")["reason"] == "stopped on the page"
    browser.click("#resume")
    browser.wait_for("document.body.dataset.mode === 'RUN'", PATIENCE_S)
    browser.screenshot(tmp_path / "page.png")
    browser.click("#stop")
    browser.wait_for("document.body.dataset.mode === 'STOP'", PATIENCE_S)
    browser.click("#resume")
    run.wait_for(lambda status: status["mode"] == "RUN")

    page = run.children()["page"]
    os.kill(page, signal.SIGSTOP)
    browser.wait_for("document.querySelector('#trouble').innerText.includes('STOP does not reach the robot')")
    browser.click("#stop")  # said at once that nobody hears it
    browser.wait_for("document.querySelector('#reply').innerText === 'STOP WAS NOT SENT: the page is not connected'")
    os.kill(page, signal.SIGCONT)
    browser.wait_for("document.body.dataset.mode === 'RUN' && document.querySelector('#trouble').hidden", PATIENCE_S)
    os.kill(page, signal.SIGSTOP)
    browser.press("Escape")  # before the window can know that the page hangs
    browser.wait_for("document.querySelector('#reply').innerText.startsWith('STOP WAS NOT CONFIRMED')")
    cycles = run.status()["cycles"]
    run.wait_for(lambda status: status["cycles"] >= cycles + 20 and status["mode"] == "RUN", PATIENCE_S)
    os.kill(page, signal.SIGKILL)
    run.wait_for(lambda _: "page was killed by SIGKILL: the run goes on without it" in run.text)
    time.sleep(3)  # the window tries one connection after another: what was not confirmed stays to be read
    assert browser.text("#reply").startswith("STOP WAS NOT CONFIRMED")
    browser.close()
    assert run.status()["mode"] == "RUN"
    children = run.children().values()
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 0, run.text
    assert all(is_gone(pid) for pid in children) and "Traceback" not in run.text
    assert run.result["missed_ticks"] <= 0.1 * run.result["cycles"]


def test_a_port_in_use_is_told_and_the_run_goes_on_without_its_page(start):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        run = start("--set", f"page.port={port}", "--say", "touch the red block")
        run.wait_for(lambda status: status["mode"] == "RUN", PATIENCE_S)
        run.wait_for(lambda _: "page ended with code 1: the run goes on without it" in run.text, PATIENCE_S)
        assert f"no page: 127.0.0.1 port {port} is in use by another program or run" in run.text
        assert run.status()["mode"] == "RUN"
        run.process.send_signal(signal.SIGINT)
        assert run.finish() == 0, run.text
