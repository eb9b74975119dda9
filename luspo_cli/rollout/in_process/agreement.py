"""Whether a model's log-probs through the policy and the sampler are those of plain transformers, measured on a few tokens.

The model types of `supported.MEASURED` were measured once, on random models (docs/models.md). A model of another type is
measured with its own weights before it is used: what a type does to its scores or logits under a name that nobody knows here
would give wrong numbers without any error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from luspo_cli.errors import UsageError
from luspo_cli.policy.packing import Row, policy_batch
from luspo_cli.policy.policy import Policy
from luspo_cli.policy.supported import is_measured
from luspo_cli.records import Prompt, Rollout
from luspo_cli.rollout.in_process.sampler import InProcessSampler
from luspo_cli.rollout.sampler import SamplingOptions

PROMPTS, RESPONSE, GROUP = (9, 4, 6), 10, 2
"""Tokens of the prompts and of a response, and responses to a prompt: rows of several lengths that share prompts."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Mean absolute difference of a log-prob (nats) that is rounding, by the type that the weights are held in."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Absolute differences from transformers' log-probs, in nats: the largest and the mean."""

    policy: float
    policy_mean: float
    sampler: float
    sampler_mean: float
    tokens: int


class _NoTexts:
    def batch_decode(self, rows: list[list[int]], **_: Any) -> list[str]:
        return [""] * len(rows)


@torch.no_grad()
def measure(model: Any) -> Agreement:
    """Draw a few responses to random prompts and compare their log-probs; the model is left as it was."""
    vocabulary = model.lm_head.weight.shape[0]
    drawn = torch.randint(vocabulary, (sum(PROMPTS),), generator=torch.Generator().manual_seed(0)).split(PROMPTS)
    prompts = [Prompt(str(number), tuple(tokens.tolist())) for number, tokens in enumerate(drawn)]
    sampler = InProcessSampler(model, _NoTexts(), (vocabulary,), GROUP * len(prompts))
    options = SamplingOptions(group_size=GROUP, max_response_tokens=RESPONSE)
    rows = [rollout for group in sampler.sample_groups(prompts, options) for rollout in group]
    device = next(model.parameters()).device
    found = Policy(model, 1.0)(policy_batch([Row(rollout, 1.0) for rollout in rows], device=device))[0].cpu()
    plain = _plain_logprobs(model, rows)
    sampled = torch.tensor([rollout.rollout_logprobs for rollout in rows])
    policy, sampler_difference = (found - plain).abs(), (sampled - plain).abs()
    return Agreement(
        float(policy.max()),
        float(policy.mean()),
        float(sampler_difference.max()),
        float(sampler_difference.mean()),
        plain.numel(),
    )


def require_agreement(model: Any, path: str) -> None:
    """UsageError where a model of a type that was not measured gives other log-probs here than in plain transformers."""
    kind = model.config.model_type
    if is_measured(kind):
        return
    try:
        found = measure(model)
    except Exception as error:
        raise UsageError(
            f"model '{path}' is of type {kind}, which was not measured, and a few tokens of it cannot be computed here"
            f" ({type(error).__name__}); choose a model of a type in docs/models.md"
        ) from error
    worst = max(found.policy_mean, found.sampler_mean)
    if not worst <= TOLERANCE.get(model.dtype, 0.1):
        raise UsageError(
            f"model '{path}' is of type {kind}, and its log-probs here differ from plain transformers' by {worst:.2g} nats on"
            f" average over {found.tokens} tokens, so a run would train another model; choose a type of docs/models.md"
        )


def _plain_logprobs(model: Any, rows: list[Rollout]) -> torch.Tensor:
    """Log-probs [rows, tokens] of the responses by the model's own functions, row by row: no padding, no cache, no layout."""
    found = []
    with _own_functions(model):
        for row in rows:
            tokens = torch.tensor([row.prompt_tokens + row.response_tokens], device=next(model.parameters()).device)
            logprobs = model(input_ids=tokens, use_cache=False).logits[0].float().log_softmax(-1)
            start = len(row.prompt_tokens)
            found.append(logprobs[start - 1 : -1].gather(-1, tokens[0, start:, None])[:, 0].cpu())
    return torch.stack(found)


@contextmanager
def _own_functions(model: Any) -> Iterator[None]:
    """Transformers' written-out attention and experts in the place of ours."""
    config = model.config
    before = {name: getattr(config, name, None) for name in ("_attn_implementation", "_experts_implementation")}
    try:
        for name, value in before.items():
            if value is not None:
                setattr(config, name, "eager")
        yield
    finally:
        for name, value in before.items():
            if value is not None:
                setattr(config, name, value)
