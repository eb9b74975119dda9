"""A key with the values that an experiment gives it, as `--sweep section.key=1,2,4` names them."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from luspo_cli.errors import UsageError


def parse_sweep(text: str) -> tuple[str, list[Any]]:
    """`section.key=1,2,4` as the key and its values, each as TOML where it is TOML, else as text."""
    key, equals, listed = text.partition("=")
    if not equals or "." not in key or not listed.strip():
        raise UsageError(
            f"--sweep wants section.key=value,value, for example --sweep update.mini_batches=1,2,4,8; got '{text}'"
        )
    try:
        values = tomllib.loads(f"values = [{listed}]")["values"]
    except tomllib.TOMLDecodeError:
        values = [part.strip() for part in listed.split(",")]
    if len(values) < 2:
        raise UsageError(f"--sweep {text}: a sweep needs two values at least, for example {key}=1,2")
    return key.strip(), values


def swept_settings(text: str) -> list[str]:
    """`section.key=1,2` as the settings `section.key=1` and `section.key=2`; UsageError where two are the same."""
    key, values = parse_sweep(text)
    settings = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for value in values]
    if len(set(settings)) < len(settings):
        raise UsageError(f"--sweep {text} names a value twice.")
    return settings
