"""Attention over rows end to end without padding, each with its whole prompt: by torch's kernel for rows of any length.

The kernel is FlashAttention's for variable lengths (arXiv 2307.08691), on a GPU with numbers of 16 bits. Everywhere else rows are
attended one by one, which gives the same and is slow. As with padded blocks a prompt that rows share is attended in each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from luspo_cli.policy.joined_rows import JoinedRows


@dataclass(frozen=True, slots=True)
class RaggedRows:
    """B rows of together T tokens."""

    places: Tensor
    """[T]: the joined token at each place, row after row."""
    tokens: Tensor
    """[N]: the place that each joined token is read from."""
    begins: Tensor
    """[B + 1] int32: the first place of each row, and T."""
    widths: tuple[int, ...]
    """Tokens of each row."""


def ragged_rows(joined: JoinedRows, widths: Tensor) -> RaggedRows:
    """`joined`'s rows without their padding; `widths` [B] are the tokens of each."""
    columns = joined.places.shape[1]
    begins = torch.nn.functional.pad(widths.cumsum(0), (1, 0))
    stands = torch.arange(columns, device=widths.device) < widths[:, None]
    row, column = joined.tokens // columns, joined.tokens % columns
    return RaggedRows(joined.places[stands], begins[row] + column, begins.int(), tuple(widths.tolist()))


def ragged_attention(
    query: Tensor,  # [1, H, N, D] of joined tokens
    key: Tensor,  # [1, K, N, D]
    value: Tensor,  # [1, K, N, E]
    rows: RaggedRows,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    of_one_row: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """[1, N, H, E]; `of_one_row` attends a row [1, heads, w, size] where the kernel cannot, and returns [1, w, H, E]."""
    ragged = [
        states[0].transpose(0, 1).index_select(0, rows.places) for states in (query, key, value)
    ]  # [T, heads, size]
    device = query.device.type
    if torch.is_autocast_enabled(device):  # which the kernel does not hear of
        ragged = [states.to(torch.get_autocast_dtype(device)) for states in ragged]
    own_query, own_key, own_value = ragged
    if softcap is None and has_kernel(own_query, own_value):
        from torch.nn.attention.varlen import varlen_attn

        longest = max(rows.widths)
        found = varlen_attn(
            own_query,
            own_key,
            own_value,
            rows.begins,
            rows.begins,
            longest,
            longest,
            scale=scaling,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        assert isinstance(found, Tensor)  # what it returns where nothing else is asked for
        out = found
    else:
        split = zip(*(states.split(rows.widths) for states in ragged), strict=True)
        out = torch.cat([of_one_row(*(states.transpose(0, 1)[None] for states in row))[0] for row in split])
    return out.index_select(0, rows.tokens)[None]


def has_kernel(query: Tensor, value: Tensor) -> bool:
    """Whether torch's kernel computes these."""
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] == value.shape[-1]
