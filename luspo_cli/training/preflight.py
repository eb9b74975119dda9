"""Before the run folder is touched: load the model and the data, and refuse what could not start.

An old run is replaced only by one that could start. What an engine says when it starts comes later.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luspo_cli.config.run import MADE, TrainRun
from luspo_cli.errors import UsageError
from luspo_cli.policy import attention
from luspo_cli.policy.loading import LoadedModel, context_of, no_progress_bars
from luspo_cli.policy.model_files import slow_passes, unread_revision
from luspo_cli.processes.accelerate import refuse_foreign_wrapping, set_threads
from luspo_cli.processes.ranks import Ranks
from luspo_cli.processes.sharding import is_sharded, refuse_trained_tower
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.rollout.samplers import check_sampler, choose_sampler
from luspo_cli.runs.checkpoints import Checkpoint, fork_checkpoint
from luspo_cli.runs.folder import IfExists, RunFolder
from luspo_cli.runs.tracking import check_writers
from luspo_cli.training.objective_check import check_update
from luspo_cli.training.problems import LongestPrompt, RunProblems, problems_of, refuse_other_engine, training_problems
from luspo_cli.training.provenance import (
    Change,
    changed_inputs,
    configuration_fingerprint,
    input_elsewhere,
    provenance,
    refuse_changed,
)
from luspo_cli.training.sampling import held_out_limit, longest_row, training_draws
from luspo_cli.training.start import load_start, starting_folder

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Prepared:
    """A run that could start."""

    config: TrainRun
    loaded: LoadedModel
    """What the run trains; after a resume the checkpoint's weights take the place of those it began with."""
    problems: RunProblems
    parent: Checkpoint | None = None
    """What a fork begins at."""
    origin: dict[str, Any] = field(default_factory=dict)
    """What provenance.json will say; on the first process, as the next."""
    changes: list[Change] = field(default_factory=list)
    """What is not as it was when the run began, and was allowed."""
    new_settings: list[tuple[str, Any, Any]] = field(default_factory=list)
    """Keys that a resumed run takes over, with their value in its config.json and the one from now on."""


def prepare(
    config: TrainRun, path: Path, if_exists: IfExists, rubric: Rubric, ranks: Ranks, allow_changed: bool = False
) -> Prepared:
    """Load the model and the data and check what can be checked; UsageError where the run could not start. Writes nothing."""
    goes_on, starting, parent = False, None, None
    refuse_other_engine(config)
    with ranks.phase():  # what is known before minutes of loading or warming up
        check_update(config, ranks.is_first)
        if ranks.is_first:
            check_writers(config.run.track)
            goes_on = RunFolder(path).check(config.model_dump(mode="json"), if_exists) and if_exists == "resume"
            # A run of an older version may hold a revision that nothing read, and must resume.
            if goes_on:
                reason = input_elsewhere(path / "provenance.json", config)
            else:
                reason = unread_revision(config.model.path, config.model.revision)
            if reason:
                raise UsageError(reason)
            parent = fork_checkpoint(config.fork)
    parent = ranks.broadcast(parent)
    set_threads(config.run.threads, ranks)
    if ranks.is_first and (warning := slow_passes(config.model)):
        logger.warning(warning)
    attention.register()
    no_progress_bars()  # a made model is saved before one is loaded
    with ranks.phase():
        # Read once: such a model is warmed up on them too.
        found = training_problems(config) if config.model.path == MADE else None
        if ranks.is_first:
            starting = starting_folder(config, found or [], parent)
    with ranks.phase():
        # The others find it in the cache, or make the same one where they are on another machine.
        if not ranks.is_first:
            starting = starting_folder(config, found or [], parent)
        loaded = load_start(config, starting, parent, ranks)
        problems = problems_of(config, loaded, found)
        check_stages(config, loaded, problems.longest, problems.longest_held_out, ranks)
        if reason := config.lag_refused(has_images=problems.some_images):
            raise UsageError(reason)
        prepared = Prepared(config, loaded, problems, parent)
        if ranks.is_first:
            origin, changes, new = _origin(config, path, starting, ranks, goes_on, allow_changed)
            prepared.origin, prepared.changes, prepared.new_settings = origin, changes, new
            problems.check_golds(rubric)
    return prepared


def check_stages(
    config: TrainRun,
    loaded: LoadedModel,
    training: LongestPrompt | None,
    held_out: LongestPrompt | None,
    ranks: Ranks,
) -> None:
    """UsageError where the stages could not be built or could not sample every prompt."""
    _check_context(config, context_of(loaded.model.config), training, held_out)
    refuse_foreign_wrapping()
    if is_sharded(config.model, ranks) and not config.model.freeze_vision:
        refuse_trained_tower(loaded.model)
    chosen = choose_sampler(config.rollout.sampler)
    if reason := config.correction_refused(chosen.name, never_drawn=bool(loaded.never_drawn)):
        raise UsageError(reason)
    if reason := config.graph_refused(chosen.name):
        raise UsageError(reason)
    if reason := config.routing_refused(chosen.name, has_experts=loaded.has_experts):
        raise UsageError(reason)
    check_sampler(
        chosen,
        longest=longest_row(config, loaded.model, held_out.tokens if held_out else 0),
        draws=training_draws(config),
        vllm=config.rollout.vllm,
        never_drawn=loaded.never_drawn,
        ranks=ranks,
    )


def _check_context(
    config: TrainRun, context: int | None, training: LongestPrompt | None, held_out: LongestPrompt | None
) -> None:
    """UsageError where a prompt and its response limit do not fit; a response would run into positions never trained."""
    for kind, prompt, limit, key in (
        ("training", training, config.rollout.max_response_tokens, "rollout.max_response_tokens"),
        ("held-out", held_out, held_out_limit(config), "evaluation.max_response_tokens"),
    ):
        if context is None or prompt is None or prompt.tokens + limit <= context:
            continue
        room = context - prompt.tokens
        advice = f"set {key} to {room} or less" if room > 0 else "take a model with a longer context"
        if kind == "training" and context > limit:
            advice += f", or data.max_prompt_tokens to {context - limit} or less"
        raise UsageError(
            f"the {kind} prompt of problem '{prompt.problem_id}' has {prompt.tokens} tokens and the model's context {context},"
            f" so {limit} response tokens do not fit: {advice}"
        )


def _origin(
    config: TrainRun, path: Path, starting: Path | None, ranks: Ranks, goes_on: bool, allow_changed: bool
) -> tuple[dict[str, Any], list[Change], list[tuple[str, Any, Any]]]:
    """What the run is made with, what of it is not as it was when the run began, and settings that it takes over.

    UsageError for a change, unless it is allowed.
    """
    origin, wanted, folder = provenance(config, starting, ranks), config.model_dump(mode="json"), RunFolder(path)
    began_with = folder.stored_config() if goes_on else None
    origin["configuration"] = configuration_fingerprint(began_with or wanted)
    if began_with is None:
        return origin, [], []
    changes = changed_inputs(path / "provenance.json", origin)
    if not allow_changed:
        refuse_changed(changes, path)
    new = folder.new_settings(wanted)
    if new:
        origin["configuration"] = configuration_fingerprint(wanted)
        origin["settings"] = {key: {"was": was, "now": now} for key, was, now in new}
    return origin, changes, new
