"""How numbers are written for people: one clock, one dash for what does not exist, never a 0 in its place."""

from __future__ import annotations

DASH = "–"
"""Stands for a number that does not exist."""


def clock(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: float | None, form: str) -> str:
    """A number in Python's format `form`; an empty cell for None."""
    return "" if value is None else format(value, form)


def percent(value: float | None) -> str:
    """Return 0.4333 as 43.3, and a dash for None."""
    return DASH if value is None else f"{100 * value:.1f}"
