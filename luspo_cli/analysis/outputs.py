"""The files that a command writes beside its answer: which suffix each kind has, checked before anything is computed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from luspo_cli.errors import UsageError


@dataclass(frozen=True, slots=True)
class OutputKind:
    """What a file holds, in words, and the suffixes that say so; no suffix is of two kinds, so that no file replaces another."""

    what: str
    suffixes: tuple[str, ...]


FIGURE = OutputKind("a figure", (".png", ".svg", ".pdf"))
NUMBERS = OutputKind("a table of numbers", (".csv",))
LOG = OutputKind("a log", (".json",))
PAGE = OutputKind("a page", (".html", ".htm"))


def check_output(path: Path | None, kind: OutputKind, option: str = "") -> None:
    """UsageError where no file of this kind can be written at `path`; folders that are missing are made when it is written."""
    if path is None:
        return
    named = f"{option} {path}".strip()
    if path.suffix.lower() not in kind.suffixes:
        raise UsageError(
            f"{named} has no suffix that {kind.what} can be written as; end it in {', '.join(kind.suffixes)}."
        )
    if path.is_dir():
        raise UsageError(f"{named} is a folder; name a file in it, for example {path / ('out' + kind.suffixes[0])}.")
    nearest = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not nearest.is_dir():
        raise UsageError(f"{named} cannot be written: {nearest} is no folder; name another file.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"{named} cannot be written: {nearest} may not be written to; name another file.")
