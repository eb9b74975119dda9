"""The reduction as per-token weights [B, T]: a term of the loss is (weights * token values).sum() and nothing else.

With the global counts of the mini-batch the weight of a token does not depend on which micro-batch or rank holds it, so
the losses of micro-batches are summed, never averaged. (Where the host averages gradients over D ranks, as DDP and FSDP
do, it multiplies the loss by D.) A row without a response token is not a sequence: masking a row equals deleting it.
verl divides by a constant N (mini-batch size times group size) that includes such rows; to reproduce it, pass
`Counts(sequences=N, ...)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from luspo_cli.config.objective import Aggregation, ObjectiveConfig
from luspo_cli.config.own_objective import OWN


@dataclass(frozen=True, slots=True)
class GroupCounts:
    """Sizes of the groups of one mini-batch, [..., K, 3] by group and by sign of the advantage (negative, 0, positive)."""

    sequences: torch.Tensor
    tokens: torch.Tensor

    @classmethod
    def of_rows(
        cls, ids: torch.Tensor, advantages: torch.Tensor, sequences: torch.Tensor, tokens: torch.Tensor
    ) -> GroupCounts:
        """From rows [..., B] with group ids 0 to K-1 and how many sequences and tokens each stands for."""
        groups = int(ids.max()) + 1 if ids.numel() else 0
        place = _place(ids, advantages)

        def table(values: torch.Tensor) -> torch.Tensor:
            empty = values.new_zeros((*values.shape[:-1], groups * 3), dtype=torch.float64)
            return empty.scatter_add(-1, place, values.double()).unflatten(-1, (groups, 3))

        return cls(table(sequences), table(tokens))

    def divisors(self, aggregation: Aggregation, ids: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
        """What the sum of a row's token losses is divided by, float64 [..., B]; at least 1.

        prompt-mean: tokens of its group times the number of groups. sign-balanced: tokens of its group's sequences with its sign,
        over their share of the group's sequences, times the number of groups.
        """
        sequences, tokens = self.sequences.to(ids.device), self.tokens.to(ids.device)
        of_group = sequences.sum(dim=-1)
        groups = (of_group > 0).sum(dim=-1, keepdim=True).clamp(min=1)
        if aggregation == "prompt-mean":
            divisor = tokens.sum(dim=-1).gather(-1, ids)
        else:
            place = _place(ids, advantages)
            own = sequences.flatten(-2).gather(-1, place)
            whole = tokens.flatten(-2).gather(-1, place) * of_group.gather(-1, ids)
            divisor = torch.where(own > 0, whole / torch.where(own > 0, own, 1), 0)
        # A row that is no sequence has only zero weights: any positive divisor gives 0 instead of 0/0.
        return torch.where(divisor > 0, divisor, 1) * groups


def _place(ids: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    return ids.long() * 3 + 1 + (advantages > 0).long() - (advantages < 0).long()


@dataclass(frozen=True, slots=True)
class Counts:
    """Global size of one mini-batch, over all its micro-batches and ranks."""

    sequences: float
    """Rows with at least one response token."""
    tokens: float
    """Response tokens."""
    length_power_sum: float | None = None
    """Σ|y|^q over the sequences, with the objective's `length_power_sum` as q; only where that is not None."""
    groups: GroupCounts | None = None
    """Only where the objective `needs_group_ids`."""

    def __post_init__(self) -> None:
        if not (self.sequences >= 0 and self.tokens >= 0):
            raise ValueError(f"counts must not be negative, got {self.sequences} sequences and {self.tokens} tokens")


def counts_of(
    config: ObjectiveConfig, lengths: Sequence[int], advantages: Sequence[float], group_ids: Sequence[int]
) -> Counts:
    """The counts of a mini-batch from its rows: tokens, advantage and group (0 to K-1) of each."""
    groups, power = None, config.length_power_sum
    if config.needs_group_ids:
        tokens = torch.tensor(lengths, dtype=torch.float64)
        ids, signs = torch.tensor(group_ids, dtype=torch.long), torch.tensor(advantages, dtype=torch.float64)
        groups = GroupCounts.of_rows(ids, signs, tokens > 0, tokens)
    return Counts(
        sequences=sum(length > 0 for length in lengths),
        tokens=sum(lengths),
        length_power_sum=None if power is None else math.fsum(length**power for length in lengths if length),
        groups=groups,
    )


@dataclass(frozen=True, slots=True)
class BatchSize:
    """What the weights of a batch are divided by: numbers, or tensors [...] of several batches."""

    sequences: float | torch.Tensor
    tokens: float | torch.Tensor
    max_response_length: int | None = None
    length_power_sum: float | torch.Tensor | None = None
    divisors: torch.Tensor | None = None
    """[..., B], of `GroupCounts.divisors`."""
    groups: GroupCounts | None = None


def batch_size(
    config: ObjectiveConfig,
    amounts: torch.Tensor,
    row_counts: torch.Tensor | None,
    advantages: torch.Tensor,
    group_ids: torch.Tensor | None,
    max_response_length: int | None,
    counts: Counts | None,
) -> BatchSize:
    """The size of the batch that rows belong to: that of `counts`, or without them their own (no device sync but for groups).

    `amounts` [..., B, T]: how many tokens each element stands for; a bool mask says 1 or 0. Each row is taken `row_counts`
    [..., B] times. ValueError where the objective needs group ids, or a count, that is not there.
    """
    lengths = amounts.sum(dim=-1)
    present, tokens = lengths > 0, lengths
    if row_counts is not None:
        present, tokens = present * row_counts, tokens * row_counts
    divisors, groups = None, None
    if config.needs_group_ids:
        if group_ids is None:
            raise ValueError(
                f"aggregation '{config.aggregation}' ({config.name}) weighs a token by the other responses to its prompt: pass"
                " group_ids"
            )
        if counts is not None and counts.groups is None:
            raise ValueError(
                f"aggregation '{config.aggregation}' needs counts.groups where rows are a part of a mini-batch"
            )
        signs = advantages.masked_fill(lengths == 0, 0)
        groups = GroupCounts.of_rows(group_ids, signs, present, tokens) if counts is None else counts.groups
        if config.aggregation != OWN:
            divisors = groups.divisors(config.aggregation, group_ids, signs)  # type: ignore[union-attr, arg-type]
    power, power_sum = config.length_power_sum, None
    if power is not None:
        if counts is not None and counts.length_power_sum is None:
            raise ValueError("length_normalise needs counts.length_power_sum where rows are a part of a mini-batch")
        whole = (present * lengths.clamp(min=1).double() ** power).sum(dim=-1)
        power_sum = whole if counts is None else counts.length_power_sum
    if counts is not None:
        return BatchSize(counts.sequences, counts.tokens, max_response_length, power_sum, divisors, groups)
    return BatchSize(present.sum(dim=-1), tokens.sum(dim=-1), max_response_length, power_sum, divisors, groups)


def token_weights(amounts: torch.Tensor, config: ObjectiveConfig, size: BatchSize, dtype: torch.dtype) -> torch.Tensor:
    """Weights [..., B, T] of the elements' losses: what one token's loss counts for, times the tokens that stand there.

    token-mean 1/M; seq-mean-token-mean 1/(N·|y|); seq-mean-token-sum 1/N; seq-mean-token-sum-norm 1/(N·L); length-power
    |y|^(p-1) over N (none), Σ|y|^p (batch) or L·Σ|y|^(p-1) (delta-l); prompt-mean and sign-balanced: `GroupCounts.divisors`.
    N sequences, M tokens, |y| the row's sum of `amounts` (a bool mask, or a number of tokens for each element), L the response
    limit (ValueError where it is missing).
    """
    weights = amounts.to(dtype)
    aggregation = config.aggregation
    if size.divisors is not None:
        return weights / size.divisors.to(dtype)[..., None]
    if aggregation == "token-mean":
        return weights / _at_least_one(size.tokens)
    if aggregation == "length-power":
        # Powers that are 0 or 1 change no bit, so the ends of the curve are the named objectives' own weights.
        lengths = amounts.sum(dim=-1, keepdim=True).clamp(min=1).to(dtype)
        whole = size.sequences if size.length_power_sum is None else size.length_power_sum
        weights = weights / _positive(whole, dtype) / lengths ** (1.0 - (config.length_exponent or 0.0))
        return weights / _limit(size, aggregation) if config.length_normalise == "delta-l" else weights
    weights = weights / _at_least_one(size.sequences)
    if aggregation == "seq-mean-token-mean":
        return weights / amounts.sum(dim=-1, keepdim=True).clamp(min=1)
    return weights / _limit(size, aggregation) if aggregation == "seq-mean-token-sum-norm" else weights


def _limit(size: BatchSize, aggregation: str) -> int:
    if size.max_response_length is None or size.max_response_length < 1:
        whose = "dr_grpo, dppo" if aggregation == "seq-mean-token-sum-norm" else "length_normalise delta-l"
        raise ValueError(
            f"aggregation '{aggregation}' ({whose}) divides by a constant length: pass max_response_length, the response limit"
            " in tokens"
        )
    return size.max_response_length


def pull_on_tokens(weights: torch.Tensor, amounts: torch.Tensor, product: bool) -> torch.Tensor:
    """Minus the derivative of the loss by the log-prob of one of a row's tokens at ratio 1 and a unit advantage, [..., B].

    `weights` [..., B, T] as of `token_weights`. `product`: the row's ratio is the product of its token ratios, which each of them
    changes whole; of their mean, as of a ratio of its own, each changes its part.
    """
    whole = weights.sum(dim=-1)
    return whole if product else whole / amounts.sum(dim=-1).clamp(min=1)


def _positive(number: float | torch.Tensor, dtype: torch.dtype) -> float | torch.Tensor:
    # As below; a sum of negative powers of lengths may be under 1.
    if isinstance(number, torch.Tensor):
        return torch.where(number > 0, number, 1).to(dtype)[..., None, None]
    return number if number > 0 else 1.0


def _at_least_one(number: float | torch.Tensor) -> float | torch.Tensor:
    # An empty batch has only zero weights: any positive divisor gives 0 instead of 0/0.
    return number.clamp(min=1)[..., None, None] if isinstance(number, torch.Tensor) else max(number, 1.0)
