"""The reduction as per-token weights [B, T]: a term of the loss is (weights * token values).sum() and nothing else.

With the global counts of the mini-batch the weight of a token does not depend on which micro-batch or rank holds it, so
the losses of micro-batches are summed, never averaged. (Where the host averages gradients over D ranks, as DDP and FSDP
do, it multiplies the loss by D.) A row without a response token is not a sequence: masking a row equals deleting it.
verl divides by a constant N (mini-batch size times group size) that includes such rows; to reproduce it, pass
`Counts(sequences=N, ...)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from luspo_cli.config.objective import Aggregation


@dataclass(frozen=True, slots=True)
class Counts:
    """Global size of one mini-batch, over all its micro-batches and ranks."""

    sequences: float
    """Rows with at least one response token."""
    tokens: float
    """Response tokens."""

    def __post_init__(self) -> None:
        if not (self.sequences >= 0 and self.tokens >= 0):
            raise ValueError(f"counts must not be negative, got {self.sequences} sequences and {self.tokens} tokens")


def count(amounts: torch.Tensor, row_counts: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Number of non-empty rows and of response tokens [...] (no device sync), each row taken `row_counts` [..., B] times.

    `amounts` [..., B, T]: how many tokens each element stands for; a bool mask says 1 or 0.
    """
    present, tokens = (amounts != 0).any(dim=-1), amounts.sum(dim=-1)
    if row_counts is not None:
        present, tokens = present * row_counts, tokens * row_counts
    return present.sum(dim=-1), tokens.sum(dim=-1)


def token_weights(
    amounts: torch.Tensor,
    aggregation: Aggregation,
    sequences: float | torch.Tensor,
    tokens: float | torch.Tensor,
    max_response_length: int | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Weights [..., B, T] of the elements' losses: what one token's loss counts for, times the tokens that stand there.

    token-mean 1/M; seq-mean-token-mean 1/(N·|y|); seq-mean-token-sum 1/N; seq-mean-token-sum-norm 1/(N·L), with N
    `sequences`, M `tokens`, |y| the row's sum of `amounts` (a bool mask, or a number of tokens for each element) and L
    `max_response_length` (ValueError where it is missing).
    """
    weights = amounts.to(dtype)
    if aggregation == "token-mean":
        return weights / _at_least_one(tokens)
    weights = weights / _at_least_one(sequences)
    if aggregation == "seq-mean-token-mean":
        return weights / amounts.sum(dim=-1, keepdim=True).clamp(min=1)
    if aggregation == "seq-mean-token-sum-norm":
        if max_response_length is None or max_response_length < 1:
            raise ValueError(
                "aggregation 'seq-mean-token-sum-norm' (dr_grpo) divides by a constant length: "
                "pass max_response_length, the response limit in tokens"
            )
        return weights / max_response_length
    return weights


def pull_on_tokens(weights: torch.Tensor, amounts: torch.Tensor, product: bool) -> torch.Tensor:
    """Minus the derivative of the loss by the log-prob of one of a row's tokens at ratio 1 and a unit advantage, [..., B].

    `weights` [..., B, T] as of `token_weights`. `product`: the row's ratio is the product of its token ratios, which each of them
    changes whole; of their mean, as of a ratio of its own, each changes its part.
    """
    whole = weights.sum(dim=-1)
    return whole if product else whole / amounts.sum(dim=-1).clamp(min=1)


def _at_least_one(number: float | torch.Tensor) -> float | torch.Tensor:
    # An empty batch has only zero weights: any positive divisor gives 0 instead of 0/0.
    return number.clamp(min=1)[..., None, None] if isinstance(number, torch.Tensor) else max(number, 1.0)
