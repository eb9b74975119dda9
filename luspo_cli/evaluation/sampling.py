"""The model of an evaluation: weights for inference only, behind the engine's sampler, and a benchmark's prompts for it.

The compute type changes what is sampled, so it is resolved here and stored with the result. `auto` is the type that the
run was trained in; for a model from elsewhere bfloat16, the type that models are published in, where this machine
computes it in hardware, else float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luspo_cli.config.model import ModelConfig
from luspo_cli.config.rollout import TemplateValue
from luspo_cli.errors import UsageError
from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem
from luspo_cli.evaluation.image_prompts import ImagePrompts, asked_problem, benchmark_prompt
from luspo_cli.policy.inputs import lost_fraction
from luspo_cli.records import Prompt
from luspo_cli.rollout.sampler import Sampler

Dtype = Literal["float32", "bfloat16"]
VLLM_PROMPT_TOKENS = 4096
"""Room for the prompt in vLLM's rows; a longer one is refused before anything is drawn."""
VLLM_MEMORY_SHARE = 0.85
"""Of the GPU's memory: nothing trains beside an evaluation."""


@dataclass(frozen=True, slots=True)
class SamplingModel:
    """What generation needs of a model."""

    sampler: Sampler
    tokenizer: Any
    context: int | None
    """Positions that the model was made for, prompt and response together; None: unknown."""
    processor: Any | None = None
    """Of a vision-language model."""
    template_arguments: Mapping[str, TemplateValue] = field(default_factory=dict)
    """For the chat template, beside the turns."""


def choose_dtype(asked: str, trained_in: str | None) -> Dtype:
    """Return the compute type for `asked` (`auto`, `float32` or `bfloat16`); raises UsageError for another."""
    if asked in ("float32", "bfloat16"):
        return asked  # type: ignore[return-value]
    if asked != "auto":
        raise UsageError(f"--dtype must be auto, float32 or bfloat16, not '{asked}'.")
    if trained_in in ("float32", "bfloat16"):
        return trained_in  # type: ignore[return-value]
    import torch

    from luspo_cli.rollout.in_process.packed import can_pack

    if torch.cuda.is_available() or can_pack(torch.zeros(1, dtype=torch.bfloat16)):
        return "bfloat16"
    return "float32"


def load_sampling_model(
    path: str,
    dtype: Dtype,
    max_rows: int,
    revision: str = "main",
    trust_remote_code: bool = False,
    *,
    sampler_name: str = "in-process",
    max_response_tokens: int = 0,
    template_arguments: Mapping[str, TemplateValue] | None = None,
) -> SamplingModel:
    """Load a folder or hub id behind `in-process` or `vllm`; raises UsageError where it is no model that we can read.

    `template_arguments` are for the chat template: `rollout.chat_template` of the run.
    """
    import torch
    from transformers.utils import logging

    from luspo_cli.policy.loading import context_of, load_model
    from luspo_cli.rollout.in_process.packed import bfloat16_copy
    from luspo_cli.rollout.in_process.sampler import InProcessSampler

    logging.disable_progress_bar()  # of reading weights: it would break into our own
    config = ModelConfig(path=path, compute_dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
    try:
        if sampler_name == "vllm":
            return _load_vllm(config, max_rows, max_response_tokens, template_arguments)
        loaded = load_model(config, template_arguments)
    except UsageError as error:
        if trust_remote_code or "trust_remote_code" not in str(error.__cause__):
            raise
        raise UsageError(
            f"'{path}' comes with Python code of its own, which is not run unasked; read it, then add --trust-remote-code."
        ) from None
    model = loaded.model.requires_grad_(False).eval()
    if torch.cuda.is_available():
        for weight in model.parameters():  # not the whole module: that would round the rotary frequencies as well
            weight.data = weight.data.to(getattr(torch, dtype))
        model = model.to("cuda")
    elif dtype == "bfloat16":
        model = bfloat16_copy(model)
    sampler = InProcessSampler(model, loaded.tokenizer, loaded.end_tokens, max_rows)
    context = context_of(loaded.model.config)
    return SamplingModel(sampler, loaded.tokenizer, context, loaded.processor, loaded.template_arguments)


def _load_vllm(
    config: ModelConfig,
    max_rows: int,
    max_response_tokens: int,
    template_arguments: Mapping[str, TemplateValue] | None,
) -> SamplingModel:
    """vLLM reads the weights itself; rows are bounded, since its cache must hold one of the longest at least."""
    from luspo_cli.policy.loading import context_of, load_without_weights
    from luspo_cli.rollout.vllm.engine import EngineSettings, VllmSampler

    loaded = load_without_weights(config, template_arguments)
    longest = max_response_tokens + VLLM_PROMPT_TOKENS
    longest = min(longest, context_of(loaded.model) or longest)
    settings = EngineSettings(
        str(Path(config.path).expanduser()) if Path(config.path).expanduser().is_dir() else config.path,
        config.compute_dtype,
        longest,
        max_rows,
        temperature=1.0,
        memory_share=VLLM_MEMORY_SHARE,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        load_weights_of_folder=True,
    )
    sampler = VllmSampler(settings, loaded.tokenizer, loaded.end_tokens)
    return SamplingModel(sampler, loaded.tokenizer, longest, None, loaded.template_arguments)


def benchmark_prompts(
    model: SamplingModel,
    benchmark: Benchmark,
    problems: Sequence[BenchmarkProblem],
    variant: str | None,
    max_response_tokens: int,
    folder: Path | None = None,
) -> tuple[Sequence[Prompt], str | None]:
    """Return one prompt a problem, and a warning where the tokenizer cannot spell them.

    `folder` holds the images of a vision benchmark, whose prompts are made when they are asked for.

    Raises:
        UsageError: a prompt and the response limit do not fit into the model's context.
    """
    prompts: Sequence[Prompt]
    arguments = model.template_arguments
    if model.processor is not None and folder is not None:
        prompts = ImagePrompts(benchmark, problems, variant, model.tokenizer, model.processor, folder, arguments)
        lengths = prompts.lengths()
    else:
        prompts = [
            benchmark_prompt(benchmark, problem, variant, model.tokenizer, template_arguments=arguments)
            for problem in problems
        ]
        lengths = [len(prompt.tokens) for prompt in prompts]
    longest = max(lengths)
    if model.context is not None and longest + max_response_tokens > model.context:
        room = model.context - longest
        advice = f"lower --max-response-tokens to {room} or less" if room > 0 else "take a model with a longer context"
        raise UsageError(
            f"The prompt of {benchmark.name} '{problems[lengths.index(longest)].id}' has {longest} tokens and the model's"
            f" context {model.context}, so {max_response_tokens} response tokens do not fit; {advice}."
        )
    lost = lost_fraction([asked_problem(benchmark, problem, variant, folder) for problem in problems], model.tokenizer)
    if not lost:
        return prompts, None
    # Of so few characters nothing to read is left: the model was made for another text than this benchmark's.
    advice = "; it was made for other text, and the result says little of the model" if lost > 0.5 else ""
    return prompts, f"the tokenizer loses {lost:.1%} of the characters of the prompts of {benchmark.name}{advice}"
