"""Forks of one checkpoint: every variant in every replicate, each a run of its own that is started, resumed and used again.

Forks of one replicate share the problems and rollouts of their first step and the parent's held-out draws. The first variant
draws them; its siblings start when it has stored them and are handed copies, so a fork's folder needs no other one. Later steps
share problems and seeds, which follow from `run.seed` alone. Replicates differ in that seed; the first goes on with the parent's.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from luspo_cli.config.fork import ForkConfig
from luspo_cli.config.forking import Variant, fork_configuration
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import UsageError
from luspo_cli.experiments.sweep import Display, Training, missing_of, side_by_side, state_of, train_missing
from luspo_cli.files import replacing_folder, said_in_one_sentence, write_json
from luspo_cli.runs.checkpoints import Checkpoint, damage, find_checkpoints, manifest_sha256
from luspo_cli.runs.draws import FIRST_STEP, HELD_OUT
from luspo_cli.runs.resume import read_configuration
from luspo_cli.runs.rollouts import step_file

STORED_FIRST_STEP = step_file(Path("rollouts"), 1)


def train_forks(
    run: Path,
    step: int,
    variants: Sequence[Variant],
    replicates: int,
    folder: Path,
    *,
    steps: int,
    sets: Sequence[str],
    preset: str | None,
    processes: int | None,
    display: AbstractContextManager[Display],
) -> dict[str, list[Path]]:
    """Train what is missing below `folder`; the run folders of each variant by its name, in the order of the replicates.

    `processes`: trainings side by side; None: two, and one where there is a CUDA device. UsageError, one sentence, for what
    cannot be forked; Interrupted where a signal ended it.
    """
    parent, fork = _parent(run, step)
    for place in (folder.absolute(), *folder.absolute().parents):
        if (place / "config.json").is_file():
            raise UsageError(f"--out {folder}: {place} is the folder of a run; name another one for the forks")
    configurations = {
        folder / f"{variant.folder}-replicate{replicate}": fork_configuration(
            parent, fork, variant, replicate, steps, sets=sets, preset=preset
        )
        for replicate in range(replicates)
        for variant in variants
    }
    trainings = _plan(configurations)
    missing = missing_of(trainings, folder)
    if missing:
        number = side_by_side(processes, len(missing), configurations[missing[0].run])
        command = _command(configurations, trainings)
        leaders = [training for training in missing if _leads(training, trainings)]
        with display as shown:
            for wave in (leaders, missing):
                states = {training.run: training for training in _plan(configurations)}
                if wave:
                    train_missing([states[one.run] for one in wave], command, processes=number, display=shown)
    runs = list(configurations)
    return {variant.name: runs[place :: len(variants)] for place, variant in enumerate(variants)}


def _parent(run: Path, step: int) -> tuple[TrainRun, ForkConfig]:
    """The run's configuration, and where every fork of its checkpoint of `step` begins."""
    if not (run / "config.json").is_file():
        raise UsageError(f"{run} is no run folder: it has no config.json; name one, for example runs/tiny/luspo-seed0")
    parent, checkpoint = read_configuration(run), _checkpoint(run, step)
    fork = ForkConfig(
        checkpoint=str(checkpoint.path.resolve()),
        sha256=manifest_sha256(checkpoint.path),
        step=parent.fork.step + step,
        schedule_steps=parent.fork.schedule_steps or parent.run.steps,
    )
    return parent, fork


def _checkpoint(run: Path, step: int) -> Checkpoint:
    found = find_checkpoints(run / "checkpoints")
    checkpoint = next((one for one in found if one.step == step), None)
    if checkpoint is None:
        there = ", ".join(str(one.step) for one in found)
        have = f"there are those of step {there}" if found else "there is none"
        raise UsageError(
            f"{run} has no checkpoint of step {step}: {have} (run.checkpoint_every and run.keep_checkpoints say which a run"
            " keeps)"
        )
    if reason := damage(checkpoint):
        raise UsageError(f"checkpoint {checkpoint.path} is damaged ({reason}); restore it, or fork from another step")
    return checkpoint


def _plan(configurations: Mapping[Path, TrainRun]) -> list[Training]:
    return [
        Training(
            config.objective.name,
            config.run.seed,
            run,
            config.run.steps,
            state_of(run, config.model_dump(mode="json"), dict.fromkeys(("evaluation.every", "run.steps"), "--steps")),
        )
        for run, config in configurations.items()
    ]


def _leads(training: Training, trainings: Sequence[Training]) -> bool:
    """Whether it is the one of its replicate that draws what all of them share."""
    siblings = [one for one in trainings if one.seed == training.seed]
    return training is siblings[0] and not any(_has_drawn(one.run) for one in siblings)


def _has_drawn(run: Path) -> bool:
    return (run / STORED_FIRST_STEP).is_file() and (run / HELD_OUT).is_file()


def _command(
    configurations: Mapping[Path, TrainRun], trainings: Sequence[Training]
) -> Callable[[Training], Sequence[str]]:
    """What starts a fork in its folder, which then holds its configuration and what its siblings have drawn."""

    def begin(training: Training) -> list[str]:
        run = training.run
        donors = [one.run for one in trainings if one.seed == training.seed and one.run != run and _has_drawn(one.run)]
        if training.state == "fresh":
            write_json(run / "config.json", configurations[run].model_dump(mode="json"))
        if donors and not (run / FIRST_STEP).exists() and not _has_drawn(run):
            with said_in_one_sentence(run / FIRST_STEP.parent), replacing_folder(run / FIRST_STEP.parent) as start:
                shutil.copy(donors[0] / STORED_FIRST_STEP, start / FIRST_STEP.name)
                shutil.copy(donors[0] / HELD_OUT, start / HELD_OUT.name)
        return [sys.executable, "-m", "luspo_cli", "train", "--run", str(run), "--resume"]

    return begin
