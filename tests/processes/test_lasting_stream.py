"""A stderr that goes away must not end a run."""

from __future__ import annotations

import io
import os
import sys

import pytest

from luspo_cli.processes.signals import LastingStream, lasting_stderr


def test_a_pipe_that_nobody_reads_takes_everything_from_then_on() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", buffering=1) as pipe:
        stream = LastingStream(pipe)
        print("read", file=stream)
        assert os.read(reader, 100) == b"read\n"
        os.close(reader)
        for _ in range(3):
            print("not read", file=stream, flush=True)
        assert os.readlink(f"/proc/self/fd/{writer}") == os.devnull
    # leaving the block flushes and closes the pipe itself: that must not fail either


def test_a_full_disk_loses_lines_and_nothing_else() -> None:
    """/dev/full answers every write with ENOSPC; space may come back, so the stream is kept."""
    with open("/dev/full", "w", buffering=1) as full:
        stream = LastingStream(full)
        print("a line", file=stream, flush=True)
        assert os.readlink(f"/proc/self/fd/{full.fileno()}") == "/dev/full"
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_a_closed_stream_and_other_defects() -> None:
    closed = io.StringIO()
    closed.close()
    print("lost", file=LastingStream(closed))
    with pytest.raises(TypeError):
        LastingStream(io.StringIO()).write(3)  # type: ignore[arg-type]


def test_everything_but_writing_is_the_streams_own(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stderr
    with lasting_stderr():
        assert sys.stderr.encoding == before.encoding
        assert sys.stderr.isatty() is before.isatty()
        print("as always", file=sys.stderr)
    assert sys.stderr is before
    assert capsys.readouterr().err == "as always\n"
