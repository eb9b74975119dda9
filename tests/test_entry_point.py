"""Ctrl-C, wherever it comes: one line on stderr and exit code 130. In processes of their own, with the signal itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"
IN_IMPORTS = f"""
class Finder:
    def find_spec(self, name, *_):
        if name == "luspo_cli.commands":
            {INTERRUPT}
sys.meta_path.insert(0, Finder())
"""
IN_A_COMMAND = f"""
from luspo_cli.training import session
session.run_training = lambda *_, **__: {INTERRUPT}
"""
REPORTED_BY_THE_COMMAND = """
import typer
from luspo_cli.training import session
def stop(*_, **__):
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
session.run_training = stop
"""


@pytest.mark.parametrize(
    ("setting", "said"),
    [(IN_IMPORTS, "luspo: interrupted\n"), (IN_A_COMMAND, "luspo: interrupted\n"), (REPORTED_BY_THE_COMMAND, "")],
    ids=["imports", "command", "reported"],
)
def test_ctrl_c_is_one_line_and_130(tmp_path: Path, setting: str, said: str) -> None:
    code = f"import os, signal, sys\nfrom luspo_cli.__main__ import main\n{setting}\n"
    code += "sys.argv = ['luspo', 'train', '--preset', 'tiny']\nmain()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stderr == said
    assert done.returncode == 130
