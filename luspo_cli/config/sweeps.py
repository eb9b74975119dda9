"""A key with the values that an experiment gives it, as `--sweep section.key=1,2,4` names them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from typing import Any

from luspo_cli.config.layers import toml_value
from luspo_cli.errors import UsageError


def parse_sweep(text: str, sets: Sequence[str] = ()) -> tuple[str, list[Any]]:
    """`section.key=1,2,4` as the key and its values, each as TOML where it is TOML, else as text.

    UsageError for equal values, and for a key that the settings of `sets` give too.
    """
    key, equals, listed = text.partition("=")
    key = key.strip()
    if not equals or "." not in key or not all(key.split(".")) or not listed.strip():
        raise UsageError(
            f"--sweep wants section.key=value,value, for example --sweep update.mini_batches=1,2,4,8; got '{text}'"
        )
    try:
        values = tomllib.loads(f"values = [{listed}]")["values"]
    except tomllib.TOMLDecodeError:
        values = [toml_value(part.strip()) for part in listed.split(",")]
    if len(values) < 2:
        raise UsageError(f"--sweep {text}: a sweep needs two values at least, for example {key}=1,2")
    if key in (assignment.partition("=")[0].strip() for assignment in sets):
        raise UsageError(f"--set and --sweep both give {key}: leave --set {key} out.")
    seen = set()
    for value in values:
        # 1 and 1.0 are one value of a key of numbers; true and 1 are not.
        same = (
            str(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else value_text(value)
        )
        if same in seen:
            raise UsageError(f"--sweep {text} names a value twice: {value_text(value)}; name each value once.")
        seen.add(same)
    return key, values


def value_text(value: Any) -> str:
    """A value as people write it: text without quotes, anything else as in `--set`."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def swept_settings(text: str, sets: Sequence[str] = ()) -> list[str]:
    """`section.key=1,2` as the settings `section.key=1` and `section.key=2`."""
    key, values = parse_sweep(text, sets)
    return [f"{key}={value_text(value)}" for value in values]
