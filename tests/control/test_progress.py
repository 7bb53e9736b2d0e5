"""What long work shows of itself on a terminal, and in a log."""

from __future__ import annotations

import io

from rich.console import Console

from control.progress import Progress


def shown(is_terminal: bool, every_s: float = 0.0) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=100, soft_wrap=True, highlight=False)
    with Progress(1200, "episodes", console, every_s) as progress:
        progress.show(7, "5 of 7 done")
        progress.show(1190, "1,000 of 1,190 done")
    return out.getvalue()


def test_a_log_gets_lines_that_say_how_far_it_is() -> None:
    assert shown(False).splitlines() == [
        "7 of 1,200 episodes, 5 of 7 done",
        "1,190 of 1,200 episodes, 1,000 of 1,190 done",
    ]


def test_a_log_gets_no_line_before_it_is_time() -> None:
    assert shown(False, every_s=60.0) == ""


def test_a_terminal_gets_a_bar_and_no_lines() -> None:
    text = shown(True)
    assert "1190/1200" in text and "of 1,200 episodes" not in text
