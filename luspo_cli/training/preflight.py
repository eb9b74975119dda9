"""What can be known to fail before the run folder is touched: an old run is replaced only by one that could start.

Nothing is loaded, started or changed here; what an engine says when it starts comes later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luspo_cli.config.run import TrainRun
from luspo_cli.errors import UsageError
from luspo_cli.policy.loading import LoadedModel, context_of
from luspo_cli.processes.accelerate import refuse_foreign_wrapping
from luspo_cli.processes.sharding import refuse_trained_tower
from luspo_cli.records import Problem
from luspo_cli.rollout.samplers import check_sampler, choose_sampler
from luspo_cli.training.sampling import held_out_limit, longest_row, training_draws


@dataclass(frozen=True, slots=True)
class LongestPrompt:
    """The longest of some prompts, in tokens, and whose it is."""

    tokens: int
    problem_id: str


def longest_prompt(problems: Sequence[Problem], lengths: Sequence[int]) -> LongestPrompt | None:
    """The longest of the problems' prompts, which have these lengths; None of no problems."""
    longest = max(zip(lengths, problems, strict=True), key=lambda pair: pair[0], default=None)
    return None if longest is None else LongestPrompt(longest[0], longest[1].id)


def check_stages(
    config: TrainRun,
    loaded: LoadedModel,
    training: LongestPrompt | None,
    held_out: LongestPrompt | None,
    processes: int,
) -> None:
    """UsageError where the stages could not be built or could not sample every prompt."""
    _check_context(config, context_of(loaded.model.config), training, held_out)
    refuse_foreign_wrapping()
    if processes > 1 and config.model.sharding == "full" and not config.model.freeze_vision:
        refuse_trained_tower(loaded.model)
    check_sampler(
        choose_sampler(config.rollout.sampler, reads_images=loaded.processor is not None),
        longest=longest_row(config, loaded.model, held_out.tokens if held_out else 0),
        draws=training_draws(config),
        vllm=config.rollout.vllm,
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
