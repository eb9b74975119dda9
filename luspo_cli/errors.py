"""The two kinds of failure that a user can mend, each one sentence that says what to do next.

`UsageError` ends a command with exit code 2 (the command line, the configuration or an input file is wrong);
`RunError` ends it with exit code 1 (the work began and could not go on). Anything else is a defect of ours and
keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KnownError(Exception):
    """Base of the failures that are shown as one sentence; `exit_code` is the process's exit status."""

    exit_code = 1


class UsageError(KnownError):
    """The request itself is wrong; nothing was started and nothing was written."""

    exit_code = 2


class RunError(KnownError):
    """The request was fine and the work failed; the message says what is left and how to go on."""


class PeerFailed(KnownError):
    """Another process of the run failed and prints the sentence; this one ends with the same exit status and prints nothing."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class PeerLost(RunError):
    """Another process of the run ended or does not answer; the message is this process's view of it."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without a full stop, for the inside of a sentence; its type where it says nothing.

    A line that ends with a colon announces the next, which then belongs to it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return said.rstrip(".") or type(error).__name__


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the closest of `valid`, whatever its case, or "" where none is close."""
    by_lower = {known.lower(): known for known in valid}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f" (did you mean '{by_lower[matches[0]]}'?)" if matches else ""
