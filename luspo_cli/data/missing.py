"""Whether a cell of a table holds nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any


def is_missing(value: Any) -> bool:
    """Whether a column holds nothing for a row: null, NaN, blank text, an empty list or object."""
    if isinstance(value, float | Decimal):
        return math.isnan(value) if isinstance(value, float) else value.is_nan()
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, Sequence | Mapping) and not value)
