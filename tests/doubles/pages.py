"""The examples of a documentation page as files and commands: what a reader would copy out of it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# ([\w./-]+\.\w+)\n")


def write_files(page: str, folder: Path) -> list[str]:
    """Write each block of docs/PAGE that begins with `# NAME` as that file in `folder`; returns the names."""
    written = []
    for _, body in _BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
        if named := _FILE.match(body):
            file = folder / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(body.removeprefix(named[0]) if file.suffix == ".jsonl" else body, encoding="utf-8")
            written.append(named[1])
    return written


def commands(page: str) -> list[list[str]]:
    """The arguments of every `luspo` line in the page's `sh` blocks, comments aside."""
    blocks = [body for kind, body in _BLOCK.findall((DOCS / page).read_text(encoding="utf-8")) if kind == "sh"]
    lines = [shlex.split(line, comments=True) for body in blocks for line in body.splitlines()]
    return [words[1:] for words in lines if words[:1] == ["luspo"]]
