"""Rules of the house that no linter knows: file sizes, names, machine paths, and what an import may bring along."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("luspo_cli", "tests", "bench")
LINES = 400
DRAWERS = {"utils", "util", "helpers", "helper", "misc", "common"}
TEXTS = {".py", ".md", ".toml", ".txt", ".cfg", ".yml", ".yaml", ".json", ""}
# Of the machine that somebody worked on. Put together from parts, so that this file does not hold them.
MACHINE_PATHS = [
    re.compile(rf"(?<![\w.]){start}/\w") for start in ("/" + "root", "/" + "home", "/" + "work", "/" + "Users")
]


def modules() -> list[Path]:
    return [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]


def shipped_texts() -> Iterator[Path]:
    folders = [*FOLDERS, "docs", "presets", ".ci"]
    for file in [*(f for folder in folders for f in (ROOT / folder).rglob("*")), *ROOT.iterdir()]:
        if file.is_file() and file.suffix in TEXTS and "__pycache__" not in file.parts:
            yield file


def test_there_is_something_to_check() -> None:
    assert len(modules()) > 60
    assert {"README.md", "pyproject.toml", "tiny.toml", "session.py"} <= {file.name for file in shipped_texts()}


def test_no_file_is_longer_than_400_lines() -> None:
    long = {
        str(file.relative_to(ROOT)): count
        for file in modules()
        if (count := len(file.read_text().splitlines())) > LINES
    }
    assert not long


def test_no_module_is_a_drawer() -> None:
    named = {part for file in modules() for part in (file.stem, *file.relative_to(ROOT).parts[:-1])}
    assert not named & DRAWERS


def test_package_inits_are_empty_apart_from_the_public_ones() -> None:
    filled = {str(f.parent.relative_to(ROOT)) for f in modules() if f.name == "__init__.py" and f.read_text().strip()}
    assert filled <= {"luspo_cli", "luspo_cli/objectives", "luspo_cli/verl_plugin"}


def test_every_module_says_what_was_decided() -> None:
    silent = [
        str(file.relative_to(ROOT))
        for file in modules()
        if file.name != "__init__.py" and not ast.get_docstring(ast.parse(file.read_text()))
    ]
    assert not silent


def test_no_path_of_a_machine_is_written_down() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in shipped_texts()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if any(path.search(line) for path in MACHINE_PATHS)
    ]
    assert not found


def test_no_invisible_characters() -> None:
    """Zero-width and direction marks, byte-order marks, no-break spaces: they hide in code and break commands."""
    hidden = re.compile("[\u00a0\u200b-\u200f\u202a-\u202e\u2060\ufeff]")
    found = [str(f.relative_to(ROOT)) for f in shipped_texts() if hidden.search(f.read_text(encoding="utf-8"))]
    assert not found


def blocked(packages: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` where the packages cannot be imported."""
    block = textwrap.dedent(
        f"""
        import sys
        class Block:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {packages!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)")
        sys.meta_path.insert(0, Block())
        """
    )
    return subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True, cwd=ROOT)


HEAVY = [
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "pandas",
    "pyarrow",
    "numpy",
    "matplotlib",
    "sympy",
    "math_verify",
]


@pytest.mark.parametrize(
    "command", ["", "train ", "compare ", "merge ", "plot-length ", "prepare-data ", "objectives "]
)
def test_help_imports_nothing_heavy(command: str) -> None:
    """`python -X importtime` names every module that was really imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "luspo_cli", *command.split(), "--help"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in names
    assert not names & set(HEAVY)


def test_the_block_works() -> None:
    assert "blocked" in blocked(["torch"], "import torch").stderr
    assert blocked([], "import torch").returncode == 0


@pytest.mark.parametrize(
    ("module", "packages"),
    [
        ("luspo_cli.config.run", HEAVY),
        ("luspo_cli.config.layers", HEAVY),
        ("luspo_cli.training.dry_run", HEAVY),
        ("luspo_cli.commands.train", HEAVY),
        # What a host with its own torch imports: our objectives need torch and nothing else.
        ("luspo_cli.objectives", [*HEAVY[1:6], "matplotlib", "sympy", "math_verify", "pydantic", "typer", "rich"]),
        ("luspo_cli.config.objective", [*HEAVY, "pydantic", "typer", "rich"]),
        ("luspo_cli.records", [*HEAVY, "pydantic", "typer", "rich"]),
        ("luspo_cli.advantages", [*HEAVY, "pydantic", "typer", "rich"]),
        ("luspo_cli.grading.grader", [*HEAVY, "pydantic", "typer", "rich"]),
        ("luspo_cli.grading.answers", [*HEAVY, "pydantic", "typer", "rich"]),
        ("luspo_cli.rewards.shaping", [*HEAVY, "pydantic", "typer", "rich"]),
        ("luspo_cli.rewards.rubric", [*HEAVY, "typer", "rich"]),
    ],
)
def test_imports_without(module: str, packages: list[str]) -> None:
    done = blocked(packages, f"import {module}")
    assert done.returncode == 0, done.stderr


def test_a_dry_run_needs_no_torch() -> None:
    code = "import sys; sys.argv = ['luspo', 'train', '--preset', 'qwen2.5-7b', '--dry-run']\n"
    done = blocked(HEAVY, code + "from luspo_cli.__main__ import main; main()")
    assert done.returncode == 0, done.stderr
    assert "memory on one device" in done.stdout
