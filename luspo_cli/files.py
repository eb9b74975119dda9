"""Files that appear whole or not at all: written under a hidden name, flushed, then renamed in one move.

A full disk or a killed process leaves what was there before. Every writer of the package goes through here, so that all of them
keep this promise in the same strength and say the same sentence where it cannot be kept.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from luspo_cli.errors import RunError

PARTIAL = ".partial"
"""Ends the hidden name under which a file is written before it is renamed; one of a killed process means nothing."""


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON whole or not at all; NaN and infinity, which JSON does not know, are a defect of the caller."""
    try:
        content = json.dumps(value, indent=2, sort_keys=False, allow_nan=False)
    except ValueError as error:
        raise AssertionError(f"{path} would hold what JSON does not know: {error}") from error
    replace_file(path, (content + "\n").encode())


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one move; a full disk leaves what was there."""
    try:
        with replacing(path) as stream:
            _write(stream.fileno(), content)
    except OSError as error:
        raise cannot_write(path, error) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream for what is to be at `path`: there in one move and on the disk when the block ends, or not at all.

    Raises OSError where it failed; what was at `path` is then still there.
    """
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Bring the names in `folder` to the disk: a rename alone may be forgotten when the power fails.

    A file system that cannot do that is no failure: the file is whole, and there.
    """
    with contextlib.suppress(OSError):
        sync(folder)


def sync(path: Path) -> None:
    """Bring what is at `path`, a file or a folder's names, to the disk; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append(path: Path, content: bytes) -> None:
    """Append `content` and bring it to the disk; where that fails, cut off what was written of it and raise RunError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        start = os.lseek(descriptor, 0, os.SEEK_END)
        try:
            _write(descriptor, content)
            os.fsync(descriptor)  # some file systems say only here that the disk is full
        except OSError as error:
            with contextlib.suppress(OSError):  # a torn line that stays is left out by readers, and removed by --resume
                os.ftruncate(descriptor, start)
            raise cannot_write(path, error) from error
    finally:
        os.close(descriptor)


def _write(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def cannot_write(path: Path, error: OSError) -> RunError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "free some space" if full else "mend that"
    return RunError(f"cannot write {path}: {error.strerror}; {advice}, then go on with --resume")
