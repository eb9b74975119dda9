"""JSON-lines files as the tests read and write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def json_lines(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def write_json_lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Write `rows` as JSON lines and return the file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
