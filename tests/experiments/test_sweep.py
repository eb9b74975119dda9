"""The process runner with children that train nothing: success, failure, re-use, resume, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from luspo_cli.config.layers import resolve_train
from luspo_cli.errors import RunError, UsageError
from luspo_cli.experiments import sweep
from luspo_cli.experiments.sweep import (
    Interrupted,
    Progress,
    Training,
    last_metrics,
    plan_trainings,
    train_command,
    train_missing,
    train_runs,
)

STEPS = 3

# Stands in for `luspo train`: writes one line a step, on Ctrl-C a checkpoint, and fails where it is told to.
CHILD = textwrap.dedent(
    """
    import json, os, pathlib, signal, sys, time
    run, steps, config, mode = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    stop = []
    signal.signal(signal.SIGINT, lambda *_: stop.append(1))
    if mode == "early":
        sys.exit("no such preset")
    if run.exists() and any(run.iterdir()) and "--resume" not in sys.argv:
        sys.exit("run folder exists")
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(config)
    print("threads", os.environ["OMP_NUM_THREADS"], "interrupted twice" if len(stop) > 1 else "", flush=True)
    log = run / "metrics.jsonl"
    if log.exists() and not (run / "checkpoints").exists():  # cut back, as a resumed run does
        log.write_text("".join(line + "\\n" for line in log.read_text().splitlines()[: steps - 1]))
    done = len(log.read_text().splitlines()) if log.exists() else 0
    for step in range(done + 1, steps + 1):
        if mode == "fail" and step == 2:
            print("loss is nan", file=sys.stderr)
            sys.exit(1)
        if mode == "killed" and step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "short" and step == 2:
            break
        with log.open("a") as file:
            file.write(json.dumps({"step": step, "response_length/mean": 10.0 * step, "reward/accuracy/mean": 0.5}))
            file.write("\\n")
        while mode == "wait" and not stop:
            time.sleep(0.01)
        if stop:
            time.sleep(0.5)
            (run / "checkpoint").write_text(str(len(stop)))
            sys.exit(130)
        if step == steps:
            if mode == "killed late":
                os.kill(os.getpid(), signal.SIGKILL)
            last = run / "checkpoints" / f"step-{step:06d}"
            last.mkdir(parents=True)
            (last / "checkpoint.json").write_text(json.dumps({"step": step, "files": {}}))
    """
)


class Seen:
    """A display that keeps what it was shown."""

    def __init__(self) -> None:
        self.states: dict[str, list[str]] = {}
        self.most_running = 0

    def show(self, progress: Sequence[Progress]) -> None:
        self.most_running = max(self.most_running, sum(one.state == "running" for one in progress))
        for one in progress:
            states = self.states.setdefault(one.training.name, [])
            if not states or states[-1] != one.state:
                states.append(one.state)


def wanted(objective: str, seed: int) -> dict[str, Any]:
    return {"objective": {"name": objective}, "run": {"seed": seed, "steps": STEPS}}


@pytest.fixture
def command(tmp_path: Path):
    script = tmp_path / "child.py"
    script.write_text(CHILD)

    def build(modes: dict[str, str] | None = None):
        def one(training: Training) -> list[str]:
            config = json.dumps(wanted(training.objective, training.seed))
            mode = (modes or {}).get(training.name, "train")
            words = [sys.executable, "-S", "-E", str(script), str(training.run), str(training.steps), config, mode]
            return [*words, "--resume"] if training.state == "unfinished" else words

        return one

    return build


def _plan(tmp_path: Path, objectives: Sequence[str] = ("gspo", "luspo"), seeds: int = 2) -> list[Training]:
    return plan_trainings(objectives, seeds, tmp_path / "runs" / "tiny", wanted)


def test_the_plan_goes_seed_by_seed(tmp_path) -> None:
    plan = _plan(tmp_path)
    assert [training.name for training in plan] == ["gspo-seed0", "luspo-seed0", "gspo-seed1", "luspo-seed1"]
    assert {training.state for training in plan} == {"fresh"}
    assert not (tmp_path / "runs").exists()


def test_all_are_trained_side_by_side_and_shown(tmp_path, command, monkeypatch) -> None:
    monkeypatch.setattr(sweep, "usable_cores", lambda: 8)
    seen = Seen()
    train_missing(_plan(tmp_path), command(), processes=2, display=seen)
    assert {training.state for training in _plan(tmp_path)} == {"finished"}
    assert seen.most_running == 2
    assert seen.states["gspo-seed0"] == ["running", "finished"]
    log = tmp_path / "runs" / "tiny" / "gspo-seed0" / "console.log"
    assert log.read_text().split() == ["threads", "4"]
    assert list((tmp_path / "runs" / "tiny").glob("*.log")) == []


def test_finished_runs_are_used_again_untouched(tmp_path, command) -> None:
    train_missing(_plan(tmp_path, seeds=1), command(), processes=2, display=Seen())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    seen = Seen()
    train_missing(_plan(tmp_path, seeds=1), command({}), processes=2, display=seen)
    assert seen.states == {"gspo-seed0": ["used again"], "luspo-seed0": ["used again"]}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")} == before


def test_an_unfinished_run_goes_on(tmp_path, command) -> None:
    with pytest.raises(RunError):
        train_missing(_plan(tmp_path, ["luspo"], 1), command({"luspo-seed0": "fail"}), processes=1, display=Seen())
    (plan,) = _plan(tmp_path, ["luspo"], 1)
    assert plan.state == "unfinished"
    train_missing([plan], command(), processes=1, display=Seen())
    lines = (plan.run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert (plan.run / "console.log").read_text().count("threads") == 2


def test_a_run_killed_before_its_last_checkpoint_goes_on(tmp_path, command) -> None:
    modes = {"luspo-seed0": "killed late"}
    with pytest.raises(RunError, match="was killed by SIGKILL"):
        train_missing(_plan(tmp_path, ["luspo"], 1), command(modes), processes=1, display=Seen())
    (plan,) = _plan(tmp_path, ["luspo"], 1)
    assert last_metrics(plan.run)["step"] == STEPS
    assert plan.state == "unfinished"
    train_missing([plan], command(), processes=1, display=Seen())
    (plan,) = _plan(tmp_path, ["luspo"], 1)
    assert plan.state == "finished"
    last = plan.run / "checkpoints" / f"step-{STEPS:06d}"
    last.rename(last.with_name(f".{last.name}.partial"))  # as a write that was interrupted leaves it
    assert _plan(tmp_path, ["luspo"], 1)[0].state == "unfinished"


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("fail", r"failed with exit code 1; the end of \S*gspo-seed0/console.log:\n.*\n  \| loss is nan"),
        ("killed", "was killed by SIGKILL"),
        ("short", "ended at step 1 of 3 without an error"),
        ("early", r"failed with exit code 1; the end of \S*gspo-seed0.console.log:\n  \| no such preset"),
    ],
)
def test_a_failure_names_the_run_and_its_last_words(tmp_path, command, mode, message) -> None:
    seen = Seen()
    with pytest.raises(RunError, match=message) as failure:
        train_missing(_plan(tmp_path), command({"gspo-seed0": mode}), processes=2, display=seen)
    assert "gspo-seed0" in str(failure.value)
    assert "repeat the command" in str(failure.value)
    # The one beside it finishes; where the failure came before the others started, they do not start.
    assert seen.states["gspo-seed0"][-1] == "failed"
    assert seen.states["luspo-seed0"][-1] == "finished"
    started = "running" in seen.states["luspo-seed1"]
    assert seen.states["luspo-seed1"][-1] == ("finished" if started else "stopped")
    assert (tmp_path / "luspo-seed1").exists() is started


def test_after_a_failure_nothing_new_starts(tmp_path, command) -> None:
    seen = Seen()
    with pytest.raises(RunError):
        train_missing(_plan(tmp_path), command({"gspo-seed0": "early"}), processes=1, display=seen)
    assert seen.states["luspo-seed1"] == ["waiting", "stopped"]
    assert not (tmp_path / "runs" / "tiny" / "luspo-seed1").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"run": {"seed": 0, "steps": 9}}, r"objective.name \('gspo' there, None now\)|run.steps \(9 there, 3 now\)"),
        ({"run": {"seed": 5, "steps": STEPS}}, r"run.seed \(5 there, 0 now\)"),
    ],
)
def test_another_configuration_is_refused_by_key(tmp_path, config, message) -> None:
    run = tmp_path / "runs" / "tiny" / "gspo-seed0"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"objective": {"name": "gspo"}} | config))
    with pytest.raises(UsageError, match=message):
        _plan(tmp_path)


def test_what_a_resumed_run_takes_over_is_no_other_configuration(tmp_path) -> None:
    """By the rule of `luspo train --resume`: what is only stored, and more steps of a constant learning rate."""
    from doubles.messages import heard  # this file is loaded by itself, too

    run = tmp_path / "gspo-seed0"
    (run / "checkpoints" / "step-000003").mkdir(parents=True)
    stored = resolve_train(preset="tiny", objective="gspo", sets=["run.steps=3"]).model_dump(mode="json")
    (run / "config.json").write_text(json.dumps(stored))
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)))

    def state(*sets: str) -> str:
        config = resolve_train(preset="tiny", objective="gspo", sets=["run.steps=3", *sets]).model_dump(mode="json")
        (training,) = plan_trainings(["gspo"], 1, tmp_path, lambda *_: config)
        return training.state

    with heard() as said:
        assert state() == "finished"
    assert said == []
    assert state("run.steps=5") == "unfinished"
    with heard() as said:
        assert state("run.keep_checkpoints=5") == "finished"
    assert "run.keep_checkpoints (2 there, 5 now) is neither used nor recorded" in said[0]
    with pytest.raises(UsageError, match=r"another configuration: run\.steps \(3 there, 2 now\)"):
        state("run.steps=2")


def test_more_trainings_side_by_side_than_the_machine_carries_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("luspo_cli.training.fit.usable_cores", lambda: 1)
    with pytest.raises(UsageError, match=r"^6 processes are more than 4 for each of this machine's 1 processor cores"):
        train_runs(["gspo", "luspo"], 3, tmp_path, preset="tiny", sets=[], processes=200, display=nullcontext(Seen()))
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_no_runs_are_refused(tmp_path) -> None:
    run = tmp_path / "runs" / "tiny" / "gspo-seed0"
    run.mkdir(parents=True)
    assert _plan(tmp_path)[0].state == "fresh"
    (run / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match="is not a run folder"):
        _plan(tmp_path)
    (run / "config.json").write_text("{")
    with pytest.raises(UsageError, match="is not readable JSON"):
        _plan(tmp_path)


def test_the_command_line_of_one_training(tmp_path) -> None:
    training = Training("luspo", 4, tmp_path / "luspo-seed4", 60, "fresh")
    words = train_command(training, "tiny", ["update.mini_batches=8"])
    settings = "--preset tiny --objective luspo --set update.mini_batches=8 --set run.seed=4 --run"
    assert words == [sys.executable, "-m", "luspo_cli", "train", *settings.split(), str(training.run)]
    again = Training("luspo", 4, tmp_path / "luspo-seed4", 60, "unfinished")
    assert train_command(again, "tiny", [])[-1] == "--resume"


def test_the_last_metrics_are_those_of_the_last_whole_line(tmp_path) -> None:
    assert last_metrics(tmp_path) is None
    log = tmp_path / "metrics.jsonl"
    log.write_text("")
    assert last_metrics(tmp_path) is None
    log.write_text('{"step": 1}\n{"step": 2, "pad": "' + "x" * 70000 + '"}\n{"step": 3}\n{"step": 4')
    assert last_metrics(tmp_path) == {"step": 3}


RUNNER = textwrap.dedent(
    """
    import importlib.util, sys
    from pathlib import Path
    spec = importlib.util.spec_from_file_location("runner_test", sys.argv[1])
    test = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(test)
    root, mode = Path(sys.argv[2]), sys.argv[3]
    plan = test._plan(root)
    def command(training):
        config = test.json.dumps(test.wanted(training.objective, training.seed))
        return [sys.executable, "-S", "-E", str(root / "child.py"), str(training.run), "3", config, mode]
    try:
        test.train_missing(plan, command, processes=2, display=test.Seen())
    except test.Interrupted as interruption:
        print("interrupted", interruption)
        sys.exit(130)
    """
)


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_a_signal_reaches_every_child_once_and_waits_for_its_checkpoint(tmp_path, how) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "runner.py").write_text(RUNNER)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "runner.py"), __file__, str(tmp_path), "wait"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    runs = [tmp_path / "runs" / "tiny" / name for name in ("gspo-seed0", "luspo-seed0")]
    deadline = time.monotonic() + 20
    while not all(last_metrics(run) for run in runs):
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if how == "Ctrl-C":  # A terminal signals the whole group: children that belonged to it would be told twice.
        os.killpg(parent.pid, signal.SIGINT)
    else:
        parent.send_signal(signal.SIGTERM)
    out, _ = parent.communicate(timeout=20)
    assert parent.returncode == 130
    assert out.startswith(b"interrupted")
    assert [(run / "checkpoint").read_text() for run in runs] == ["1", "1"]
    assert not (tmp_path / "runs" / "tiny" / "gspo-seed1").exists()


WATCHING = textwrap.dedent(
    """
    import os, pathlib, sys
    from luspo_cli.processes.supervise import stop_with_supervisor
    import signal, time
    run, told = pathlib.Path(sys.argv[1]), []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    stop_with_supervisor()
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1}')
    while not told:
        time.sleep(0.01)
    (run / "stopped").touch()
    """
)


def test_trainings_do_not_go_on_unseen_when_the_comparison_is_killed(tmp_path) -> None:
    """A training asks itself to stop, as a SIGTERM would, when the process that started it is gone."""
    (tmp_path / "child.py").write_text(WATCHING)
    (tmp_path / "runner.py").write_text(RUNNER.replace('"-S", "-E", ', ""))
    parent = subprocess.Popen([sys.executable, str(tmp_path / "runner.py"), __file__, str(tmp_path), "wait"])
    runs = [tmp_path / "runs" / "tiny" / name for name in ("gspo-seed0", "luspo-seed0")]
    deadline = time.monotonic() + 30
    while not all(last_metrics(run) for run in runs):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    while not all((run / "stopped").exists() for run in runs):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_defect_of_the_display_leaves_no_child_behind(tmp_path, command) -> None:
    class Broken:
        def show(self, progress: Sequence[Progress]) -> None:
            if all(last_metrics(one.training.run) for one in progress):
                raise ZeroDivisionError

    modes = {"gspo-seed0": "wait", "luspo-seed0": "wait"}
    with pytest.raises(ZeroDivisionError):
        train_missing(_plan(tmp_path, seeds=1), command(modes), processes=2, display=Broken())
    assert (tmp_path / "runs" / "tiny" / "gspo-seed0" / "checkpoint").read_text() == "1"
    assert (tmp_path / "runs" / "tiny" / "luspo-seed0" / "checkpoint").read_text() == "1"


def test_the_runner_works_outside_the_main_thread(tmp_path, command) -> None:
    plan = _plan(tmp_path, ["luspo"], 1)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            train_missing(plan, command(), processes=1, display=Seen())
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert failures == []
    assert last_metrics(plan[0].run) is not None


def test_signal_handlers_are_put_back(tmp_path, command) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train_missing(_plan(tmp_path, ["luspo"], 1), command(), processes=1, display=Seen())
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert issubclass(Interrupted, Exception)
