"""The model of an evaluation: weights for inference only, behind the engine's sampler, and a benchmark's prompts for it.

The compute type changes what is sampled, so it is resolved here and stored with the result. `auto` is the type that the
run was trained in; for a model from elsewhere bfloat16, the type that models are published in, where this machine
computes it in hardware, else float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from luspo_cli.errors import UsageError
from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem
from luspo_cli.policy.inputs import prompt_tokens
from luspo_cli.records import Problem
from luspo_cli.rollout.sampler import Prompt, Sampler

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class SamplingModel:
    """What generation needs of a model."""

    sampler: Sampler
    tokenizer: Any
    context: int | None
    """Positions that the model was made for, prompt and response together; None: unknown."""


def choose_dtype(asked: str, trained_in: str | None) -> Dtype:
    """Return the compute type for `asked` (`auto`, `float32` or `bfloat16`); raises UsageError for another."""
    if asked in ("float32", "bfloat16"):
        return asked  # type: ignore[return-value]
    if asked != "auto":
        raise UsageError(f"--dtype must be auto, float32 or bfloat16, not '{asked}'.")
    if trained_in in ("float32", "bfloat16"):
        return trained_in  # type: ignore[return-value]
    import torch

    from luspo_cli.rollout.packed_linear import can_pack

    if torch.cuda.is_available() or can_pack(torch.zeros(1, dtype=torch.bfloat16)):
        return "bfloat16"
    return "float32"


def load_sampling_model(path: str, dtype: Dtype, max_rows: int) -> SamplingModel:
    """Load a folder or hub id behind the in-process sampler; raises UsageError where it is no model that we can read."""
    import torch
    from transformers.utils import logging

    from luspo_cli.config.model import ModelConfig
    from luspo_cli.policy.loading import load_model
    from luspo_cli.rollout.in_process import InProcessSampler
    from luspo_cli.rollout.packed_linear import bfloat16_copy

    logging.disable_progress_bar()  # of reading weights: it would break into our own
    loaded = load_model(ModelConfig(path=path, compute_dtype=dtype))
    model = loaded.model.requires_grad_(False).eval()
    if torch.cuda.is_available():
        model = model.to(device="cuda", dtype=getattr(torch, dtype))
    elif dtype == "bfloat16":
        model = bfloat16_copy(model)
    context = getattr(loaded.model.config, "max_position_embeddings", None)
    sampler = InProcessSampler(model, loaded.tokenizer, loaded.end_tokens, max_rows)
    return SamplingModel(sampler, loaded.tokenizer, context if isinstance(context, int) else None)


def benchmark_prompts(
    model: SamplingModel,
    benchmark: Benchmark,
    problems: Sequence[BenchmarkProblem],
    variant: str | None,
    max_response_tokens: int,
) -> tuple[list[Prompt], str | None]:
    """Return one prompt a problem, and a warning where the tokenizer cannot spell them.

    Raises:
        UsageError: a prompt and the response limit do not fit into the model's context.
    """
    prompts = [_prompt(model, benchmark, problem, variant) for problem in problems]
    longest = max(prompts, key=lambda prompt: len(prompt.tokens))
    if model.context is not None and len(longest.tokens) + max_response_tokens > model.context:
        room = model.context - len(longest.tokens)
        advice = f"lower --max-response-tokens to {room} or less" if room > 0 else "take a model with a longer context"
        raise UsageError(
            f"The prompt of {benchmark.name} '{longest.problem_id}' has {len(longest.tokens)} tokens and the model's"
            f" context {model.context}, so {max_response_tokens} response tokens do not fit; {advice}."
        )
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    lost = 0 if unknown is None else sum(prompt.tokens.count(unknown) for prompt in prompts)
    if not lost:
        return prompts, None
    total = sum(len(prompt.tokens) for prompt in prompts)
    return prompts, f"the tokenizer does not know {lost:,} of the {total:,} prompt tokens of {benchmark.name}"


def _prompt(model: SamplingModel, benchmark: Benchmark, problem: BenchmarkProblem, variant: str | None) -> Prompt:
    """Tokens of one prompt; the pictures of a vision problem would become `Prompt.image_inputs` here."""
    turns = benchmark.prompt(problem, variant)
    asked = Problem(problem.id, turns, problem.gold, benchmark.name, images=problem.images)
    return Prompt(problem.id, prompt_tokens(asked, model.tokenizer))
