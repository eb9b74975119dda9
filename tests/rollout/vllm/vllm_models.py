"""Random models for the tests with a real vLLM, and log-probs from transformers to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from luspo_cli.records import Rollout

VOCABULARY = 512
CONTEXT = 128


def tiny_model(folder: Path, *, tied: bool, seed: int = 0) -> Any:
    """A random Qwen2 of 128 columns (vLLM's kernels want heads of 32), saved with a tokenizer in `folder`."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from luspo_cli.training.made.model import made_tokenizer

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    randomise(model, seed)
    model.save_pretrained(folder)
    made_tokenizer(VOCABULARY).save_pretrained(folder)
    return model


def randomise(model: Any, seed: int) -> None:
    """New weights in place, of a spread that makes some next tokens likelier than others."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            weight.normal_(centre, 0.2 if "embed" in name or "lm_head" in name else 0.1)


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
