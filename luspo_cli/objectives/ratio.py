"""Importance ratios between the policy and the policy that the old log-probs belong to.

The sequence ratio is GSPO's (arXiv 2507.18071, equation 7): the geometric mean of the token ratios, one number a
sequence that carries gradient, kept as [B, 1] so that it broadcasts against [B, T]. Their product, which is the importance
weight itself, is FSPO's (arXiv 2509.09177).

Clamps, so that a value far outside any trust region stays finite: token log-ratios at ±20, sequence log-ratios at +10
(the bounds that verl uses). Beyond a clamp the gradient is 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from luspo_cli.config.objective import LENGTH_POWERS, ClipOn

MAX_TOKEN_LOG_RATIO = 20.0
MAX_SEQUENCE_LOG_RATIO = 10.0


def token_log_ratio(logprobs: torch.Tensor, old_logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """log π(y_t) − log π_old(y_t) [B, T], exactly 0 where the bool `mask` is False whatever stands there."""
    # `where` on each input, not on the difference: a NaN in the dead branch of a product would reach the gradient.
    zero = logprobs.new_zeros(())
    return torch.where(mask, logprobs, zero) - torch.where(mask, old_logprobs, zero)


def token_ratio(log_ratio: torch.Tensor) -> torch.Tensor:
    """r_t = exp(log ratio) [B, T], the log ratio clamped at ±20."""
    return log_ratio.clamp(-MAX_TOKEN_LOG_RATIO, MAX_TOKEN_LOG_RATIO).exp()


def masked_mean(values: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
    """Mean of `values` [..., B, T] over each row's tokens, [..., B, 1]; 0 for a row without one.

    `amounts`: a bool mask, or how many tokens each element stands for. Values must be finite where it is 0.
    """
    lengths = amounts.sum(dim=-1, keepdim=True).clamp(min=1)
    return (values * amounts).sum(dim=-1, keepdim=True) / lengths


def sequence_ratio(log_ratio: torch.Tensor, amounts: torch.Tensor, product: bool = False) -> torch.Tensor:
    """s = exp(1/|y| Σ_t log ratio_t) [..., B, 1] with gradient, its log clamped at +10; 1 for a row without a token.

    `product`: exp(Σ_t log ratio_t) instead, its log clamped alike.
    """
    whole = (log_ratio * amounts).sum(dim=-1, keepdim=True) if product else masked_mean(log_ratio, amounts)
    return whole.clamp(max=MAX_SEQUENCE_LOG_RATIO).exp()


class ClipPosition(NamedTuple):
    """Where sequences stand on the log scale of a clip range, [..., B, 1], without gradient."""

    position: torch.Tensor
    """The mean of the token log-ratios times √|y| or |y|."""
    step: torch.Tensor
    """Change of the log of the sequence ratio for a change of 1 on the scale."""


def clip_position(log_ratio: torch.Tensor, amounts: torch.Tensor, clip_on: ClipOn, product: bool) -> ClipPosition:
    """The scale `root` or `sum` of a clip range, for a sequence ratio that is a geometric mean or the `product`."""
    lengths = amounts.sum(dim=-1, keepdim=True).clamp(min=1).to(log_ratio.dtype)
    unit = lengths ** LENGTH_POWERS[clip_on]
    return ClipPosition(masked_mean(log_ratio.detach(), amounts) * unit, (lengths if product else 1) / unit)
