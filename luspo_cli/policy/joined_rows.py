"""Rows of a batch laid end to end, each prompt once: what a training pass computes instead of padded rows.

A layer's products then read no padding, and the prompt of a group is computed once a pass and not once a response. Attention
alone needs rows: it takes a padded copy of queries, keys and values, where rows of one prompt share what that prompt computed,
and puts its result back end to end. The gradient of what is shared adds up over its rows: it is the gradient of separate rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(slots=True)
class JoinedRows:
    """Which place of padded rows [B, W] holds which of N joined tokens."""

    tokens: Tensor
    """[N]: the place, row times W plus column, that each joined token is read from: a prompt's from its first row."""
    places: Tensor
    """[B, W]: the joined token that stands at each place; any one at padding, which under a causal mask nobody reads."""
    reached_attention: bool = False
    """Whether a layer's attention was handed this: a model that keeps it from its layers cannot compute joined rows."""

    def padded(self, states: Tensor) -> Tensor:
        """[1, H, N, D] → rows [B, H, W, D]."""
        rows, width = self.places.shape
        heads, size = states.shape[1], states.shape[3]
        flat = states.transpose(1, 2).reshape(-1, heads * size)
        return flat.index_select(0, self.places.view(-1)).view(rows, width, heads, size).transpose(1, 2)

    def joined(self, states: Tensor) -> Tensor:
        """Rows [B, W, H, D] → [1, N, H, D]."""
        heads, size = states.shape[2:]
        return states.reshape(-1, heads * size).index_select(0, self.tokens).view(1, -1, heads, size)


def join_rows(
    prompts: Sequence[tuple[Hashable, int]], responses: Sequence[int], width: int, device: torch.device | str
) -> JoinedRows:
    """Lay rows out; `prompts` are each row's prompt (equal ones are computed once) and its tokens, `responses` tokens."""
    places = np.zeros((len(prompts), width), dtype=np.int64)
    tokens: list[np.ndarray] = []
    begins: dict[Hashable, int] = {}
    total = 0
    for row, ((prompt, length), response) in enumerate(zip(prompts, responses, strict=True)):
        first = row * width
        if prompt not in begins:
            begins[prompt] = total
            tokens.append(np.arange(first, first + length))
            total += length
        places[row, :length] = np.arange(begins[prompt], begins[prompt] + length)
        places[row, length : length + response] = np.arange(total, total + response)
        tokens.append(np.arange(first + length, first + length + response))
        total += response
    return JoinedRows(torch.from_numpy(np.concatenate(tokens)).to(device), torch.from_numpy(places).to(device))
