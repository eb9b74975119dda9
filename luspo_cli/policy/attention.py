"""One attention function for all passes of the policy, chosen by the shape of the call.

Training rows are padded on the right, where a causal mask alone keeps padding out, so training needs no mask tensor and the
result does not depend on the amount of padding. A decode step has one query a row; folding the query heads that share a
key/value head into the query axis lets one kernel call serve grouped heads without repeating the cache (on a CPU this is
several times faster than the repeat that the stock path makes).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from luspo_cli.policy.joined_rows import JoinedRows

NAME = "luspo"


def attention(
    module: nn.Module,
    query: Tensor,  # [B, H, Q, D]
    key: Tensor,  # [B, K, S, D]
    value: Tensor,  # [B, K, S, E]; E is D but for latent attention
    attention_mask: Tensor | None,  # [B, 1, Q, S], additive; None: causal over right-padded rows
    scaling: float | None = None,
    dropout: float = 0.0,
    joined_rows: JoinedRows | None = None,  # the call's one row is many, end to end
    **_: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention with grouped key/value heads; returns ([B, Q, H, E], None)."""
    if joined_rows is not None:
        joined_rows.reached_attention = True
        parts = []
        for block in joined_rows.blocks:
            own_query, own_key, own_value = (block.padded(states) for states in (query, key, value))
            out, _nothing = attention(module, own_query, own_key, own_value, None, scaling, dropout)
            parts.append(block.joined(out))
        return torch.cat(parts).view(1, query.shape[2], query.shape[1], value.shape[3]), None
    batch, heads, queries, width = query.shape
    shared = heads // key.shape[1]
    if queries == 1 and attention_mask is not None:
        folded = query.reshape(batch, key.shape[1], shared, width)
        if query.device.type == "cpu" and query.dtype == torch.float32:
            out = _one_query(folded, key, value, attention_mask, width**-0.5 if scaling is None else scaling)
            return out.reshape(batch, heads, 1, value.shape[-1]).transpose(1, 2), None
        mask = attention_mask.expand(batch, 1, shared, key.shape[2])
        out = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
        return out.reshape(batch, heads, 1, value.shape[-1]).transpose(1, 2), None
    if shared > 1:
        key, value = _repeat(key, shared), _repeat(value, shared)
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, is_causal=attention_mask is None, scale=scaling, dropout_p=dropout
    )
    return out.transpose(1, 2), None


def _one_query(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """[B, K, G, E] from queries [B, K, G, D] that share a key/value head, as two plain products.

    The CPU's fused kernel is made for many queries: with one it takes longer for short rows and about as long for others.
    """
    scores = (query * scaling) @ key.transpose(2, 3)
    return (scores + mask).softmax(-1) @ value


def _repeat(states: Tensor, times: int) -> Tensor:
    batch, heads, length, width = states.shape
    return states[:, :, None].expand(batch, heads, times, length, width).reshape(batch, heads * times, length, width)


def register() -> None:
    """Make `attn_implementation="luspo"` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(NAME, attention)
