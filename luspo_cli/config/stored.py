"""A stored configuration as this version understands it: keys that came later have their defaults.

A new key's default is what the program did before the key existed; a folder of an older version therefore resumes unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def with_defaults(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """`stored` with the keys that it lacks; unchanged where it is no configuration of this version at all."""
    from pydantic import ValidationError

    from luspo_cli.config.run import TrainRun

    try:
        return TrainRun.model_validate_json(json.dumps(stored)).model_dump(mode="json")
    except ValidationError:
        return stored


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a nested table under dotted keys; lists and empty tables are leaves."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def differing_keys(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Dotted keys with unequal values, as (key, left value, right value); a missing one counts as None."""
    one, other = flatten(left), flatten(right)
    found = []
    for key in sorted({*one, *other}):
        # An empty table, and what the other holds.
        filled = any(further.startswith(f"{key}.") for further in (*one, *other))
        if one.get(key) != other.get(key) and not (filled and {} in (one.get(key), other.get(key))):
            found.append((key, one.get(key), other.get(key)))
    return found


def show(value: Any) -> str:
    """Return a configuration value as it is typed after `--set key=`."""
    return value if isinstance(value, str) else json.dumps(value)
