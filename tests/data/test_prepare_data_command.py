"""The command: streams, exit codes, examples that are valid, and a light import."""

from __future__ import annotations

import inspect
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from luspo_cli.commands.prepare_data import PREPARE_DATA_EXAMPLES, prepare_data_cli
from luspo_cli.errors import UsageError

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(prepare_data_cli)
    return app


def test_summary_and_progress_use_their_own_streams(app: typer.Typer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["arithmetic", "--out", str(tmp_path / "out"), "--held-out", "5", "--size", "50"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("train: 50 of 50 rows used; left out: none.\n")
    assert "train.parquet (45 problems), test.parquet (5 problems)" in result.stdout
    assert "train: 50 rows read, 50 kept" in result.stderr


def test_json_is_the_manifest_alone(app: typer.Typer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["arithmetic", "--out", str(tmp_path / "out"), "--size", "20", "--json"])
    assert json.loads(result.stdout) == json.loads((tmp_path / "out/manifest.json").read_text())


def test_unreadable_golds_are_left_out_by_default(app: typer.Typer, tmp_path: Path) -> None:
    source = tmp_path / "mine.csv"
    source.write_text("task,result\na?,x+1\nb?,???\nc?,3\n")
    base = [str(source), "--question-column", "task", "--answer-column", "result", "--json"]
    checked = CliRunner().invoke(app, [*base, "--out", str(tmp_path / "one")])
    assert json.loads(checked.stdout)["splits"]["train"]["left_out"]["unparsable_answer"] == 1
    unchecked = CliRunner().invoke(app, [*base, "--out", str(tmp_path / "two"), "--no-check-answers"])
    assert json.loads(unchecked.stdout)["splits"]["train"]["rows_used"] == 3


def test_known_errors_reach_the_application(app: typer.Typer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["gsm9k", "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, UsageError)
    assert CliRunner().invoke(app, ["gsm8k"]).exit_code == 2


@pytest.mark.parametrize("example", PREPARE_DATA_EXAMPLES)
def test_examples_parse(example: str) -> None:
    app = typer.Typer()
    calls: list[object] = []

    def stand_in(*args: object, **options: object) -> None:
        calls.append(options)

    stand_in.__signature__ = inspect.signature(prepare_data_cli, eval_str=True)  # type: ignore[attr-defined]
    stand_in.__annotations__ = get_type_hints(prepare_data_cli, include_extras=True)
    app.command()(stand_in)
    words = shlex.split(example)
    assert words[:2] == ["luspo", "prepare-data"]
    result = CliRunner().invoke(app, words[2:])
    assert result.exit_code == 0, result.output
    assert len(calls) == 1


def test_the_command_module_imports_nothing_heavy() -> None:
    code = (
        "import sys; import luspo_cli.commands.prepare_data; "
        "heavy = {'torch', 'pandas', 'pyarrow', 'datasets', 'transformers', 'math_verify', 'sympy', 'rich.console'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert "torch" not in done.stderr
    assert "pyarrow" not in done.stderr
    assert done.returncode == 0, done.stderr
