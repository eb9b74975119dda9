"""Our attention against a float64 softmax written out: training rows, prefill, and the folded decode step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luspo_cli.policy.attention import attention
from luspo_cli.policy.supported import causal_only
from luspo_cli.rollout.in_process.cache import decode_mask


def oracle(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, scaling: float) -> Tensor:
    """[B, Q, H, D], one head at a time; `allowed` [B, Q, S] bool."""
    heads, shared = query.shape[1], query.shape[1] // key.shape[1]
    out = []
    for head in range(heads):
        scores = query[:, head] @ key[:, head // shared].transpose(1, 2) * scaling
        out.append(scores.masked_fill(~allowed, -math.inf).softmax(-1) @ value[:, head // shared])
    return torch.stack(out, dim=2)


def tensors(batch: int, heads: int, key_heads: int, queries: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(heads * 100 + queries)
    make = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    return make(batch, heads, queries, 5), make(batch, key_heads, columns, 5), make(batch, key_heads, columns, 5)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (6, 1)])
def test_without_a_mask_it_is_causal(heads: int, key_heads: int) -> None:
    query, key, value = tensors(3, heads, key_heads, 7, 7)
    found, weights = attention(nn.Module(), query, key, value, None, scaling=0.3)
    allowed = torch.ones(7, 7, dtype=torch.bool).tril().expand(3, 7, 7)
    assert torch.allclose(found, oracle(query, key, value, allowed, 0.3), atol=1e-12)
    assert weights is None


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (6, 1)])
def test_a_decode_step_sees_the_valid_columns_of_its_own_row(heads: int, key_heads: int) -> None:
    query, key, value = tensors(3, heads, key_heads, 1, 6)
    valid = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]], dtype=torch.bool)
    found, _ = attention(nn.Module(), query, key, value, decode_mask(valid, torch.float64), scaling=0.3)
    assert found.shape == (3, 1, heads, 5)
    assert torch.allclose(found, oracle(query, key, value, valid[:, None], 0.3), atol=1e-12)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 2), (6, 1)])
def test_folding_heads_equals_repeating_the_cache(heads: int, key_heads: int) -> None:
    query, key, value = tensors(3, heads, key_heads, 1, 6)
    mask = decode_mask(torch.rand(3, 6, generator=torch.Generator().manual_seed(0)) < 0.7, torch.float64)
    mask[..., -1] = 0.0
    folded, _ = attention(nn.Module(), query, key, value, mask, scaling=0.3)
    shared = heads // key_heads
    repeated, _ = attention(
        nn.Module(), query, key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1), mask, scaling=0.3
    )
    assert torch.allclose(folded, repeated, atol=1e-12)


def capped_oracle(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, softcap: float) -> Tensor:
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * 0.3 / softcap)
    return (scores.masked_fill(~allowed[:, None], -math.inf).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("window", [1, 3, 7, 20, None])
def test_a_window_is_a_number_of_tokens_itself_included(window: int | None, softcap: float | None) -> None:
    """Row by row, and the last token of each row as a decode step whose columns begin at different places."""
    query, key, value = tensors(3, 4, 2, 7, 7)
    allowed = torch.tensor([[0 <= i - j < (window or 7) for j in range(7)] for i in range(7)]).expand(3, 7, 7)
    expected = (
        oracle(query, key, value, allowed, 0.3)
        if softcap is None
        else capped_oracle(query, key, value, allowed, softcap)
    )
    found, _ = attention(nn.Module(), query, key, value, None, 0.3, sliding_window=window, softcap=softcap)
    assert torch.allclose(found, expected, atol=1e-6)  # the capped scores' softmax is float32
    mask = decode_mask(torch.ones(3, 7, dtype=torch.bool), torch.float64)
    last, _ = attention(nn.Module(), query[:, :, -1:], key, value, mask, 0.3, sliding_window=window, softcap=softcap)
    assert torch.allclose(last, expected[:, -1:], atol=1e-6)


def test_a_model_with_our_attention_computes_what_the_stock_one_computes(make_model: Callable[..., Any]) -> None:
    tokens = torch.arange(2, 20).view(2, 9)
    ours, stock = make_model(dtype="float64"), make_model(dtype="float64", attention="eager")
    with torch.no_grad():
        found, expected = (m(input_ids=tokens, use_cache=False).logits for m in (ours, stock))
    assert torch.allclose(found, expected, atol=1e-6)  # transformers computes the eager softmax in float32


def test_sliding_window_layers_are_recognised(make_model: Callable[..., Any]) -> None:
    config = make_model().config.to_dict()
    assert causal_only(config)
    assert not causal_only(config | {"layer_types": ["full_attention", "sliding_attention"]})
