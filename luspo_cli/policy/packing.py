"""Scored groups → mini-batches of whole groups → micro-batches by token budget → padded tensors.

Micro-batches only spread one mini-batch over several passes. Rows are sorted by length, longest first (the largest pass comes
first, so that memory runs out at once or not at all), and rows without advantage get micro-batches of their own: leaving those
out changes nothing about the others, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luspo_cli.records import Rollout, ScoredGroup


@dataclass(frozen=True, slots=True)
class Row:
    """One rollout with its advantage, as the update sees it."""

    rollout: Rollout
    advantage: float

    @property
    def width(self) -> int:
        return len(self.rollout.prompt_tokens) + len(self.rollout.response_tokens)


@dataclass(frozen=True, slots=True)
class PolicyBatch:
    """Tensors of one micro-batch; rows padded on the right with token 0."""

    tokens: Tensor  # [B, W] prompt and response
    prompt_lengths: Tensor  # [B]
    response_mask: Tensor  # [B, R] bool, true on response tokens; column j is the response's token j
    advantages: Tensor  # [B]
    image_inputs: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """The rows of one optimizer step, split into micro-batches, with the counts of the whole."""

    with_advantage: tuple[tuple[Row, ...], ...]
    without_advantage: tuple[tuple[Row, ...], ...]
    sequences: int
    """Rows with at least one response token."""
    response_tokens: int


def split_mini_batches(groups: Sequence[ScoredGroup], number: int, tokens_per_micro_batch: int) -> list[MiniBatch]:
    """Split groups, in their order, into `number` mini-batches of equally many groups."""
    if len(groups) % number:
        raise ValueError(f"{len(groups)} groups do not divide into {number} mini-batches of whole groups")
    size = len(groups) // number
    return [_mini_batch(groups[i : i + size], tokens_per_micro_batch) for i in range(0, len(groups), size)]


def _mini_batch(groups: Sequence[ScoredGroup], budget: int) -> MiniBatch:
    rows = [Row(r, a) for group in groups for r, a in zip(group.rollouts, group.advantages, strict=True)]
    return MiniBatch(
        with_advantage=split_micro_batches([row for row in rows if row.advantage != 0.0], budget),
        without_advantage=split_micro_batches([row for row in rows if row.advantage == 0.0], budget),
        sequences=sum(row.rollout.response_length > 0 for row in rows),
        response_tokens=sum(row.rollout.response_length for row in rows),
    )


def split_micro_batches(rows: Sequence[Row], budget: int) -> tuple[tuple[Row, ...], ...]:
    """Rows, longest first, in runs whose padded size (rows * longest) stays within `budget` tokens; one row always fits."""
    ordered = sorted(rows, key=lambda row: -row.width)
    batches: list[tuple[Row, ...]] = []
    start = 0
    while start < len(ordered):
        fit = max(1, budget // ordered[start].width)
        batches.append(tuple(ordered[start : start + fit]))
        start += fit
    return tuple(batches)


def policy_batch(rows: Sequence[Row], device: torch.device | str = "cpu", padding: int = 0) -> PolicyBatch:
    """Pad rows into tensors; `padding` adds columns beyond the longest row (for tests and the noise floor)."""
    width = max(row.width for row in rows) + padding
    response_width = max(row.rollout.response_length for row in rows) + padding
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), response_width, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : row.width] = torch.tensor(row.rollout.prompt_tokens + row.rollout.response_tokens)
        mask[i, : row.rollout.response_length] = True
    return PolicyBatch(
        tokens=tokens.to(device),
        prompt_lengths=torch.tensor([len(row.rollout.prompt_tokens) for row in rows], device=device),
        response_mask=mask.to(device),
        advantages=torch.tensor([row.advantage for row in rows], dtype=torch.float32, device=device),
    )
