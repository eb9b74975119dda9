"""The entry point: run the app; a known failure becomes one sentence on stderr and its exit code."""

from __future__ import annotations

import errno
import io
import os
import sys


def main() -> None:
    """Run the command line and exit."""
    _refuse_windows()
    _open_missing_streams()
    _spell_what_streams_can()
    try:
        _run()
    except BaseException as error:
        # Before Python 3.12 a Ctrl-C in the middle of an import may arrive as a RuntimeError that it caused.
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        if os.environ.get("RANK", "0") == "0":
            print("luspo: interrupted", file=sys.stderr)
        sys.exit(130)


def _refuse_windows() -> None:
    """A folder's lock, a kill that reaches every process of a run and the memory limits of workers are POSIX calls."""
    if sys.platform == "win32":
        print("luspo: Windows is not supported; run it under WSL (Windows Subsystem for Linux)", file=sys.stderr)
        sys.exit(2)


def _open_missing_streams() -> None:
    """Started with `2>&-`, the next file opened would be number 2, and a library's warning would be written into it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number is this one
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def _spell_what_streams_can() -> None:
    """A dash or a Greek letter that the terminal's encoding lacks is shown as `?`, and ends no command with a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _run() -> None:
    from luspo_cli.app import app  # takes long enough for a Ctrl-C
    from luspo_cli.errors import KnownError, PeerLost
    from luspo_cli.processes.place import LOST_STATUS, says

    try:
        app()
    except KnownError as error:
        if os.environ.get("LUSPO_DEBUG"):
            raise
        if says(error):
            print(f"luspo: {error}", file=sys.stderr)
        elif isinstance(error, PeerLost):
            sys.exit(LOST_STATUS)
        sys.exit(error.exit_code)
    except OSError as error:
        # An error of a file names it, and is said where the file is written; the streams have no name.
        if error.errno != errno.ENOSPC or error.filename is not None or os.environ.get("LUSPO_DEBUG"):
            raise
        # What is still buffered must go somewhere, or the exit fails again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"luspo: cannot write to standard output: {error.strerror}; send it elsewhere", file=sys.stderr)
        sys.exit(1)
    except SystemExit as ended:
        # Typer turns a Ctrl-C into Exit or Abort, raised from it, and that into an exit. A command that reported the Ctrl-C
        # itself raised its Exit from None.
        if ended.__context__ is not None and isinstance(ended.__context__.__cause__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


if __name__ == "__main__":
    main()
