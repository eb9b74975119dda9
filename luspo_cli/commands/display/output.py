"""What `luspo compare` makes of a comparison, as its options say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

By = Literal["steps", "tokens", "time"]
Style = Literal["screen", "paper"]


@dataclass(frozen=True, slots=True)
class ComparisonOutput:
    """The axis, how much is printed, and the files that are written."""

    by: By
    full: bool
    as_json: bool
    figure: Path | None
    html: Path | None
    predict: bool
    style: Style
    data: Path | None
    tuned_key: str = ""
    """The key whose value is chosen for each objective; empty: all runs are compared as they are."""
