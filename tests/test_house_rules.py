"""Rules of the house that no linter knows: file sizes, names, machine paths, and what an import may bring along."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("luspo_cli", "tests", "bench")
LINES = 400
FAN_OUT = 18
ENGINE_MODULES = {
    "torch", "transformers", "accelerate", "numpy", "pandas", "pyarrow", "datasets", "subprocess", "multiprocessing",
    "threading", "concurrent", "socket", "shutil", "tempfile", "hashlib",
}  # fmt: skip
WRITING = {"write_text", "write_bytes", "mkdir", "rename", "unlink", "rmdir", "to_parquet", "open"}
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
    for file in [
        *(f for folder in folders for f in (ROOT / folder).rglob("*")),
        *ROOT.glob("[!.]*"),
        *ROOT.glob(".gitignore"),
    ]:
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
    assert filled == {"luspo_cli", "luspo_cli/objectives"}


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
# Runs each case in a fork of one interpreter that has imported nothing of ours: what one imports, the next has not.
INTERPRETER = """
import json, os, sys, traceback

class Block:
    def __init__(self, packages):
        self.packages = packages

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)")

def child(code, packages, output):
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.meta_path.insert(0, Block(packages))
    status = 0
    try:
        exec(code, {"__name__": "__main__"})
    except SystemExit as ended:
        status = ended.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

found = {}
for name, (code, packages) in json.load(sys.stdin).items():
    source, output = os.pipe()
    process = os.fork()
    if not process:
        child(code, packages, output)
    os.close(output)
    with os.fdopen(source, encoding="utf-8") as stream:
        text = stream.read()
    found[name] = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), text
json.dump(found, sys.stdout)
"""
COMMANDS = [
    "",
    "train",
    "compare",
    "eval",
    "fork",
    "inspect",
    "lab",
    "merge",
    "plot-length",
    "prepare-data",
    "objectives",
]
HELP = """
import sys
sys.argv = ["luspo", *{words!r}, "--help"]
from luspo_cli.__main__ import main
try:
    main()
finally:
    print("imported:", *sorted({{name.partition(".")[0] for name in sys.modules}}))
"""
WITHOUT = {
    "luspo_cli.config.run": HEAVY,
    "luspo_cli.config.layers": HEAVY,
    "luspo_cli.config.peers": [*HEAVY, "pydantic", "typer", "rich"],
    "luspo_cli.training.dry_run": HEAVY,
    "luspo_cli.commands.train": HEAVY,
    # What a host with its own torch imports: our objectives need torch and nothing else.
    "luspo_cli.objectives": [*HEAVY[1:6], "matplotlib", "sympy", "math_verify", "pydantic", "typer", "rich"],
    "luspo_cli.config.objective": [*HEAVY, "pydantic", "typer", "rich"],
    "luspo_cli.records": [*HEAVY, "pydantic", "typer", "rich"],
    "luspo_cli.advantages": [*HEAVY, "pydantic", "typer", "rich"],
    "luspo_cli.grading.grader": [*HEAVY, "pydantic", "typer", "rich"],
    "luspo_cli.grading.answers": [*HEAVY, "pydantic", "typer", "rich"],
    "luspo_cli.rewards.shaping": [*HEAVY, "pydantic", "typer", "rich"],
    "luspo_cli.rewards.rubric": [*HEAVY, "typer", "rich"],
}
DRY_RUN = """
import sys
sys.argv = ["luspo", "train", "--preset", "qwen2.5-7b", "--dry-run"]
from luspo_cli.__main__ import main
main()
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[int, str]]:
    """Name of a case → exit status and what it printed."""
    cases: dict[str, tuple[str, list[str]]] = {
        **{f"help {command}": (HELP.format(words=command.split()), []) for command in COMMANDS},
        **{module: (f"import {module}", packages) for module, packages in WITHOUT.items()},
        "dry run": (DRY_RUN, HEAVY),
        "blocked": ("import torch", ["torch"]),
        "not blocked": ("import torch", []),
    }
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETER], input=json.dumps(cases), capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[int, str]] = {name: tuple(outcome) for name, outcome in json.loads(done.stdout).items()}
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(outcomes: dict[str, tuple[int, str]], command: str) -> None:
    status, text = outcomes[f"help {command}"]
    assert status == 0, text
    names = set(text.rpartition("imported:")[2].split())
    assert "typer" in names
    assert not names & set(HEAVY)
    assert command or "pydantic" not in names  # typer itself takes it for a command's own help


def test_the_block_works(outcomes: dict[str, tuple[int, str]]) -> None:
    assert outcomes["blocked"][0] == 1
    assert "blocked" in outcomes["blocked"][1]
    assert outcomes["not blocked"][0] == 0


@pytest.mark.parametrize("module", WITHOUT)
def test_imports_without(outcomes: dict[str, tuple[int, str]], module: str) -> None:
    status, text = outcomes[module]
    assert status == 0, text


def test_a_dry_run_needs_no_torch(outcomes: dict[str, tuple[int, str]]) -> None:
    status, text = outcomes["dry run"]
    assert status == 0, text
    assert "memory on one device" in text


def imports_of(source: str, known: Collection[str]) -> set[str]:
    """Modules of the package that a source text imports, in functions too, but for those of the type checker alone."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{name.name}" for name in node.names}
            found |= (inner & set(known)) or {node.module}
    return found & set(known)


def import_graph() -> dict[str, set[str]]:
    """Module of luspo_cli → the modules of luspo_cli that it imports."""
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in (ROOT / "luspo_cli").rglob("*.py")
    }
    return {name: imports_of(file.read_text(), files) - {name} for name, file in files.items()}


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, in that order; empty where there is no circle."""
    done: set[str] = set()

    def search(module: str, above: list[str]) -> list[str]:
        if module in above:
            return [*above[above.index(module) :], module]
        if module not in done:
            for imported in sorted(graph[module]):
                if found := search(imported, [*above, module]):
                    return found
            done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := search(module, []))), [])


def test_the_rules_on_imports_would_notice() -> None:
    known = {"luspo_cli.a", "luspo_cli.a.b", "luspo_cli.c"}
    source = "import os\nfrom luspo_cli.a import b, name\ndef late():\n    from luspo_cli.c import d\n"
    assert imports_of(source, known) == {"luspo_cli.a.b", "luspo_cli.c"}
    assert imports_of("if TYPE_CHECKING:\n    import luspo_cli.c\n", known) == set()
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_imports_in_a_circle() -> None:
    graph = import_graph()
    assert sum(map(len, graph.values())) > 300  # otherwise the imports were not found
    assert not cycle(graph)


def test_no_module_imports_more_than_18_others() -> None:
    wide = {name: len(imported) for name, imported in import_graph().items() if len(imported) > FAN_OUT}
    assert not wide


def engine_code(source: str) -> list[str]:
    """What a command's file does beside reading options and showing results: work on data, on processes or on files."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        found += [f"imports {name}" for name in names if name.partition(".")[0] in ENGINE_MODULES]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WRITING:
            found.append(f"calls {node.func.attr}")
        if isinstance(node, ast.ClassDef) and not {ast.unparse(base) for base in node.bases} & {"StrEnum"}:
            found.append(f"defines the class {node.name}")
        if isinstance(node, ast.While):
            found.append("loops until something happens")
    return found


def test_the_rule_on_commands_would_notice() -> None:
    source = "import torch.nn\nfrom subprocess import run\nclass Worker:\n    pass\npath.write_text('')\nwhile True:\n    pass\n"
    assert sorted(engine_code(source)) == [
        "calls write_text", "defines the class Worker", "imports subprocess", "imports torch.nn",
        "loops until something happens",
    ]  # fmt: skip
    assert engine_code("import json\nclass Choice(StrEnum):\n    A = 'a'\nfor x in y:\n    print(x)\n") == []


def test_commands_hold_options_and_a_call() -> None:
    files = sorted((ROOT / "luspo_cli/commands").glob("*.py"))
    assert len(files) > 6
    found = {file.name: reasons for file in files if (reasons := engine_code(file.read_text()))}
    assert not found
    known = {f"luspo_cli.commands.{file.stem}" for file in files}
    between = {file.name: both for file in files if (both := imports_of(file.read_text(), known))}
    assert not between  # what two commands need has a room of its own
