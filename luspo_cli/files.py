"""The one writer: files and folders that appear whole or not at all, lines that are appended whole, locks, digests.

What is new is written under a hidden name, brought to the disk, and takes its place in one move: a full disk or a killed process
leaves what was there before. Where that promise cannot be kept, every writer of the package says the same sentence.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from luspo_cli.errors import KnownError, RunError, UsageError, first_line

PARTIAL = ".partial"
"""Ends the hidden name under which something is written before it is renamed; that of a killed process means nothing."""
GO_ON = "then go on with --resume"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IN_A_LIBRARYS_WORDS = re.compile(r"\(os error \d+\)|\bcode: \d+, kind: |No space left|I/O error|IoError")
"""How libraries that write by themselves (safetensors, tokenizers, pyarrow) wrap what the operating system said."""


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON whole or not at all; NaN and infinity, which JSON does not know, are a defect of the caller."""
    try:
        content = json.dumps(value, indent=2, sort_keys=False, allow_nan=False)
    except ValueError as error:
        raise AssertionError(f"{path} would hold what JSON does not know: {error}") from error
    replace_file(path, (content + "\n").encode())


def replace_file(path: Path, content: bytes, then: str = GO_ON) -> None:
    """Put `content` at `path` in one move; RunError, and what was there is there still, where that fails."""
    with said_in_one_sentence(path, then), replacing(path) as stream:
        _write(stream.fileno(), content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream for what is to be at `path`: there in one move and on the disk when the block ends, or not at all.

    Raises OSError where it failed; what was at `path` is then still there. Two processes that replace one file take turns.
    """
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open_alone(temporary) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            temporary.replace(path)
        _sync_names(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _open_alone(temporary: Path) -> BinaryIO:
    """An empty file that no other process is writing under the same hidden name."""
    while True:
        stream = os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o666), "wb")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        # Whoever held the lock before has renamed or removed the file by now: then it is no longer ours to write to.
        if holds(stream.fileno(), temporary):
            stream.truncate()
            return stream
        stream.close()


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that takes its place, on the disk with all its files, when the block ends; or not at all.

    A folder that was at `path` is kept until the new one is there. What a killed process left of this is cleared away first.

    Raises:
        UsageError: another process is writing the same folder.
        OSError: it failed; what was at `path` is then still there.
    """
    partial, old = (path.with_name(f".{path.name}{end}{PARTIAL}") for end in ("", ".replaced"))
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _claim(partial, path)
    try:
        if old.exists() and not path.exists():  # a process was killed between the two renames below
            old.rename(path)
        yield partial
        for file in partial.rglob("*"):
            _sync_names(file) if file.is_dir() else sync(file)
        _sync_names(partial)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        try:
            partial.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        _sync_names(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(descriptor)


def _claim(partial: Path, path: Path) -> int:
    """Make `partial` anew and lock it; the descriptor holds the lock for as long as it is open."""
    claimed = []
    try:
        if partial.exists():
            claimed.append(lock(partial))  # free where its process was killed
            shutil.rmtree(partial)
        partial.mkdir()
        return lock(partial)
    except (BlockingIOError, FileExistsError):
        raise UsageError(f"another process is writing {path}; wait for it or choose another name") from None
    finally:
        for descriptor in claimed:
            os.close(descriptor)


def _sync_names(folder: Path) -> None:
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


def append(path: Path, content: bytes, then: str = GO_ON) -> None:
    """Append `content` and bring it to the disk; where that fails, cut off what was written of it and raise RunError."""
    with said_in_one_sentence(path, then):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            start = os.lseek(descriptor, 0, os.SEEK_END)
            try:
                _write(descriptor, content)
                os.fsync(descriptor)  # some file systems say only here that the disk is full
            except OSError:
                # A torn line that stays is left out by readers, and removed by --resume.
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, start)
                raise
        finally:
            os.close(descriptor)


def _write(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def write_failure(error: BaseException) -> str | None:
    """What the disk or the file system said, on one line; None where `error` tells of something else.

    Libraries that write by themselves wrap it in exceptions of their own, of which only the text shows where it came from.
    """
    error = _cause(error)
    if isinstance(error, KnownError):
        return None
    first = first_line(error)
    if isinstance(error, OSError):
        return error.strerror or first
    return first if _IN_A_LIBRARYS_WORDS.search(str(error)) else None


def _cause(error: BaseException) -> BaseException:
    """A file that could not be written in the midst of a folder has its sentence already; the folder's says the same cause."""
    return error.__cause__ if isinstance(error, RunError) and error.__cause__ is not None else error


def cannot_write(what: object, error: BaseException, then: str = GO_ON, left: str = "") -> RunError:
    """The sentence for what could not be written: what the system said, what is `left`, what to do about it, and `then`."""
    reason = write_failure(error) or str(error)
    full = getattr(_cause(error), "errno", None) in _DISK_FULL or "No space left" in reason or "(os error 28)" in reason
    advice = "free some space" if full else "mend that"
    return RunError(f"cannot write {what}: {reason}; {f'{left}; ' if left else ''}{advice}, {then}")


@contextlib.contextmanager
def said_in_one_sentence(what: object, then: str = GO_ON, left: str = "") -> Iterator[None]:
    """Within this block a disk or file system that fails is a RunError: `cannot_write`."""
    try:
        yield
    except Exception as error:
        if write_failure(error) is None:
            raise
        raise cannot_write(what, error, then, left) from error


def lock(path: Path, *, wait: bool = False, shared: bool = False) -> int:
    """Lock the file or folder at `path` (an absent file is made) and return the descriptor that holds it until it is closed.

    Raises BlockingIOError where another process holds it and `wait` is not given. A process that dies lets go.
    """
    read_only = shared or path.is_dir()
    descriptor = os.open(path, os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT, 0o644)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        if not path.is_dir():  # a network file system may not lock folders: then nothing keeps two writers apart
            os.close(descriptor)
            raise
    return descriptor


def holds(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`: not moved, deleted or replaced since."""
    try:
        there = os.stat(path)
    except OSError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def file_sha256(file: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_object(file: Path) -> dict[str, Any] | None:
    """The JSON object in `file`; None where it is absent, unreadable or anything else."""
    try:
        return require_object(file, "")
    except UsageError:
        return None


def require_object(file: Path, advice: str) -> dict[str, Any]:
    """The JSON object in `file`; UsageError, with `advice` on what to do about it, where there is none."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}; {advice}") from None
    except ValueError:
        raise UsageError(f"{file} is not readable JSON; {advice}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{file} is not readable JSON: it holds no JSON object; {advice}")
    return content
