"""How far the sampler's log-probs are from the policy's, and the truncated importance weights that correct for it.

A sampler with kernels of its own draws from a policy that is a little off the one that is trained: the update is off-policy
before its first step. Yao et al. (2025, "Your efficient RL framework secretly brings you off-policy training") weight each
token by min(π_old/π_sampler, cap). Of a whole sequence there are two weights: the geometric mean over its tokens, which is how
GSPO and LUSPO make their own ratio (`sequence`), and the product (`sequence-product`, verl's `sequence`). The product is the
exact importance weight, and a length weight of its own: the same gap of -0.002 a token gives 0.98 to ten tokens and 0.14 to a
thousand. The mean is the same number for both. The weight carries no gradient and is the `rollout_weights` of `policy_loss`.

A token weight is refused for a loss that is one number a sequence (GSPO, LUSPO, GMPO): such a loss counts |y| equal tokens, so
unequal token weights would replace the length |y| of LUSPO by their sum. A sequence weight multiplies the sequence's term and
leaves its length alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from luspo_cli.objectives.ratio import MAX_TOKEN_LOG_RATIO, token_log_ratio

CorrectionLevel = Literal["token", "sequence", "sequence-product"]


@dataclass(slots=True)
class SamplerMismatch:
    """Sums over the rollouts of one step; micro-batches and ranks add theirs (`largest` by maximum)."""

    tokens: float = 0.0
    absolute: float = 0.0
    largest: float = 0.0
    sequences: float = 0.0
    weight: float = 0.0
    weight_squared: float = 0.0
    weights: float = 0.0
    capped: float = 0.0

    def add(self, other: SamplerMismatch) -> None:
        """Take in the sums of other rollouts."""
        largest = max(self.largest, other.largest)
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.largest = largest

    def metrics(self) -> dict[str, float]:
        """The numbers of metrics.jsonl; empty where no rollout had log-probs.

        effective_sample_size = (Σ w)² / (n Σ w²) over the n rollouts with w = Π_t π_old/π_sampler, in [1/n, 1].
        """
        if not self.tokens:
            return {}
        found = {
            "sampler/logprob_difference_mean": self.absolute / self.tokens,
            "sampler/logprob_difference_max": self.largest,
            "sampler/effective_sample_size": self.weight**2 / (self.sequences * self.weight_squared),
        }
        if self.weights:
            found["sampler/capped_fraction"] = self.capped / self.weights
        return found


def sampler_mismatch(old_logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor) -> SamplerMismatch:
    """Sums over rows [B, T] of |log π_old − log π_sampler| and of the sequences' weights; `mask` is bool."""
    log_ratio = token_log_ratio(old_logprobs.double(), rollout_logprobs.double(), mask)
    present = mask.any(-1)
    if not bool(present.any()):
        return SamplerMismatch()
    weights = log_ratio.sum(-1).clamp(-MAX_TOKEN_LOG_RATIO, MAX_TOKEN_LOG_RATIO)[present].exp()
    sums = [mask.sum(), log_ratio.abs().sum(), log_ratio.abs().max(), present.sum(), weights.sum(), (weights**2).sum()]
    return SamplerMismatch(*torch.stack([value.double() for value in sums]).tolist())


def correction_weights(
    old_logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor, level: CorrectionLevel, cap: float
) -> tuple[Tensor, SamplerMismatch]:
    """Weights [B, T] without gradient, with r_t = π_old/π_sampler: token min(r_t, cap), sequence min((Π_t r_t)^(1/|y|), cap),
    sequence-product min(Π_t r_t, cap).

    Also how many of the weights there are (tokens or sequences) and how many stand at the cap. Log ratios are bounded at ±20.
    """
    log_ratio = token_log_ratio(old_logprobs.detach(), rollout_logprobs, mask)
    if level == "token":
        bounded, units = log_ratio.clamp(-MAX_TOKEN_LOG_RATIO, MAX_TOKEN_LOG_RATIO), mask
    else:
        whole = log_ratio.sum(-1, keepdim=True)
        if level == "sequence":
            whole = whole / mask.sum(-1, keepdim=True).clamp(min=1)
        bounded, units = whole.clamp(-MAX_TOKEN_LOG_RATIO, MAX_TOKEN_LOG_RATIO), mask.any(-1, keepdim=True)
    capped = (bounded > math.log(cap)) & units
    counts = SamplerMismatch(weights=float(units.sum()), capped=float(capped.sum()))
    return bounded.exp().clamp(max=cap).expand(mask.shape), counts
