"""Write `docs/cli.md` from each command's `--help`, or check that it is current: `--write` and `--check`.

The help is rendered as on a terminal of 100 columns without colours, whatever terminal runs this.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
COLUMNS = 100
# Read by typer and rich when they are imported, so before the import of the app below.
PLAIN = {"COLUMNS": str(COLUMNS), "TERMINAL_WIDTH": str(COLUMNS), "NO_COLOR": "1", "TERM": "dumb", "PYTHONUTF8": "1"}
INTRODUCTION = """# The command line

Written by `make fix` from `luspo COMMAND --help`; `make check` fails where it is not current. Exit status: 0 done, 1 the work
failed, 2 the request was wrong, 130 stopped by Ctrl-C, a training also 143 by SIGTERM and 129 by SIGHUP.
`LUSPO_DEBUG=1` shows the traceback behind a one-sentence failure.
"""


def help_texts() -> dict[str, str]:
    """Command line → its help, the program first, then its commands in the order of registration."""
    os.environ.update(PLAIN)
    for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        os.environ.pop(name, None)
    from typer.main import get_command
    from typer.testing import CliRunner

    from luspo_cli.app import app

    runner = CliRunner()
    texts = {}
    for words in _commands(get_command(app)):
        result = runner.invoke(app, [*words, "--help"], prog_name="luspo", terminal_width=COLUMNS)
        if result.exit_code:
            raise SystemExit(f"luspo {' '.join(words)} --help failed: {result.output}")
        texts[" ".join(["luspo", *words])] = "\n".join(line.rstrip() for line in result.output.splitlines()).strip("\n")
    return texts


def _commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of a command and of all below it, in the order of registration."""
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(below, (*words, name))


def document() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for command, text in help_texts().items():
        parts.append(f"## {command}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def main() -> int:
    """Do what the one argument says; 1 where a check finds the page stale."""
    if sys.argv[1:] not in (["--check"], ["--write"]):
        print("usage: command_help.py --check | --write", file=sys.stderr)
        return 2
    text = document()
    if sys.argv[1] == "--write":
        DOCUMENT.write_text(text, encoding="utf-8")
        return 0
    if DOCUMENT.is_file() and DOCUMENT.read_text(encoding="utf-8") == text:
        return 0
    print("docs/cli.md is not current: run `make fix`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
