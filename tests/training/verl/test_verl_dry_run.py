"""The dry run of verl's engine: what this machine can see missing is said, and what only a start can ask is named."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ASKED = ("train", "--preset", "qwen3-30b-a3b", "--engine", "verl", "--dry-run", "--json")


@pytest.mark.parametrize(("python", "missing"), [("nowhere/python", True), (".", True), (sys.executable, False)])
def test_an_interpreter_that_is_not_there_is_missing(
    luspo: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str, missing: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, error = luspo(*ASKED, "--verl-python", python)
    assert status == 0, error
    found = json.loads(out)
    assert any("is not a file: give the python of verl's environment" in one for one in found["missing"]) == missing
    assert any("a start asks first" in one for one in found["remarks"])
    assert not list(tmp_path.iterdir())
