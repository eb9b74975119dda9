"""Train what a comparison lacks: one child process a run, a few side by side, none lost.

Each run is `luspo train` in a process of its own, so a crash takes one run along and threads are shared out fairly. The
run folder alone decides what is left to do: a finished one (its last step recorded, the checkpoint of it there) with the
same configuration is used again, an unfinished one goes on from its checkpoint, and one with another configuration is
refused rather than mixed in. After a signal each child gets the time to write its checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from luspo_cli.config.own_objective import check_labels, label_of
from luspo_cli.errors import RunError, UsageError
from luspo_cli.files import require_object
from luspo_cli.machine import has_cuda, usable_cores
from luspo_cli.processes.supervise import Supervisor, killed_by

if TYPE_CHECKING:
    from luspo_cli.config.run import TrainRun

logger = logging.getLogger(__name__)

CONSOLE_LOG = "console.log"
POLL_S = 0.2
STOPPED_STATUS = (0, 130, -signal.SIGINT, -signal.SIGKILL)
"""How a child ends that was told to."""
GRACE_S = 300.0
TAIL_LINES = 8
"""Last lines of a failed run's log that its message quotes."""

State = Literal["waiting", "running", "stopping", "finished", "used again", "failed", "stopped"]
Configuration = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Training:
    """One run that the comparison needs."""

    objective: str
    seed: int
    run: Path
    steps: int
    state: Literal["fresh", "unfinished", "finished"]
    setting: str = ""
    """KEY=VALUE of a sweep."""

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def early_log(self) -> Path:
        """Takes the output until the run folder exists: a fresh folder must be empty when the training opens it."""
        return self.run.with_name(f"{self.run.name}.{CONSOLE_LOG}")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where one run stands; the numbers are those of its last recorded step, None before the first."""

    training: Training
    state: State
    step: int = 0
    response_length: float | None = None
    accuracy: float | None = None


class Display(Protocol):
    """Shows where all runs stand; called several times a second."""

    def show(self, progress: Sequence[Progress]) -> None: ...


class Interrupted(Exception):
    """SIGINT, SIGTERM or SIGHUP ended the trainings; the message holds what else went wrong, mostly nothing."""


def train_runs(
    objectives: Sequence[str],
    seeds: int,
    folder: Path,
    *,
    preset: str,
    sets: Sequence[str],
    processes: int | None,
    display: AbstractContextManager[Display],
    sweep: Sequence[str] = (),
) -> list[Path]:
    """Train every objective with seeds 0 to `seeds` - 1 below `folder` as far as needed, and return the run folders.

    `sweep`: settings KEY=VALUE of which each run takes one; none: one run an objective and seed. `processes`: trainings side by
    side; None: two, and one where there is a CUDA device. Interrupted where a signal ended it.
    """
    own = {"run.seed", "objective.name"}
    for setting in sets:
        if setting.partition("=")[0].strip() in own:
            raise UsageError(f"--set {setting}: the comparison itself sets this; use --seeds and --objectives.")
    for setting in sweep:
        if (key := setting.partition("=")[0]) in own | {"run.steps"}:
            raise UsageError(
                f"--sweep {key}: runs of one comparison differ or agree in this by themselves; choose another key."
            )

    def planned(setting: str) -> list[Training]:
        more = _with(sets, setting)
        return plan_trainings(
            objectives, seeds, folder, lambda objective, seed: configuration(objective, seed, preset, more), setting
        )

    trainings = sorted((one for setting in sweep or ("",) for one in planned(setting)), key=lambda one: one.seed)
    from luspo_cli.config.layers import unused_of_preset

    if unused := unused_of_preset(preset, resolved(objectives[0], 0, preset, sets)):
        logger.warning(unused)
    missing = missing_of(trainings, folder)
    if missing:
        number = side_by_side(
            processes,
            len(missing),
            resolved(missing[0].objective, missing[0].seed, preset, _with(sets, missing[0].setting)),
        )
        with display as shown:
            train_missing(
                trainings,
                lambda training: train_command(training, preset, sets),
                processes=number,
                display=shown,
            )
    return [training.run for training in trainings]


def missing_of(trainings: Sequence[Training], folder: Path) -> list[Training]:
    """Those that are not finished; says how many there are of each kind."""
    missing = [training for training in trainings if training.state != "finished"]
    logger.info(
        f"{len(trainings)} runs in {folder}: {len(trainings) - len(missing)} finished and used again,"
        f" {sum(training.state == 'unfinished' for training in missing)} to go on,"
        f" {sum(training.state == 'fresh' for training in missing)} to start."
    )
    return missing


def side_by_side(processes: int | None, runs: int, config: TrainRun) -> int:
    """How many trainings run at once; UsageError where this machine cannot carry so many of one like `config`."""
    from luspo_cli.training.fit import crowded

    number = min(processes or (1 if has_cuda() else min(2, usable_cores())), runs)
    if reason := crowded(config, number, of_one_run=False):
        raise UsageError(reason)
    return number


def resolved(objective: str, seed: int, preset: str, sets: Sequence[str]) -> TrainRun:
    """Return the configuration of one run."""
    from luspo_cli.config.layers import resolve_train

    return resolve_train(preset=preset, objective=objective, sets=[*sets, f"run.seed={seed}"])


def configuration(objective: str, seed: int, preset: str, sets: Sequence[str]) -> Configuration:
    """Return what `config.json` of one run must hold."""
    return resolved(objective, seed, preset, sets).model_dump(mode="json")


def plan_trainings(
    objectives: Sequence[str],
    seeds: int,
    folder: Path,
    resolve: Callable[[str, int], Configuration],
    setting: str = "",
) -> list[Training]:
    """List the runs below `folder`, seed by seed, each with what its folder says; UsageError for another configuration.

    `resolve` gives the configuration that an objective and a seed must have, as in `config.json`; `setting`: one of a sweep.
    """
    check_labels(objectives)
    trainings = []
    for seed in range(seeds):
        for objective in objectives:
            wanted = resolve(objective, seed)
            run = folder / "-".join(
                [label_of(objective), *([setting.replace("/", "_")] if setting else []), f"seed{seed}"]
            )
            steps = int(wanted["run"]["steps"])
            trainings.append(Training(objective, seed, run, steps, state_of(run, wanted), setting))
    return trainings


def train_command(training: Training, preset: str, sets: Sequence[str]) -> list[str]:
    """Return the command line of one training."""
    command = [sys.executable, "-m", "luspo_cli", "train", "--preset", preset, "--objective", training.objective]
    for setting in (*_with(sets, training.setting), f"run.seed={training.seed}"):
        command += ["--set", setting]
    command += ["--run", str(training.run)]
    return [*command, "--resume"] if training.state == "unfinished" else command


def _with(sets: Sequence[str], setting: str) -> list[str]:
    return [*sets, setting] if setting else [*sets]


def train_missing(
    trainings: Sequence[Training], command: Callable[[Training], Sequence[str]], *, processes: int, display: Display
) -> None:
    """Run all unfinished trainings, `processes` at a time; returns when each has reached its last step.

    After a failure the running ones finish and no further one starts: RunError names the failed run with the end of its
    log. Interrupted after SIGINT, SIGTERM or SIGHUP, once every child has ended.
    """
    runner = _Runner(trainings, command, display, threads=max(1, usable_cores() // processes))
    runner.run(processes)


def last_metrics(run: Path) -> dict[str, Any] | None:
    """Return the last whole line of a run's metrics.jsonl, or None before the first step."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    # The last part may be a line that is still being written.
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            return row
    return None


class _Runner:
    def __init__(
        self,
        trainings: Sequence[Training],
        command: Callable[[Training], Sequence[str]],
        display: Display,
        threads: int,
    ) -> None:
        self._trainings = trainings
        self._command = command
        self._display = display
        self._threads = threads
        self._running: dict[Training, subprocess.Popen[bytes]] = {}
        self._states: dict[Training, State] = {
            training: "used again" if training.state == "finished" else "waiting" for training in trainings
        }
        self._failures: list[str] = []
        # Every signal reaches a training as a Ctrl-C: it finishes its step and writes a checkpoint.
        self._supervisor = Supervisor(poll_s=POLL_S, patience_s=GRACE_S, end=signal.SIGINT, pass_on=signal.SIGINT)

    def run(self, processes: int) -> None:
        waiting = [training for training in self._trainings if training.state != "finished"]
        with self._supervisor as supervisor:
            while waiting or self._running:
                if self._failures or supervisor.signals:
                    self._states |= dict.fromkeys(waiting, "stopped")
                    waiting.clear()
                while waiting and len(self._running) < processes:
                    self._start(waiting.pop(0))
                supervisor.poll()
                self._collect()
                self._display.show([self._progress(training) for training in self._trainings])
            self._display.show([self._progress(training) for training in self._trainings])
        if supervisor.signals:
            raise Interrupted("\n".join(self._failures))
        if self._failures:
            raise RunError("\n".join(self._failures))

    def _start(self, training: Training) -> None:
        log_path = training.run / CONSOLE_LOG if training.state == "unfinished" else training.early_log
        log_path.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(self._threads), "PYTHONUNBUFFERED": "1"}
        with log_path.open("ab") as log:
            self._running[training] = self._supervisor.start(self._command(training), environment, log)
        self._states[training] = "running"

    def _collect(self) -> None:
        for training, process in list(self._running.items()):
            if training.early_log.exists() and (training.run / "config.json").is_file():
                # The open file goes on under its new name.
                training.early_log.replace(training.run / CONSOLE_LOG)
            if process not in self._supervisor.ended:
                if self._supervisor.signals:
                    self._states[training] = "stopping"
                continue
            status = process.returncode
            del self._running[training]
            reached = (last_metrics(training.run) or {}).get("step", 0)
            if reached >= training.steps and status == 0:
                self._states[training] = "finished"
            elif self._supervisor.signals and status in STOPPED_STATUS:
                self._states[training] = "stopped"
            else:
                self._states[training] = "failed"
                self._failures.append(_failure(training, status, reached))

    def _progress(self, training: Training) -> Progress:
        row = last_metrics(training.run) or {}
        return Progress(
            training,
            self._states[training],
            row.get("step", 0),
            row.get("response_length/mean"),
            row.get("reward/accuracy/mean"),
        )


def state_of(
    run: Path, wanted: Configuration, set_by: Mapping[str, str] | None = None
) -> Literal["fresh", "unfinished", "finished"]:
    """What a run folder says of itself; UsageError where it holds something else than the `wanted` configuration.

    `set_by`: keys that a command sets by an option of its own, which the refusal then names.
    """
    if not (run / "config.json").is_file():
        if any(run.iterdir()) if run.is_dir() else run.exists():
            raise UsageError(f"{run} exists and is not a run folder; move it away or choose another --out.")
        return "fresh"
    from luspo_cli.runs.folder import RunFolder, other_settings, unused_settings

    found = require_object(run / "config.json", f"move {run} away and repeat the command")
    options = {key: f", which {option} sets" for key, option in (set_by or {}).items()}
    different = [
        f"{key}{options.get(key, '')} ({was!r} there, {now!r} now)" for key, was, now in other_settings(found, wanted)
    ]
    if different:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise UsageError(
            f"{run} was trained with another configuration: {', '.join(different[:3])}{more};"
            " move the folder away or choose another --out."
        )
    if not _is_finished(run, int(wanted["run"]["steps"]), wanted["run"].get("checkpoint_last", True)):
        return "unfinished"
    if unused := unused_settings(RunFolder(run).new_settings(wanted)):
        logger.warning(f"{run}: {unused}")
    return "finished"


def _is_finished(run: Path, steps: int, checkpoint_last: bool) -> bool:
    """Whether the last step is recorded and its checkpoint there, if it has one: a killed process may have written one line.

    A checkpoint gets its name when it is whole. That its bytes still are is not asked here: of a large model that takes minutes.
    """
    if (last_metrics(run) or {}).get("step", 0) < steps:
        return False
    if not checkpoint_last:
        return True
    from luspo_cli.runs.checkpoints import find_checkpoints

    return any(found.step == steps for found in find_checkpoints(run / "checkpoints"))


def _failure(training: Training, status: int, reached: int) -> str:
    if status < 0:
        how = killed_by(status)
    elif status:
        how = f"failed with exit code {status}"
    else:
        how = f"ended at step {reached} of {training.steps} without an error"
    log = training.early_log if training.early_log.exists() else training.run / CONSOLE_LOG
    tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-TAIL_LINES:]
    quoted = "".join(f"\n  | {line}" for line in tail) or "\n  (its log is empty)"
    return (
        f"{training.run} {how}; the end of {log}:{quoted}\n"
        "Mend the cause and repeat the command: finished runs are used again, unfinished ones go on."
    )
