"""The launcher's own part of `luspo train --processes`: what it says of a lost process, and which signals it passes on.

The processes are real and train nothing: each does what the test has written down for its rank.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from luspo_cli.errors import RunError
from luspo_cli.processes import local
from luspo_cli.processes.local import how_to_go_on, launch
from luspo_cli.processes.place import BY_LUSPO, LOST_STATUS, Place

RANK = textwrap.dedent(
    """
    import os, signal, sys, time, pathlib
    folder, rank = pathlib.Path(sys.argv[1]), int(os.environ["RANK"])
    got = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: got.append(number))
    def others_are_gone():  # as a broken connection shows it
        while not (folder / "gone").exists():
            time.sleep(0.01)
    def told(times=1):
        while len(got) < times:
            time.sleep(0.01)
        (folder / f"told{rank}").write_text(" ".join(map(str, got)))
    (folder / f"pid{rank}").write_text(str(os.getpid()))
    exec(sys.argv[2 + rank])
    """
)
KILLED = "(folder / 'gone').touch(); os.kill(os.getpid(), signal.SIGKILL)"
LOSES = f"others_are_gone(); time.sleep(0.3); sys.exit({LOST_STATUS})"


def command(folder: Path, *ranks: str) -> list[str]:
    return [sys.executable, "-S", "-E", "-c", RANK, str(folder), *ranks]


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
        launch(2, tmp_path, command(tmp_path, LOSES, KILLED))
    assert str(caught.value) == (
        "process 1 of 2 was killed by SIGKILL (often for want of memory); the others were stopped. "
        + advice.format(run=tmp_path)
    )


def test_all_at_their_end_is_no_more_than_that(tmp_path: Path) -> None:
    launch(3, tmp_path, command(tmp_path, "", "", ""))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pid0", "pid1", "pid2"]


def test_what_the_first_process_has_said_is_the_status_of_all(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        launch(2, tmp_path, command(tmp_path, "sys.exit(2)", "sys.exit(2)"))
    assert caught.value.code == 2


def test_one_that_does_not_notice_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "GRACE_S", 0.2)
    with pytest.raises(RunError, match=r"^process 0 of 2 failed with exit status 3 \(what it said stands above\)"):
        launch(2, tmp_path, command(tmp_path, "sys.exit(3)", "told()"))
    assert (tmp_path / "told1").read_text() == str(int(signal.SIGTERM))


LAUNCHER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from luspo_cli.processes.local import launch
    launch(2, Path(sys.argv[1]), sys.argv[2:])
    """
)


def launcher(folder: Path, *ranks: str) -> subprocess.Popen[bytes]:
    """A launcher in a session of its own, once both ranks run."""
    words = [sys.executable, "-c", LAUNCHER, str(folder), *command(folder, *ranks)]
    started = subprocess.Popen(words, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(lambda: all((folder / f"pid{rank}").exists() for rank in range(2)))
    return started


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_rank_once_and_is_the_status(tmp_path: Path, number: signal.Signals) -> None:
    stops = f"told(); time.sleep(0.2); sys.exit({128 + number})"
    started = launcher(tmp_path, stops, stops)
    os.killpg(started.pid, number)  # as a terminal does: to the whole group
    started.communicate(timeout=30)
    assert started.returncode == 128 + number
    assert [(tmp_path / f"told{rank}").read_text() for rank in range(2)] == [str(int(number))] * 2


def test_a_third_signal_ends_what_does_not_stop(tmp_path: Path) -> None:
    started = launcher(tmp_path, "told(2); time.sleep(60)", "told(2); time.sleep(60)")
    started.send_signal(signal.SIGINT)
    time.sleep(0.3)
    started.send_signal(signal.SIGINT)
    wait_for(lambda: all((tmp_path / f"told{rank}").exists() for rank in range(2)))
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=30)
    assert started.returncode == 130
    assert b"luspo: interrupted" in said


def test_a_launcher_that_is_killed_takes_its_processes_along(tmp_path: Path) -> None:
    repository = Path(__file__).resolve().parents[2]
    stops = (
        f"sys.path.insert(0, {str(repository)!r}); from luspo_cli.processes.supervise import stop_with_supervisor;"
        "stop_with_supervisor(); (folder / f'ready{rank}').touch(); told()"
    )
    started = launcher(tmp_path, stops, stops)
    wait_for(lambda: all((tmp_path / f"ready{rank}").exists() for rank in range(2)))
    started.kill()
    started.wait()
    wait_for(lambda: all((tmp_path / f"told{rank}").exists() for rank in range(2)))
    assert [(tmp_path / f"told{rank}").read_text() for rank in range(2)] == [str(int(signal.SIGTERM))] * 2
    assert json.loads((tmp_path / "pid0").read_text()) != started.pid


def test_the_advised_command_is_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the processes of `luspo train --processes`; of another launcher only its own command can say them."""
    assert how_to_go_on(Path("a run")) == "go on with: luspo train --run 'a run' --resume"
    assert how_to_go_on(Path("r"), 3) == "go on with: luspo train --run r --resume --processes 3"
    for name, value in Place(1, 2, 1, "127.0.0.1", 29500).variables().items():
        monkeypatch.setenv(name, value)
    assert how_to_go_on(Path("r")) == (
        "go on with the command that launched these 2 processes (torchrun, accelerate launch or srun), with --resume"
    )
    monkeypatch.setenv(BY_LUSPO, "1")
    assert how_to_go_on(Path("r")) == "go on with: luspo train --run r --resume --processes 2"
    monkeypatch.delenv(BY_LUSPO)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert how_to_go_on(Path("r")) == "go on with: luspo train --run r --resume"
