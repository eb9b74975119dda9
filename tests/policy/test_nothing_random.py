"""Two passes of one policy are equal bit for bit, whatever noise its configuration asks for; and recomputing goes on working."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.models import LATENT
from doubles.models import byte_tokenizer, save
from luspo_cli.config.model import ModelConfig
from luspo_cli.policy.loading import load_model
from luspo_cli.policy.packing import Row, policy_batch
from luspo_cli.policy.policy import Policy
from luspo_cli.records import Prompt
from luspo_cli.rollout.in_process.sampler import InProcessSampler
from luspo_cli.rollout.sampler import SamplingOptions

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "initializer_range": 0.2, "tie_word_embeddings": False,
}  # fmt: skip
NOISY: dict[str, dict[str, Any]] = {
    "Qwen2": {"attention_dropout": 0.5},
    "Llama": {"attention_dropout": 0.5},
    "SeedOss": {"head_dim": 8, "attention_dropout": 0.5, "residual_dropout": 0.5},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},
    "StableLm": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "Mixtral": {"num_local_experts": 4, "router_jitter_noise": 0.5, "sliding_window": None},
    "Phimoe": {"num_local_experts": 4, "router_jitter_noise": 0.5, "input_jitter_noise": 0.5, "sliding_window": None},
    "DeepseekV3": LATENT | {"attention_dropout": 0.5},
    "DeepseekV2": LATENT | {"attention_dropout": 0.5},
}


def noisy(folder: Path, family: str) -> Path:
    import transformers

    tokenizer = byte_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), **ends, **SIZES | NOISY[family])
    return save(folder, getattr(transformers, f"{family}ForCausalLM")(config), tokenizer)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", NOISY)
def test_passes_hold_no_noise_and_agree_with_the_sampler_and_with_transformers(
    tmp_path: Path, family: str, checkpointing: bool
) -> None:
    import transformers

    folder = noisy(tmp_path, family)
    loaded = load_model(ModelConfig(path=str(folder), gradient_checkpointing=checkpointing))
    policy = Policy(loaded.model, 1.0).train()
    prompts = [Prompt("a", (5, 9, 13, 40)), Prompt("b", (80, 7))]
    sampler = InProcessSampler(loaded.model, loaded.tokenizer, loaded.end_tokens, 8)
    groups = sampler.sample_groups(prompts, SamplingOptions(group_size=2, max_response_tokens=5))
    rows = [Row(rollout, 1.0) for group in groups for rollout in group]
    first, again = (policy(policy_batch(rows))[0] for _ in range(2))
    assert torch.equal(first, again)
    stock = getattr(transformers, f"{family}ForCausalLM").from_pretrained(folder, dtype=torch.float32).eval()
    for row, found in zip(rows, first.detach(), strict=True):
        rollout, start = row.rollout, len(row.rollout.prompt_tokens)
        tokens = torch.tensor([rollout.prompt_tokens + rollout.response_tokens])
        with torch.no_grad():
            logprobs = stock(tokens).logits[0].log_softmax(-1)
        wanted = logprobs[start - 1 : -1].gather(-1, tokens[0, start:, None])[:, 0]
        assert torch.allclose(found[: len(wanted)], wanted, atol=2e-5)
        assert torch.allclose(found[: len(wanted)], torch.tensor(rollout.rollout_logprobs), atol=2e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_recomputed_where_that_is_asked_for(tmp_path: Path, checkpointing: bool) -> None:
    """A layer is called once more in the backward pass; sampling in between changes nothing of it."""
    loaded = load_model(ModelConfig(path=str(noisy(tmp_path, "SeedOss")), gradient_checkpointing=checkpointing))
    policy = Policy(loaded.model, 1.0).train()
    sampler = InProcessSampler(loaded.model, loaded.tokenizer, loaded.end_tokens, 8)
    ((rollout,),) = sampler.sample_groups([Prompt("a", (5, 9))], SamplingOptions(group_size=1, max_response_tokens=4))
    calls: list[int] = []
    loaded.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    logprobs, _ = policy(policy_batch([Row(rollout, 1.0)]))
    assert len(calls) == 1
    logprobs.sum().backward()
    assert len(calls) == 1 + checkpointing


def test_the_published_configuration_keeps_its_dropout(tmp_path: Path) -> None:
    """A checkpoint is a model for others, too."""
    loaded = load_model(ModelConfig(path=str(noisy(tmp_path, "SeedOss"))))
    Policy(loaded.model, 1.0).train()
    assert loaded.model.config.residual_dropout == 0.5
