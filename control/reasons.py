"""Reasons as people read them."""

from __future__ import annotations


def kind(reason: str) -> str:
    """A reason without its digits: a growing age is one event, not ten a second."""
    return "".join("#" if character.isdigit() else character for character in reason)
