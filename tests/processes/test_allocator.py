"""Starting again with another allocator: when it is done, when not, and what the new process is like."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from luspo_cli.processes import allocator

COMMAND = ["/usr/bin/python", "/usr/local/bin/luspo", "train", "--preset", "tiny"]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with glibc, without a GPU, and with an allocator's library."""
    monkeypatch.setattr(allocator, "_FOLDERS", (str(tmp_path),))
    monkeypatch.setattr(allocator, "has_cuda", lambda: False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("glibc", "2.36"))
    (tmp_path / allocator.LIBRARIES[1]).touch()
    return tmp_path / allocator.LIBRARIES[1]


def test_the_first_library_that_is_there(library: Path) -> None:
    for command in (COMMAND, ["python", "-m", "luspo_cli", "train"], ["python", "-X", "utf8", "luspo", "train"]):
        assert allocator.library_to_preload({}, command) == library
    (first := library.with_name(allocator.LIBRARIES[0])).touch()
    assert allocator.library_to_preload({}, COMMAND) == first
    library.unlink()
    first.unlink()
    assert allocator.library_to_preload({}, COMMAND) is None


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "LUSPO_ALLOCATOR", "LUSPO_LAUNCHED", "RANK", "SLURM_PROCID", "TORCHELASTIC_RUN_ID"]
)
def test_a_process_whose_environment_is_decided_stays_as_it_is(library: Path, name: str) -> None:
    assert allocator.library_to_preload({name: ""}, COMMAND) is None


def test_a_program_that_calls_luspo_a_gpu_and_another_libc_are_left_alone(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert allocator.library_to_preload({}, ["python", "-m", "pytest", "tests"]) is None
    assert allocator.library_to_preload({}, [""]) is None
    monkeypatch.setattr(allocator, "has_cuda", lambda: True)
    assert allocator.library_to_preload({}, COMMAND) is None
    monkeypatch.setattr(allocator, "has_cuda", lambda: False)
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert allocator.library_to_preload({}, COMMAND) is None


def test_a_library_that_cannot_be_loaded_changes_nothing(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The empty file is no library: the loader says so, and the command goes on as it is."""
    started: list[object] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(sys, "orig_argv", COMMAND)
    for name in ("LD_PRELOAD", "LUSPO_ALLOCATOR", *allocator._LAUNCHED):
        monkeypatch.delenv(name, raising=False)
    allocator.start_again_with_allocator()
    assert started == []
    monkeypatch.setattr(allocator, "_starts", lambda environment: True)
    allocator.start_again_with_allocator()
    ((program, words, environment),) = started  # type: ignore[misc]
    assert (program, words) == (sys.executable, [sys.executable, *COMMAND[1:]])
    assert environment["LD_PRELOAD"] == environment["LUSPO_ALLOCATOR"] == str(library)


def test_the_new_process_knows_its_library_and_hands_it_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/lib/libtcmalloc_minimal.so.4")
    monkeypatch.delenv("LUSPO_ALLOCATOR", raising=False)
    assert allocator.preloaded() is None  # somebody else's
    monkeypatch.setenv("LUSPO_ALLOCATOR", "/lib/libtcmalloc_minimal.so.4")
    assert allocator.preloaded() == "libtcmalloc_minimal.so.4"
    assert "LD_PRELOAD" not in os.environ
    assert allocator.preloaded() is None
    assert allocator.library_to_preload(os.environ, COMMAND) is None
