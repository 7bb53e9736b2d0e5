"""Text of others (instructions, names, reasons, recordings) as something that a person reads and no machine obeys.

A terminal acts on control characters, and a page or a terminal turns its writing direction where a text says so.
"""

from __future__ import annotations

import unicodedata

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # Unicode categories: controls, directions, surrogates, separators
_JOINER = "\u200d"  # holds emoji together
_MAX_SHOWN = 1000


def printable(text: str) -> str:
    """One line for a terminal, a dot for each character that is not to be seen."""
    return "".join(letter if letter.isprintable() else "·" for letter in text)


def printable_lines(text: str) -> str:
    """The same for a text of several lines, in which tabs become spaces."""
    return "\n".join(printable(line) for line in text.expandtabs(4).split("\n"))


def is_unseen(character: str) -> bool:
    """Whether it would be invisible, or would change how the text around it is shown."""
    return unicodedata.category(character) in _UNSEEN and character != _JOINER


def shown(text: str) -> str:
    """The text with everything invisible written out, such as \\u202e, which turns the writing direction."""
    return "".join(f"\\u{ord(c):04x}" if is_unseen(c) else c for c in text[:_MAX_SHOWN])


def find_unseen(text: str) -> str | None:
    """The first invisible character of a text as a person can look it up, None where there is none."""
    return next((f"U+{ord(c):04X} ({unicodedata.name(c, 'control character')})" for c in text if is_unseen(c)), None)
