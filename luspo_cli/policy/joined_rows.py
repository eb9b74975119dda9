"""Rows of a batch laid end to end, each prompt once: what a training pass computes instead of padded rows.

A layer's products then read no padding, and the prompt of a group is computed once a pass and not once a response. Attention
alone needs rows: it takes padded copies of queries, keys and values, where rows of one prompt share what that prompt computed,
and puts its result back end to end. The gradient of what is shared adds up over its rows: it is the gradient of separate rows.
Attention's work grows with the square of the padded length, so rows much shorter than those before them get a copy of their own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from luspo_cli.policy.ragged_attention import RaggedRows

SHORTER = 0.75
"""Below this share of a block's longest row a row begins the next block."""
WORTH_A_BLOCK = 2**14
"""Entries of attention's square that a further block has to spare: a call of the kernel costs about as much."""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of about one length, padded together: b rows of w columns."""

    rows: int
    places: Tensor
    """[b * w]: the joined token at each place; any one at padding, which under a causal mask nobody reads."""
    tokens: Tensor
    """The place, row times w plus column, that each of the block's joined tokens is read from, in their order."""

    def padded(self, states: Tensor) -> Tensor:
        """[1, H, N, D] → [b, H, w, D]."""
        heads, size = states.shape[1], states.shape[3]
        flat = states.transpose(1, 2).reshape(-1, heads * size)
        return flat.index_select(0, self.places).view(self.rows, -1, heads, size).transpose(1, 2)

    def joined(self, states: Tensor) -> Tensor:
        """[b, w, H, D] → [n, H * D]."""
        return states.reshape(self.places.shape[0], -1).index_select(0, self.tokens)


@dataclass(slots=True)
class JoinedRows:
    """Which place of padded rows [B, W] holds which of N joined tokens, and how attention pads them."""

    tokens: Tensor
    """[N]: the place, row times W plus column, that each joined token is read from: a prompt's from its first row."""
    places: Tensor
    """[B, W]: the joined token that stands at each place; any one at padding."""
    blocks: list[Block]
    ragged: RaggedRows | None = None
    """The rows without padding, where attention is to take them so."""
    reached_attention: bool = False
    """Whether a layer's attention was handed this: a model that keeps it from its layers cannot compute joined rows."""


def join_rows(
    prompts: Sequence[tuple[Hashable, int]],
    responses: Sequence[int],
    padding: int = 0,
    device: torch.device | str = "cpu",
) -> JoinedRows:
    """Lay rows out; `prompts` are each row's prompt (equal ones are computed once) and its tokens, `responses` tokens.

    `padding`: columns beyond the longest row, of the whole and of each block.
    """
    widths = [length + response for (_, length), response in zip(prompts, responses, strict=True)]
    width = max(widths) + padding
    places = np.zeros((len(widths), width), dtype=np.int64)
    rows: list[np.ndarray] = []
    columns: list[np.ndarray] = []
    ends: list[int] = []
    begins: dict[Hashable, int] = {}
    total = 0
    for row, ((prompt, length), response) in enumerate(zip(prompts, responses, strict=True)):
        start = length
        if prompt not in begins:
            begins[prompt], start = total, 0
        number = length - start + response
        places[row, :length] = np.arange(begins[prompt], begins[prompt] + length)
        places[row, length : length + response] = np.arange(total + length - start, total + number)
        rows.append(np.full(number, row))
        columns.append(np.arange(start, length + response))
        total += number
        ends.append(total)
    row_of, column_of = np.concatenate(rows), np.concatenate(columns)
    blocks = []
    for first, last in _blocks(widths):
        longest = max(widths[first:last]) + padding
        own = slice(ends[first - 1] if first else 0, ends[last - 1])
        read = (row_of[own] - first) * longest + column_of[own]
        own_places = np.ascontiguousarray(places[first:last, :longest]).reshape(-1)
        blocks.append(Block(last - first, _on(own_places, device), _on(read, device)))
    return JoinedRows(_on(row_of * width + column_of, device), _on(places, device), blocks)


def _blocks(widths: Sequence[int]) -> list[tuple[int, int]]:
    """The first row of each block and the one after its last."""
    begins, longest = [0], widths[0]
    for row, width in enumerate(widths):
        if width < SHORTER * longest and (len(widths) - row) * (longest**2 - width**2) > WORTH_A_BLOCK:
            begins.append(row)
            longest = width
        longest = max(longest, width)
    return list(zip(begins, [*begins[1:], len(widths)], strict=True))


def _on(numbers: np.ndarray, device: torch.device | str) -> Tensor:
    return torch.from_numpy(numbers).to(device)
