"""The loss of one token (or, with a sequence ratio, of one sequence) before any aggregation.

All are written as losses (to minimise), per element, with no reduction. `ratio` is [B, T] (token) or [B, 1] (sequence)
and `advantages` [B, 1]. Which branch a clip takes is decided by an explicit comparison instead of `torch.minimum`, so
that a ratio exactly on the edge keeps its whole gradient and the reported clip fractions count exactly the elements
whose gradient was removed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from luspo_cli.objectives.ratio import (
    MAX_SEQUENCE_LOG_RATIO,
    MAX_TOKEN_LOG_RATIO,
    ClipPosition,
    masked_mean,
    token_ratio,
)

Bound = float | torch.Tensor
"""A distance of a clip bound; a tensor that broadcasts against [..., B, 1] holds one for each of several batches."""


class SurrogateLoss(NamedTuple):
    """Losses, and marks [B, T] or [B, 1] where a bound was active; a mark is None where the form has no such bound."""

    loss: torch.Tensor  # [B, T] or [B, 1]
    clipped_low: torch.Tensor | None
    clipped_high: torch.Tensor | None
    dual_clipped: torch.Tensor | None = None


def clip_surrogate(
    ratio: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: Bound,
    clip_high: Bound,
    dual_clip: float | None = None,
    scale: ClipPosition | None = None,
) -> SurrogateLoss:
    """−min(r·A, clip(r, 1−clip_low, 1+clip_high)·A); where A < 0 and dual_clip = c, not above −c·A.

    With a log `scale` its positions decide against −clip_low and clip_high, and the ratio is held at that point of the scale:
    the bounds of r are exp(−clip_low·step) and exp(clip_high·step).
    """
    if scale is None:
        lower, upper = 1 - clip_low, 1 + clip_high
        below, above = ratio < lower, ratio > upper
    else:
        lower, upper = (scale.step * -clip_low).exp(), (scale.step * clip_high).exp()
        below, above = scale.position < -clip_low, scale.position > clip_high
    clipped_high, clipped_low = above & (advantages > 0), below & (advantages < 0)
    bounded = torch.where(clipped_low, lower, torch.where(clipped_high, upper, ratio))
    dual_clipped = None
    if dual_clip is not None:
        dual_clipped = (ratio > dual_clip) & (advantages < 0)
        bounded = bounded.masked_fill(dual_clipped, dual_clip)
    return SurrogateLoss(-bounded * advantages, clipped_low, clipped_high, dual_clipped)


def cispo_surrogate(
    ratio: torch.Tensor, logprobs: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float
) -> SurrogateLoss:
    """−sg(clip(r, 1−clip_low, 1+clip_high))·A·log π: the weight is capped, no token loses its gradient."""
    weight = ratio.detach()
    bounded = weight.clamp(1 - clip_low, 1 + clip_high)
    return SurrogateLoss(-bounded * advantages * logprobs, weight < 1 - clip_low, weight > 1 + clip_high)


def dppo_surrogate(
    log_ratio: torch.Tensor,
    logprobs: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float,
    clip_high: float,
    cap: float | None,
    kl: bool,
) -> SurrogateLoss:
    """−sg(min(r, cap))·A·log π, and 0 for a token that has moved too far in its advantage's direction (DPPO, arXiv 2602.04879).

    How far is the divergence of two coins, this token or any other: |π − π_old|, or with `kl` KL(π_old ‖ π) in nats. The bound
    is clip_high where π has grown and A > 0, clip_low where it has fallen and A < 0. Both bounds read probabilities, not ratios.
    """
    now = logprobs.detach().exp()
    before = (logprobs - log_ratio).detach().exp()
    moved = now - before
    size = moved.abs()
    if kl:
        # The small term, as in the authors' code, keeps the logarithm finite where a probability is 1.
        others, others_before = ((1 - part).clamp(min=0) + 1e-8 for part in (now, before))
        size = before * -log_ratio.detach() + (1 - before) * (others_before / others).log()
    clipped_high = (size > clip_high) & (moved > 0) & (advantages > 0)
    clipped_low = (size > clip_low) & (moved < 0) & (advantages < 0)
    weight = token_ratio(log_ratio.detach())
    if cap is not None:
        weight = weight.clamp(max=cap)
    loss = -weight * advantages * logprobs
    return SurrogateLoss(loss.masked_fill(clipped_low | clipped_high, 0), clipped_low, clipped_high)


def vespo_surrogate(
    log_ratio: torch.Tensor,
    amounts: torch.Tensor,
    logprobs: torch.Tensor,
    advantages: torch.Tensor,
    positive: tuple[float, float],
    negative: tuple[float, float],
) -> SurrogateLoss:
    """−sg(φ(ρ))·A·log π with φ(ρ) = ρ^k·exp(λ(1−ρ)) of the product ρ of the row's token ratios (VESPO, arXiv 2602.10693).

    (k, λ) is `positive` where A ≥ 0 and `negative` elsewhere. Clamps as TRL has them from the authors' code: token log-ratios at
    ±20, their sum at log 1e-8 and 20.
    """
    bounded = log_ratio.detach().clamp(-MAX_TOKEN_LOG_RATIO, MAX_TOKEN_LOG_RATIO)
    log_product = (bounded * amounts).sum(dim=-1, keepdim=True).clamp(math.log(1e-8), 20.0)
    power, rate = (
        torch.where(advantages >= 0, plus, minus).to(logprobs.dtype)
        for plus, minus in zip(positive, negative, strict=True)
    )
    weight = (power * log_product + rate * (1 - log_product.exp())).exp()
    return SurrogateLoss(-weight * advantages * logprobs, None, None)


def reinforce_surrogate(logprobs: torch.Tensor, advantages: torch.Tensor) -> SurrogateLoss:
    """−A·log π: no importance ratio and no bound (Williams 1992)."""
    return SurrogateLoss(-advantages * logprobs, None, None)


def sapo_surrogate(
    ratio: torch.Tensor, advantages: torch.Tensor, temperature_positive: float, temperature_negative: float
) -> SurrogateLoss:
    """−(4/τ)·σ(τ·(r−1))·A with τ = temperature_positive where A > 0, temperature_negative elsewhere."""
    temperature = torch.full_like(advantages, temperature_negative).masked_fill(advantages > 0, temperature_positive)
    return SurrogateLoss(-(4 / temperature) * torch.sigmoid(temperature * (ratio - 1)) * advantages, None, None)


def gmpo_surrogate(
    log_ratio: torch.Tensor, amounts: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float
) -> SurrogateLoss:
    """−A·exp(1/|y| Σ_t ℓ_t) [B, 1]: ℓ_t = min(log r_t, clip_high) where A > 0, max(log r_t, −clip_low) where A < 0."""
    clipped_high = (log_ratio > clip_high) & (advantages > 0)
    clipped_low = (log_ratio < -clip_low) & (advantages < 0)
    bounded = log_ratio.masked_fill(clipped_high, clip_high).masked_fill(clipped_low, -clip_low)
    geometric_mean = masked_mean(bounded, amounts).clamp(max=MAX_SEQUENCE_LOG_RATIO).exp()
    return SurrogateLoss(-advantages * geometric_mean, clipped_low, clipped_high)
