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
from luspo_cli.machine import multiplies_bfloat16
from luspo_cli.policy.inputs import lost_fraction, prompt_inputs, prompt_length
from luspo_cli.records import Problem
from luspo_cli.rollout.sampler import PromptsOnRequest, Sampler

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


def choose_dtype(asked: Literal["auto", "float32", "bfloat16"], trained_in: str | None) -> Dtype:
    """Return the compute type for `asked`; `trained_in` is that of the run's training, None for a model from elsewhere."""
    if asked != "auto":
        return asked
    if trained_in in ("float32", "bfloat16"):
        return trained_in  # type: ignore[return-value]
    import torch

    return "bfloat16" if torch.cuda.is_available() or multiplies_bfloat16() else "float32"


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
    from luspo_cli.rollout.in_process.agreement import require_agreement
    from luspo_cli.rollout.in_process.packed import sampling_model
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
    require_agreement(model, path)
    if torch.cuda.is_available():
        for weight in model.parameters():  # not the whole module: that would round the rotary frequencies as well
            weight.data = weight.data.to(getattr(torch, dtype))
        model = model.to("cuda")
    else:
        model = sampling_model(model, dtype)
    sampler = InProcessSampler(model, loaded.tokenizer, loaded.end_tokens, max_rows)
    context = context_of(loaded.model.config)
    return SamplingModel(sampler, loaded.tokenizer, context, loaded.processor, loaded.template_arguments)


def _load_vllm(
    config: ModelConfig, max_rows: int, max_response_tokens: int, template_arguments: Mapping[str, TemplateValue] | None
) -> SamplingModel:
    """vLLM reads the weights itself; rows are bounded, since its cache must hold one of the longest at least.

    An adapter is folded into its base here, and the result pushed, as in training.
    """
    from luspo_cli.policy.loading import context_of, load_model, load_without_weights
    from luspo_cli.policy.model_files import base_of
    from luspo_cli.rollout.vllm.engine import EngineSettings, VllmSampler

    base = base_of(config)
    loaded = (load_model if base else load_without_weights)(config, template_arguments)
    config = base or config
    longest = max_response_tokens + VLLM_PROMPT_TOKENS
    longest = min(longest, context_of(loaded.model.config if base else loaded.model) or longest)
    settings = EngineSettings(
        str(Path(config.path).expanduser()) if Path(config.path).expanduser().is_dir() else config.path,
        config.compute_dtype,
        longest,
        max_rows,
        temperature=1.0,
        memory_share=VLLM_MEMORY_SHARE,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        load_weights_of_folder=base is None,
        never_drawn=loaded.never_drawn,
        image_pixels=loaded.image_pixels,
    )
    sampler = VllmSampler(settings, loaded.tokenizer, loaded.end_tokens)
    if base:
        sampler.load_weights(loaded.model)
    return SamplingModel(sampler, loaded.tokenizer, longest, loaded.processor, loaded.template_arguments)


class BenchmarkPrompts(PromptsOnRequest[BenchmarkProblem]):
    """The prompts of a benchmark's problems for one model.

    Asking for one raises UsageError where the model reads text only, or an image or a mark is not as it should be.
    """

    def __init__(
        self,
        model: SamplingModel,
        benchmark: Benchmark,
        problems: Sequence[BenchmarkProblem],
        variant: str | None = None,
    ) -> None:
        self.model, self.benchmark, self.variant = model, benchmark, variant
        super().__init__(
            problems,
            lambda one: prompt_inputs(self.asked(one), model.tokenizer, model.processor, model.template_arguments),
        )

    def asked(self, problem: BenchmarkProblem) -> Problem:
        """The problem as a prompt is made from it: its turns in `variant`, its images."""
        turns = self.benchmark.prompt(problem, self.variant)
        return Problem(problem.id, turns, problem.gold, self.benchmark.name, problem.images)

    def lengths(self) -> list[int]:
        """The length of each prompt in tokens, without decoding an image; raises UsageError for an unusable problem."""
        model = self.model
        return [
            prompt_length(self.asked(problem), model.tokenizer, model.processor, model.template_arguments)
            for problem in self.problems
        ]

    def require_room(self, max_response_tokens: int) -> None:
        """UsageError where the longest prompt and the response limit do not fit into the model's context."""
        lengths = self.lengths()
        longest, context = max(lengths), self.model.context
        if context is None or longest + max_response_tokens <= context:
            return
        room = context - longest
        advice = f"lower --max-response-tokens to {room} or less" if room > 0 else "take a model with a longer context"
        raise UsageError(
            f"The prompt of {self.benchmark.name} '{self.problems[lengths.index(longest)].id}' has {longest} tokens and the"
            f" model's context {context}, so {max_response_tokens} response tokens do not fit; {advice}."
        )

    def lost_text(self) -> str | None:
        """What a user should know where the tokenizer cannot spell the prompts; None where it can."""
        lost = lost_fraction([self.asked(problem) for problem in self.problems], self.model.tokenizer)
        if not lost:
            return None
        # Of so few characters nothing to read is left: the model was made for another text than this benchmark's.
        advice = "; it was made for other text, and the result says little of the model" if lost > 0.5 else ""
        return f"the tokenizer loses {lost:.1%} of the characters of the prompts of {self.benchmark.name}{advice}"
