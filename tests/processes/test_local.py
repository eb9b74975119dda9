"""The launcher's own part of `luspo train --processes`: what it says of a lost process, and which signals it passes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luspo_cli.errors import RunError
from luspo_cli.processes.local import _conclude, _forwarded, _Group
from luspo_cli.processes.place import LOST_STATUS


def ended(*statuses: int) -> _Group:
    """Copies that have ended so, in this order."""
    group = _Group()
    processes: list[Any] = [SimpleNamespace(returncode=status) for status in statuses]
    group.processes, group.ended = processes, list(range(len(statuses)))
    return group


@pytest.mark.parametrize(
    ("begun", "advice"),
    [
        (False, "No run was begun: give the same command again"),
        (True, "Every checkpoint is whole: go on with: luspo train --run {run} --resume --processes 2"),
    ],
)
def test_a_lost_process_is_told_how_to_go_on(tmp_path: Path, begun: bool, advice: str) -> None:
    """A run that was killed while its model was loaded has no folder that --resume could take up."""
    if begun:
        (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunError) as caught:
        _conclude(ended(LOST_STATUS, -signal.SIGKILL), tmp_path)
    assert str(caught.value) == (
        "process 1 of 2 was killed by SIGKILL (often for want of memory); the others were stopped. "
        + advice.format(run=tmp_path)
    )


def test_a_terminal_that_closes_ends_nothing_under_nohup() -> None:
    passed_on: list[int] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts a program
    try:
        with _forwarded(passed_on.append):
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with _forwarded(passed_on.append):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    assert passed_on == [signal.SIGTERM, signal.SIGHUP]
