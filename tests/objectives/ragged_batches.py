"""Ragged batches and their padding, shared by the tests of the objectives."""

from __future__ import annotations

import random

import torch
from loop_oracle import Batch

LIMIT = 12
"""Response limit used by the tests, the constant length of dr_grpo."""


def make_batch(seed: int, lengths: list[int], spread: float) -> Batch:
    """Random rows whose token log-ratios have standard deviation `spread`."""
    rng = random.Random(seed)
    old = [[-rng.expovariate(1.0) for _ in range(n)] for n in lengths]
    new = [[value + rng.gauss(0, spread) for value in row] for row in old]
    advantages = [rng.gauss(0, 1) for _ in lengths]
    weights = [[rng.uniform(0.3, 2.0) for _ in range(n)] for n in lengths]
    return Batch(new, old, advantages, weights)


def pad(rows: list[list[float]], width: int, side: str = "right", fill: float = 0.0) -> torch.Tensor:
    """Rows of float64 padded to `width` with `fill`."""
    padded = [
        [*row, *[fill] * (width - len(row))] if side == "right" else [*[fill] * (width - len(row)), *row]
        for row in rows
    ]
    return torch.tensor(padded, dtype=torch.float64).reshape(len(rows), width)


def as_tensors(
    batch: Batch, width: int | None = None, side: str = "right", fill: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logprobs requiring grad, old_logprobs, advantages, bool mask) of a ragged batch."""
    width = max(map(len, batch.new), default=0) if width is None else width
    mask = pad([[1.0] * len(row) for row in batch.new], width, side).bool()
    logprobs = pad(batch.new, width, side, fill).requires_grad_(True)
    return logprobs, pad(batch.old, width, side, fill), torch.tensor(batch.advantages, dtype=torch.float64), mask
