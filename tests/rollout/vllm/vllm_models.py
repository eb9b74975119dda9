"""Random models for the tests with a real vLLM, and log-probs from transformers to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from doubles.models import random_qwen2, respread, save
from luspo_cli.records import Rollout

VOCABULARY = 512
CONTEXT = 128


def tiny_model(folder: Path, *, tied: bool, seed: int = 0) -> Any:
    """A random Qwen2 of 128 columns (vLLM's kernels want heads of 32), saved with a tokenizer in `folder`."""
    from luspo_cli.training.made.build import made_tokenizer

    model = random_qwen2(
        VOCABULARY, width=128, feed_forward=192, layers=2, heads=4, key_value_heads=2, context=256, tied=tied
    )
    randomise(model, seed)
    save(folder, model, made_tokenizer(VOCABULARY))
    return model


def randomise(model: Any, seed: int) -> None:
    """New weights in place, of a spread that makes some next tokens likelier than others."""
    torch.manual_seed(seed)
    respread(model, 0.2, 0.1)


def differences(model: Any, rollouts: Sequence[Rollout], temperature: float) -> torch.Tensor:
    """|log-prob of transformers − of the sampler| of every response token [N]."""
    found = []
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_tokens + rollout.response_tokens])
        with torch.no_grad():
            logprobs = (model(ids).logits.float() / temperature).log_softmax(-1)
        start = len(rollout.prompt_tokens)
        own = logprobs[0, start - 1 : -1].gather(-1, ids[0, start:, None])[:, 0]
        found.append((own - torch.tensor(rollout.rollout_logprobs)).abs())
    return torch.cat(found)
