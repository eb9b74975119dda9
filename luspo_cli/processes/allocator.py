"""A faster memory allocator for training on a CPU: where tcmalloc is installed, the command starts again with it.

glibc returns every freed block above 32 MB to the system, and each page of the next one faults in anew: millions of faults a
step of a model with half a billion weights, a third of its time. An allocator can only be preloaded, before a process starts,
so the command replaces itself once, before it has imported torch or touched a file. It does so in a process of its own alone,
never where LD_PRELOAD is set already, and what the new process starts has glibc's allocator again.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from luspo_cli.machine import has_cuda
from luspo_cli.processes.place import BY_LUSPO

CHOICE = "LUSPO_ALLOCATOR"
"""`system` in the environment leaves glibc's allocator; a process that was started again finds its library here."""
LIBRARIES = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4")
"""Not jemalloc, which by itself gives pages back so soon that they fault in more often than with glibc."""
_FOLDERS = ("/usr/lib/{machine}-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")
_LAUNCHED = (BY_LUSPO, "RANK", "SLURM_PROCID", "TORCHELASTIC_RUN_ID")
"""Set where a launcher holds this process, which decides its environment."""


def start_again_with_allocator() -> None:
    """Replace this process by one with a faster allocator where that can be had; return where not, and in the new one."""
    library = library_to_preload(os.environ, sys.orig_argv)
    if library is None:
        return
    environment = {**os.environ, "LD_PRELOAD": str(library), CHOICE: str(library)}
    if not _starts(environment):
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def preloaded() -> str | None:
    """The library that this process was started again with; what it starts itself has none, from this call on."""
    library = os.environ.get(CHOICE, "")
    if not library or os.environ.get("LD_PRELOAD") != library:
        return None
    del os.environ["LD_PRELOAD"]
    return Path(library).name


def library_to_preload(environment: Mapping[str, str], command: list[str]) -> Path | None:
    """The library to start again with, None where there is none or this process should stay as it is.

    `command`: the interpreter and its arguments. Only luspo's own command is started again, not a program that calls it.
    """
    kept = ("LD_PRELOAD", CHOICE, *_LAUNCHED)
    is_own = any(Path(word).name == "luspo" or word == "luspo_cli" for word in command[1:4])
    if sys.platform != "linux" or not is_own or any(name in environment for name in kept):
        return None
    if platform.libc_ver()[0] != "glibc" or has_cuda():
        return None
    folders = [Path(folder.format(machine=platform.machine())) for folder in _FOLDERS]
    return next((found for name in LIBRARIES for folder in folders if (found := folder / name).is_file()), None)


def _starts(environment: Mapping[str, str]) -> bool:
    """Whether an interpreter starts with the library without a word."""
    try:
        tried = subprocess.run(
            [sys.executable, "-S", "-c", "print('here')"], env=environment, capture_output=True, timeout=30, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return (tried.returncode, tried.stdout, tried.stderr) == (0, b"here\n", b"")
