"""run.log of a training that fails: the sentence or the traceback that ended it, once, as it stands on stderr."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doubles.runs import SMALL_RUN, as_arguments, records
from luspo_cli.config.run import TrainRun
from luspo_cli.runs.folder import RunFolder

Luspo = Callable[..., tuple[int, str, str]]
OWN = """
import os
from pathlib import Path
from luspo_cli.objectives import OwnObjective

def begun():
    return Path({metrics!r}).exists() and os.environ.get("RANK", {rank!r}) == {rank!r}

def score(solution_str):
    if begun():
        raise ValueError("no answer in it")
    return -len(solution_str)

def aggregation(batch):
    if begun():
        raise ValueError("no weight for it")
    return 1 / batch.sequences

def surrogate(ratio, batch):
    return ratio * batch.advantages * (float("nan") if begun() else 1.0)

raises = OwnObjective("gspo", aggregation=aggregation)
nan = OwnObjective("gspo", surrogate=surrogate)
"""


def write_own(folder: Path, rank: str = "0") -> Path:
    """own.py, whose functions fail in process `rank` as soon as the run in `folder` has recorded a step."""
    (folder / "own.py").write_text(OWN.format(metrics=str(folder / "run/metrics.jsonl"), rank=rank))
    return folder / "own.py"


def one_sentence(err: str) -> str:
    """The line that the entry point printed."""
    (sentence,) = [line for line in err.splitlines() if line.startswith("luspo: ")]
    return sentence


@pytest.mark.parametrize(
    ("settings", "objective", "said"),
    [
        (('reward.function=["{own}:score"]',), "luspo", "ValueError: no answer in it"),
        ((), "{own}:raises", "ValueError: no weight for it"),
        (("update.stop_after_bad_steps=1",), "{own}:nan", "not finite"),
    ],
    ids=["reward", "objective", "not finite"],
)
def test_the_sentence_that_ends_a_run_is_its_last_line(
    luspo: Luspo, tmp_path: Path, settings: tuple[str, ...], objective: str, said: str
) -> None:
    own = write_own(tmp_path)
    sets = [*SMALL_RUN, "evaluation.every=0", *(text.format(own=own) for text in settings)]
    options = [part for text in sets for part in ("--set", text)]
    run = ["--preset", "tiny", "--run", str(tmp_path / "run")]
    code, _, err = luspo("train", *run, "--objective", objective.format(own=own), *options)
    assert code == 1, err
    sentence = one_sentence(err)
    assert said in sentence
    log = (tmp_path / "run/run.log").read_text()
    assert log.splitlines()[-1].partition(" ")[2] == sentence
    assert log.count(sentence) == err.count(sentence) == 1
    assert [record["step"] for record in records(tmp_path / "run")] == [1]


def test_the_traceback_of_a_defect_is_kept_and_a_refused_request_is_not(
    luspo: Luspo, small_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("nobody foresaw it")

    arguments = as_arguments(small_run(), tmp_path)
    monkeypatch.setattr(RunFolder, "append_metrics", broken)
    with pytest.raises(ZeroDivisionError):
        luspo(*arguments)
    log = (tmp_path / "run/run.log").read_text()
    assert "luspo: ended by an error that it does not know\nTraceback (most recent call last):\n" in log
    assert log.endswith("ZeroDivisionError: nobody foresaw it\n")
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 1}\n')
    code, _, err = luspo(*arguments)
    assert (code, "run folder" in err) == (2, True)
    assert (tmp_path / "run/run.log").read_text() == log


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_two_processes_the_one_that_says_it_writes_it(
    small_run: Callable[..., TrainRun], tmp_path: Path, rank: str
) -> None:
    config = small_run("evaluation.every=0", objective=f"{write_own(tmp_path, rank)}:raises")
    command = [sys.executable, "-m", "luspo_cli", *as_arguments(config, tmp_path), "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    sentence = one_sentence(done.stderr)
    assert "ValueError: no weight for it" in sentence
    assert [line.partition(" ")[2] for line in (tmp_path / "run/run.log").read_text().splitlines()].count(sentence) == 1
