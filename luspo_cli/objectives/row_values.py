"""What a loss did with each of its rows: ratio, cut shares, weight. Stored with the rollouts and summed up by length."""

from __future__ import annotations

from typing import NamedTuple

import torch

from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.objectives.aggregation import pull_on_tokens
from luspo_cli.objectives.ratio import sequence_ratio
from luspo_cli.objectives.surrogate import SurrogateLoss


class RowValues(NamedTuple):
    """Numbers [..., B] of each row, without gradient; a row without a token has ratio 1 and otherwise 0."""

    sequence_ratio: torch.Tensor
    """exp of the mean of the row's token log-ratios, whatever ratio the objective has."""
    clip_low: torch.Tensor
    """Share of its units (1 sequence or its tokens) whose gradient the lower bound removed."""
    clip_high: torch.Tensor
    dual_clip: torch.Tensor
    weight: torch.Tensor
    """What one of its tokens weighs: minus the derivative of the loss by its log-prob at ratio 1, a unit advantage, times N."""
    log_ratio: torch.Tensor
    """Of each token, [..., B, T]; 0 where masked."""

    @property
    def kept(self) -> torch.Tensor:
        """Share of its units whose gradient no bound removed."""
        return 1 - self.clip_low - self.clip_high - self.dual_clip


def row_values(
    config: ObjectiveConfig,
    surrogate: SurrogateLoss,
    log_ratio: torch.Tensor,
    token_weights: torch.Tensor,
    amounts: torch.Tensor,
    sequences: float | torch.Tensor,
) -> RowValues:
    """The rows of a batch from what `policy_loss` made of it.

    `token_weights` [..., B, T]: of an element, times the `amounts` of tokens that stand there; `sequences`: of the whole batch.
    """
    log_ratio = log_ratio.detach()
    tokens = amounts.sum(dim=-1).clamp(min=1)

    def share(mark: torch.Tensor | None) -> torch.Tensor:
        # The marks of cispo say where its weight is capped: the gradient stays.
        if mark is None or config.surrogate == "cispo":
            return log_ratio.new_zeros(log_ratio.shape[:-1])
        return (mark * amounts).sum(dim=-1).to(log_ratio.dtype) / tokens

    return RowValues(
        sequence_ratio=sequence_ratio(log_ratio, amounts)[..., 0],
        clip_low=share(surrogate.clipped_low),
        clip_high=share(surrogate.clipped_high),
        dual_clip=share(surrogate.dual_clipped),
        weight=row_weight(config, token_weights, amounts, sequences),
        log_ratio=log_ratio,
    )


def row_weight(
    config: ObjectiveConfig, token_weights: torch.Tensor, amounts: torch.Tensor, sequences: float | torch.Tensor
) -> torch.Tensor:
    """The `weight` of `RowValues`, [..., B], from what `row_values` takes."""
    number = sequences[..., None] if isinstance(sequences, torch.Tensor) else sequences
    return pull_on_tokens(token_weights, amounts, config.pulls_whole) * number
