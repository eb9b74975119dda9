"""Layers that keep less for the backward pass: the same log-probs and gradients bit for bit, in about half the bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from luspo_cli.machine import multiplies_bfloat16
from luspo_cli.policy.lean_layers import can_be_lean
from luspo_cli.policy.packing import PolicyBatch, policy_batch, rows_of
from luspo_cli.policy.policy import Policy

WIDTH, FEED_FORWARD, LAYERS, HEADS = 64, 192, 2, 4
KINDS = ("Qwen2", "Qwen3", "Llama", "Mistral")


def make(kind: str) -> Any:
    import transformers

    from doubles.models import respread
    from luspo_cli.policy import attention

    attention.register()
    torch.manual_seed(0)
    entries = {"head_dim": WIDTH // HEADS} if kind == "Qwen3" else {}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=26, hidden_size=WIDTH, intermediate_size=FEED_FORWARD, num_hidden_layers=LAYERS, pad_token_id=0,
        num_attention_heads=HEADS, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, **entries,
    )  # fmt: skip
    config._attn_implementation = attention.NAME
    if kind == "Mistral":
        config.sliding_window = None
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    respread(model, 0.5, 0.2)
    return model


@pytest.fixture
def batch(make_groups: Callable[..., Any]) -> PolicyBatch:
    groups = make_groups([[33, 59, 11], [5, 45, 12]], [[1.0, -0.5, -0.5], [0.5, 0.2, -0.7]])
    return policy_batch([row for group in groups for row in rows_of(group)])


def computed(model: Any, batch: PolicyBatch, *, wrapped: bool) -> tuple[list[Tensor], int]:
    """Log-probs and all gradients, of two passes, and the bytes that autograd holds between forward and backward."""
    policy = Policy(model, 0.8).train()
    policy.wrapped = wrapped
    kept: dict[int, int] = {}
    own = {weight.data_ptr() for weight in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    found = []
    for _ in range(2):
        kept.clear()
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16),
        ):
            logprobs, entropy = policy(batch, with_entropy=True)
        (logprobs * batch.advantages[:, None] + 0.01 * entropy).sum().backward()
        found.append(logprobs.detach())
    return [*found, *(weight.grad for weight in model.parameters())], sum(kept.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_numbers_bit_for_bit_in_half_the_bytes(kind: str, batch: PolicyBatch) -> None:
    torch.set_num_threads(1)
    model = make(kind)
    assert can_be_lean(model)
    plain, bytes_of_plain = computed(model, batch, wrapped=True)
    lean, bytes_of_lean = computed(model, batch, wrapped=False)
    names = ["first", "second", *dict(model.named_parameters())]
    for name, expected, found in zip(names, plain, lean, strict=True):
        if not multiplies_bfloat16():
            # torch's own product in bfloat16 then adds in an order that hangs on the layout in memory.
            assert (found - expected).norm() <= 0.01 * expected.norm(), name
        elif name == "model.embed_tokens.weight":  # tied: the head's part is added in another order
            assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(found, expected), name
    assert not any("forward" in vars(module) for module in model.modules())
    assert bytes_of_lean < 0.62 * bytes_of_plain
    if (
        kind == "Qwen2"
    ):  # what the dry run counts; at this small width what does not grow with it is a good part besides
        tokens = batch.joined.tokens.numel()  # type: ignore[union-attr]
        counted = tokens * LAYERS * (22 * WIDTH + 4 * FEED_FORWARD)
        assert counted < bytes_of_lean < 1.5 * counted


def test_models_that_are_left_as_they_are(make_model: Callable[..., Any]) -> None:
    from doubles.models import own_experts

    assert not can_be_lean(own_experts(26))
    assert can_be_lean(make_model())
    assert not can_be_lean(make_model(dtype="bfloat16"))
    frozen = make_model()
    frozen.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    assert not can_be_lean(frozen)
    checkpointing = make_model()
    checkpointing.gradient_checkpointing_enable()
    assert not can_be_lean(checkpointing)
