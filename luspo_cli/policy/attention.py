"""One attention function for all passes of the policy, chosen by the shape of the call.

Training rows are padded on the right, where a causal mask alone keeps padding out, so training needs no mask tensor and the
result does not depend on the amount of padding. A decode step has one query a row; folding the query heads that share a
key/value head into the query axis lets one kernel call serve grouped heads without repeating the cache (on a CPU this is
several times faster than the repeat that the stock path makes).

A layer's sliding window and the tanh that bounds its scores (Gemma 2) come with the call. In every call the tokens of a row
stand side by side, so a window is a number of columns: of a decode step the last ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from luspo_cli.policy.joined_rows import JoinedRows
from luspo_cli.policy.ragged_attention import ragged_attention

NAME = "luspo"


def attention(
    module: nn.Module,
    query: Tensor,  # [B, H, Q, D]
    key: Tensor,  # [B, K, S, D]
    value: Tensor,  # [B, K, S, E]; E is D but for latent attention
    attention_mask: Tensor | None,  # [B, 1, Q, S], additive; None: causal over right-padded rows
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,  # tokens that a token sees, itself included; None: all earlier ones
    softcap: float | None = None,  # scores become softcap * tanh(scores / softcap)
    joined_rows: JoinedRows | None = None,  # the call's one row is many, end to end
    **_: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention with grouped key/value heads; returns ([B, Q, H, E], None)."""
    if joined_rows is not None:
        joined_rows.reached_attention = True
        if joined_rows.ragged is not None:

            def of_one_row(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
                return attention(module, query, key, value, None, scaling, dropout, sliding_window, softcap)[0]

            given = joined_rows.ragged, scaling, sliding_window, softcap, of_one_row
            return ragged_attention(query, key, value, *given), None
        parts = []
        for block in joined_rows.blocks:
            own_query, own_key, own_value = (block.padded(states) for states in (query, key, value))
            out, _nothing = attention(
                module, own_query, own_key, own_value, None, scaling, dropout, sliding_window, softcap
            )
            parts.append(block.joined(out))
        return torch.cat(parts).view(1, query.shape[2], query.shape[1], value.shape[3]), None
    batch, heads, queries, width = query.shape
    shared = heads // key.shape[1]
    window = sliding_window if sliding_window is not None and key.shape[2] > sliding_window else None
    if queries == 1 and attention_mask is not None:
        if window is not None:
            key, value, attention_mask = (
                key[:, :, -window:],
                value[:, :, -window:],
                attention_mask[..., -window:],
            )
        folded = query.reshape(batch, key.shape[1], shared, width)
        if softcap is not None or (query.device.type == "cpu" and query.dtype == torch.float32):
            out = _written_out(folded, key, value, attention_mask, width**-0.5 if scaling is None else scaling, softcap)
            return out.reshape(batch, heads, 1, value.shape[-1]).transpose(1, 2), None
        mask = attention_mask.expand(batch, 1, shared, key.shape[2])
        out = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
        return out.reshape(batch, heads, 1, value.shape[-1]).transpose(1, 2), None
    if shared > 1:
        key, value = _repeat(key, shared), _repeat(value, shared)
    if attention_mask is None and (window is not None or softcap is not None):
        attention_mask = _causal(queries, key.shape[2], window, query)
    if softcap is not None and attention_mask is not None:
        scaling = width**-0.5 if scaling is None else scaling
        return _written_out(query, key, value, attention_mask, scaling, softcap).transpose(1, 2), None
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, is_causal=attention_mask is None, scale=scaling, dropout_p=dropout
    )
    return out.transpose(1, 2), None


def _written_out(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, softcap: float | None
) -> Tensor:
    """[B, K, Q, E] from [B, K, Q, D], as two plain products; the softmax in float32.

    For the scores that a fused kernel does not compute, and for one query on a CPU: its kernel is made for many, and with one it
    takes longer for short rows and about as long for others.
    """
    scores = (query * scaling) @ key.transpose(2, 3)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    return (scores + mask).float().softmax(-1).to(value.dtype) @ value


def _causal(queries: int, columns: int, window: int | None, like: Tensor) -> Tensor:
    """The additive mask [1, 1, Q, S] of a token that sees itself and the `window` - 1 tokens before it (None: all)."""
    seen = torch.ones(queries, columns, dtype=torch.bool, device=like.device).tril_()
    if window is not None:
        seen.triu_(1 - window)
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, -torch.inf)[None, None]


def _repeat(states: Tensor, times: int) -> Tensor:
    batch, heads, length, width = states.shape
    return states[:, :, None].expand(batch, heads, times, length, width).reshape(batch, heads * times, length, width)


def register() -> None:
    """Make `attn_implementation="luspo"` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(NAME, attention)
