"""Per-token estimators of KL(policy ‖ reference) from tokens that the policy sampled.

After Schulman, "Approximating KL divergence" (2020). k1 and k3 are unbiased as values, k3 is never negative; k2 is
biased but has the right expected gradient when it is used as a loss, which k1 (expected gradient 0) has not. GRPO uses
k3 (arXiv 2402.03300, equation 4).
"""

from __future__ import annotations

import torch

from luspo_cli.config.objective import KlEstimator
from luspo_cli.objectives.ratio import MAX_TOKEN_LOG_RATIO


def kl_k1(log_ratio: torch.Tensor) -> torch.Tensor:
    """ℓ with ℓ = log π − log π_ref [B, T], nats per token."""
    return log_ratio


def kl_k2(log_ratio: torch.Tensor) -> torch.Tensor:
    """ℓ²/2 with ℓ = log π − log π_ref [B, T], nats per token."""
    return log_ratio.square() / 2


def kl_k3(log_ratio: torch.Tensor) -> torch.Tensor:
    """exp(−ℓ) − 1 + ℓ with ℓ = log π − log π_ref [B, T] clamped at ±20, nats per token, never negative."""
    bounded = log_ratio.clamp(-MAX_TOKEN_LOG_RATIO, MAX_TOKEN_LOG_RATIO)
    return torch.expm1(-bounded) + bounded


KL_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def kl_estimate(log_ratio: torch.Tensor, estimator: KlEstimator) -> torch.Tensor:
    """The named estimator of ℓ = log π − log π_ref [B, T]."""
    return KL_ESTIMATORS[estimator](log_ratio)
