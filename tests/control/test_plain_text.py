"""What a terminal is given of texts that others wrote: to be read, and nothing that it would act on."""

import io
import logging
import sys

import pytest
from rich.console import Console

from control import console
from control.console import RunConsole, log_to_stderr
from control.plain_text import printable_lines
from control.profile_tables import summary as profile_lines

NASTY = "\x1b]0;owned\x07\x1b[2J\u202e [bold]:bomb: a:on:b"
PLAIN = "·]0;owned··[2J· [bold]:bomb: a:on:b"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_run_shows_controls_markup_and_emoji_codes_as_text(is_terminal):
    shown = RunConsole()
    file = io.StringIO()
    shown._console = Console(
        file=file, force_terminal=is_terminal, color_system=None, emoji=shown._console._emoji, width=200
    )
    shown.line(NASTY)
    assert PLAIN in file.getvalue() and NASTY[:3] not in file.getvalue()
    if not is_terminal:
        shown.status(NASTY)
        assert file.getvalue().count(PLAIN) == 2 and "\x1b" not in file.getvalue()


def test_what_a_process_logs_is_text_and_keeps_its_lines(monkeypatch, capsys):
    monkeypatch.setattr(logging.root, "handlers", [])
    log_to_stderr()
    logging.root.handlers[0].setStream(sys.stderr)
    logging.getLogger("robot").warning("recorded: say '%s'\n\tand more", NASTY)
    assert capsys.readouterr().err == f"W recorded: say '{PLAIN}'\n    and more\n"
    assert console.printable_lines is printable_lines


def test_the_lines_of_a_profile_are_text():
    profile = {
        "modes": {"HOLD": 1},
        "reasons": {NASTY: 1},
        "limits": {NASTY: 1},
        "notes": [NASTY],
        "switch_ms": [],
        "cycles": 1,
        "seconds": 1.0,
        "start_up_cycles": 0,
        "period_ms": 100.0,
        "missed_ticks": 0,
        "lost_records": 0,
        "action_hz": None,
        "encode_hz": None,
        "frames_skipped": 0,
    }
    text = "\n".join(profile_lines(profile))
    assert text.count(PLAIN) == 3 and "\x1b" not in text
