"""What a run trains on and is checked with: its problems, without those whose prompts are too long or stand for pixels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luspo_cli.config.run import MADE_TASKS, TrainRun
from luspo_cli.data.batches import BatchSource, ProblemBatches
from luspo_cli.data.overlap import held_out_warning
from luspo_cli.data.problems import load_problems
from luspo_cli.errors import UsageError
from luspo_cli.records import Problem
from luspo_cli.training.made.task import MadeBatches, made_held_out
from luspo_cli.training.made.tasks import TASKS

if TYPE_CHECKING:  # the dry run reads problems without torch
    from luspo_cli.policy.loading import LoadedModel
    from luspo_cli.rewards.rubric import Rubric

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LongestPrompt:
    """The longest of some prompts, in tokens, and whose it is."""

    tokens: int
    problem_id: str


@dataclass(frozen=True, slots=True)
class RunProblems:
    """The training batches and the held-out slice of one run."""

    source: BatchSource
    held_out: list[Problem]
    blind: list[Problem]
    """The held-out slice with the images of `evaluation.blind`; empty without."""
    from_file: list[Problem]
    """Training problems from a file, empty for made ones: their golds are checked before the first step."""
    some_bare: bool
    """Whether one of the training problems has no image."""
    longest: LongestPrompt | None
    """Among the training problems."""
    longest_held_out: LongestPrompt | None
    """With its images or blind."""

    @property
    def some_images(self) -> bool:
        """Whether one of the training problems has an image."""
        return any(problem.images for problem in self.from_file or self.source.batch(0))

    def check_golds(self, rubric: Rubric) -> None:
        """UsageError for an own reward that cannot be called, and a gold answer that cannot be read: it would score all wrong."""
        rubric.check_functions([*(self.from_file or self.source.batch(0)), *self.held_out])
        bad = rubric.check_golds([*self.from_file, *self.held_out])
        if bad:
            raise UsageError(
                f"{len(bad)} gold answers cannot be read (first: problem '{bad[0]}'); run the data through luspo prepare-data,"
                " which filters such rows, or let a function of your own judge with reward.verifier = 'function'"
            )


def problems_of(config: TrainRun, loaded: LoadedModel, found: Sequence[Problem] | None = None) -> RunProblems:
    """Read or make the problems of a run; `found`: its training problems, where they were read before.

    UsageError where there are none, too few, or none that fits.
    """
    from luspo_cli.policy.inputs import fitting

    data, seed = config.data, config.run.seed
    found = training_problems(config) if found is None else found
    held_out = held_out_problems(config)
    blind = _blind(config, held_out)
    shown = [*held_out, *blind]
    longest_held_out = longest_prompt(shown, [loaded.prompt_length(problem) for problem in shown])
    if data.train in MADE_TASKS:
        made = MadeBatches(TASKS[data.train], data.profile, config.rollout.problems, seed)
        first = made.batch(0)  # they differ by a few tokens
        longest = longest_prompt(first, [loaded.prompt_length(problem) for problem in first])
        return RunProblems(made, held_out, blind, [], _some_bare(first), longest, longest_held_out)
    spelling = {problem.id: token for problem in found if (token := loaded.placeholder_in(problem)) is not None}
    if spelling:
        named, token = next(iter(spelling.items()))
        logger.warning(
            f"{len(spelling)} of {len(found)} problems have text with a token that stands for pixels (first: {token} in problem"
            f" '{named}'): left out"
        )
    plain = [problem for problem in found if problem.id not in spelling]
    problems, lengths = fitting(plain, loaded.prompt_length, data.max_prompt_tokens)
    if too_long := len(plain) - len(problems):
        logger.info(f"{too_long} of {len(found)} problems have prompts over {data.max_prompt_tokens} tokens: left out")
    if not problems:
        without = ", and no token that stands for pixels in its text" if spelling else ""
        raise UsageError(
            f"no problem of {data.train} has a prompt within data.max_prompt_tokens={data.max_prompt_tokens}{without}"
        )
    if warning := held_out_warning(problems, held_out, data.train, data.held_out):
        logger.warning(warning)
    source = ProblemBatches(problems, config.rollout.problems, seed, data.shuffle)
    longest = longest_prompt(problems, lengths)
    return RunProblems(source, held_out, blind, problems, _some_bare(problems), longest, longest_held_out)


def _some_bare(problems: Sequence[Problem]) -> bool:
    return not all(problem.images for problem in problems)


def longest_prompt(problems: Sequence[Problem], lengths: Sequence[int]) -> LongestPrompt | None:
    """The longest of the problems' prompts, which have these lengths; None of no problems."""
    longest = max(zip(lengths, problems, strict=True), key=lambda pair: pair[0], default=None)
    return None if longest is None else LongestPrompt(longest[0], longest[1].id)


def refuse_other_engine(config: TrainRun) -> None:
    """UsageError for a run that only verl can train."""
    if config.verl.required:
        raise UsageError(
            f"model.path = '{config.model.path}' does not fit our own engine: train it with --engine verl (docs/verl.md)"
        )


def training_problems(config: TrainRun) -> list[Problem]:
    """The problems of `data.train`, those with long prompts too; none where they are made. UsageError where there are none."""
    if not config.data.train:
        raise UsageError("data.train is empty; set it to a file or folder from `luspo prepare-data`")
    return [] if config.data.train in MADE_TASKS else _load("data.train", config.data.train, "train")


def held_out_problems(config: TrainRun) -> list[Problem]:
    """The slice that the run is checked with, none where it is not. UsageError where there are too few."""
    number = config.evaluation.problems
    if not config.evaluation.every:
        return []
    if config.data.held_out in MADE_TASKS:
        return made_held_out(TASKS[config.data.held_out], config.data.profile, number, config.run.seed)
    problems = _load("data.held_out", config.data.held_out, "test")
    if len(problems) < number:
        raise UsageError(
            f"data.held_out: {config.data.held_out} has {len(problems)} problems, fewer than evaluation.problems={number}"
        )
    return problems[:number]


def readable_problems(config: TrainRun) -> tuple[list[Problem], list[Problem], list[str]]:
    """Training and held-out problems, none where they cannot be read, and why not, one sentence each."""
    read: list[list[Problem]] = []
    reasons: list[str] = []
    for problems in (training_problems, held_out_problems):
        try:
            read.append(problems(config))
        except UsageError as error:
            reasons.append(str(error))
            read.append([])
    training, held_out = read
    return training, held_out, reasons


def own_rewards(config: TrainRun) -> tuple[list[dict[str, Any]], str | None]:
    """The own reward functions as they were found, imported in a worker, and why one cannot be used."""
    from luspo_cli.rewards.functions import RewardFunctions

    functions = RewardFunctions(config.reward)
    try:
        found = functions.described
        with suppress(UsageError):  # that the data cannot be read is said already
            problems = [*training_problems(config), *held_out_problems(config)]
            reason = functions.unmet(problems) if problems else None
            if reason:
                return [], reason
    except UsageError as error:
        return [], str(error)
    return [
        {"name": one.name, "weight": one.weight, "function": one.function, "signature": own.signature.text,
         "called": own.signature.called, "sha256": own.sha256}
        for one, own in zip(config.reward.function, found, strict=True)
    ], None  # fmt: skip


def own_objective(config: TrainRun) -> tuple[str | None, str | None]:
    """Why an objective of one's own could not train, and what a run with it is warned of; a built-in one is not looked at."""
    if not config.objective.own_parts:
        return None, None
    from luspo_cli.training.objective_check import own_objective_faults

    return own_objective_faults(config)


def _blind(config: TrainRun, held_out: Sequence[Problem]) -> list[Problem]:
    """The held-out slice as `evaluation.blind` shows it; UsageError where no problem has an image."""
    how = config.evaluation.blind
    if how == "none":
        return []
    if not any(problem.images for problem in held_out):
        raise UsageError(
            f"evaluation.blind = '{how}' replaces images, and no held-out problem of {config.data.held_out} has one: leave it out"
        )
    from luspo_cli.data.blind import blinded

    return blinded(held_out, how, config.run.seed)


def _load(key: str, path: str, split: str) -> list[Problem]:
    try:
        return load_problems(path, split=split)
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from error
