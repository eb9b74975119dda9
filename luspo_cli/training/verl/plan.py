"""A run in verl before it starts: its problems, its command, and what this machine sees missing. Touches nothing."""

from __future__ import annotations

from dataclasses import dataclass

from luspo_cli.config.objective_text import describe
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import UsageError
from luspo_cli.records import Problem
from luspo_cli.runs.tracking import writers_refused
from luspo_cli.training.problems import readable_problems
from luspo_cli.training.verl.data import opens_thought, write_problems
from luspo_cli.training.verl.overrides import VerlCommand, VerlFiles, verl_command
from luspo_cli.training.verl.preflight import faults_of


@dataclass(frozen=True, slots=True)
class VerlPlan:
    """What is known before verl is asked."""

    config: TrainRun
    files: VerlFiles
    command: VerlCommand
    problems: list[Problem]
    held_out: list[Problem]
    missing: tuple[str, ...]
    """What keeps the run from starting, one sentence each."""

    def notes(self) -> list[str]:
        """What a reader of the command wants to know before it, one line each."""
        text = describe(self.config.objective)
        parts = [(title, said) for title, said in text.lines() if title not in ("TRL", "verl")]
        lines = [f"objective {text.name}", *(f"  {title:<12} {said}" for title, said in parts)]
        return [*lines, *(f"missing: {sentence}" for sentence in self.missing)]

    def write_data(self) -> None:
        """Write the problems where the command names them."""
        write_problems(self.files.train, self.problems, "train", self.config.data)
        if self.held_out:
            write_problems(self.files.held_out, self.held_out, "test", self.config.data)


def plan_verl(config: TrainRun, files: VerlFiles, name: str, ray_address: str = "", after_step: int = 0) -> VerlPlan:
    """Read the problems and make the command; UsageError for a setting that verl cannot be given."""
    training, held_out, missing = readable_problems(config)
    command = verl_command(
        config,
        files,
        name=name,
        problems=len(training) or config.rollout.problems,
        thought_open=opens_thought(config, training),
        after_step=after_step,
        ray_address=ray_address,
    )
    missing += filter(None, [writers_refused(config.run.track)])
    missing += faults_of(config, len(training) if training else config.rollout.problems, ray_address)
    return VerlPlan(config, files, command, training, held_out, tuple(missing))


def first_missing(plan: VerlPlan) -> None:
    """UsageError for the first thing that is missing."""
    if plan.missing:
        more = f" ({len(plan.missing) - 1} more after this)" if len(plan.missing) > 1 else ""
        raise UsageError(f"{plan.missing[0]}{more}")
