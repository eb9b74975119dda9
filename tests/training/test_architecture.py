"""The way from `luspo train` to the loss, seen in the stack of a real step; and no module knows too many others."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import luspo_cli
from doubles.runs import as_arguments
from luspo_cli.app import app
from luspo_cli.config.run import TrainRun
from luspo_cli.training import update

PACKAGE = Path(luspo_cli.__file__).parent
MOST_FUNCTIONS = 6
MOST_IMPORTS = 18


def test_from_the_command_to_the_loss_are_six_functions_of_ours(
    small_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step through the command line; the stack is read inside the call that computes the loss."""
    stacks: list[list[str]] = []
    loss = update.policy_loss

    def watched(*arguments: Any, **options: Any) -> Any:
        frame = sys._getframe(1)
        names = [loss.__name__]
        while frame is not None:
            if Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
                names.append(frame.f_code.co_qualname)
            frame = frame.f_back  # type: ignore[assignment]
        stacks.append(names[::-1])
        return loss(*arguments, **options)

    monkeypatch.setattr(update, "policy_loss", watched)
    config = small_run("run.steps=1", "evaluation.every=0")
    done = CliRunner().invoke(app, as_arguments(config, tmp_path))
    assert done.exit_code == 0, done.output
    assert stacks
    for stack in stacks:
        assert stack[0] == "train_cli"
        assert stack[-2:] == ["Updater.update", "policy_loss"]
        assert len(stack) <= MOST_FUNCTIONS, stack


def test_no_module_imports_more_than_eighteen_others() -> None:
    """Counted as modules, wherever in a file the import stands; what only the type checker reads counts too."""
    modules = {
        ".".join(("luspo_cli", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
    }
    crowded = {}
    for path in PACKAGE.rglob("*.py"):
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = {f"{node.module}.{name.name}" for name in node.names}
                found |= {name if name in modules else node.module for name in whole}
        own = {name for name in found if name in modules}
        if len(own) > MOST_IMPORTS:
            crowded[str(path.relative_to(PACKAGE))] = len(own)
    assert crowded == {}
