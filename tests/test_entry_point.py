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
IN_A_CLASS = f"""
class Named:
    def __set_name__(self, *_):  # before Python 3.12 what comes from here is wrapped in a RuntimeError
        {INTERRUPT}
class Finder:
    def find_spec(self, name, *_):
        if name == "luspo_cli.commands":
            type("Holder", (), {{"field": Named()}})
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
    [
        (IN_IMPORTS, "luspo: interrupted\n"),
        (IN_A_CLASS, "luspo: interrupted\n"),
        (IN_A_COMMAND, "luspo: interrupted\n"),
        (REPORTED_BY_THE_COMMAND, ""),
    ],
    ids=["imports", "class", "command", "reported"],
)
def test_ctrl_c_is_one_line_and_130(tmp_path: Path, setting: str, said: str) -> None:
    code = f"import os, signal, sys\nfrom luspo_cli.__main__ import main\n{setting}\n"
    code += "sys.argv = ['luspo', 'train', '--preset', 'tiny']\nmain()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stderr == said
    assert done.returncode == 130


def test_windows_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """Before anything is imported that Windows lacks: here those modules cannot be imported either."""
    code = """
import sys
sys.platform = "win32"
sys.modules.update(dict.fromkeys(("fcntl", "resource", "termios", "pwd")))
from luspo_cli.__main__ import main
sys.argv = ["luspo", "train", "--preset", "tiny"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "luspo: Windows is not supported; run it under WSL (Windows Subsystem for Linux)\n"


def test_closed_streams_are_opened_before_a_file_takes_their_numbers(tmp_path: Path) -> None:
    """Started with `<&- >&- 2>&-`: what is printed must not end up in the next file that is opened."""
    code = f"""
import os, sys
from luspo_cli.__main__ import _open_missing_streams
_open_missing_streams()
file = os.open({str(tmp_path / "file")!r}, os.O_WRONLY | os.O_CREAT)
print("to nobody", flush=True)
print("to nobody", file=sys.stderr, flush=True)
os.write(file, str(file).encode())
"""
    closing = subprocess.run(["sh", "-c", f'exec "{sys.executable}" -c "$1" <&- >&- 2>&-', "sh", code])
    assert closing.returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("command", [["objectives"], ["--version"], ["objectives", "--json"]])
def test_a_full_disk_behind_standard_output_is_one_sentence(command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "luspo_cli", *command], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert done.returncode == 1
    assert done.stderr == "luspo: cannot write to standard output: No space left on device; send it elsewhere\n"
