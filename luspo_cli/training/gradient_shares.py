"""Which responses the gradient comes from: right or wrong, short or long; estimated at the logits, and exactly on request.

For a softmax the derivative of log π(token) by the logits is onehot - p, of squared norm 1 - 2p + Σ p². Times the derivative of
the loss by that log-prob, which holds weight, advantage, ratio and clip, it is the loss's gradient at the logits of one position.
Positions have logits of their own, so squared norms add up over tokens and rows. It is an estimate: in the weights, which all
positions share, gradients of many rows add up where they agree and cancel where they do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luspo_cli.records import ScoredGroup

PAIRS = (("right", "wrong"), ("short", "long"))
ESTIMATE, EXACT = "gradient_share", "exact_gradient_share"


def row_classes(groups: Sequence[ScoredGroup]) -> dict[str, NDArray[np.bool_]]:
    """Class -> whether each rollout of `groups` is in it; short: no longer than the median response that has a token."""
    right = np.array([reward.verdict.correct for group in groups for reward in group.rewards], dtype=bool)
    lengths = np.array([rollout.response_length for group in groups for rollout in group.rollouts])
    present = lengths[lengths > 0]
    short = lengths <= (median(present.tolist()) if len(present) else 0)
    return {"right": right, "wrong": ~right, "short": short, "long": ~short}


@torch.no_grad()
def squared_norms(logprobs: Tensor, collision: Tensor) -> Tensor:
    """Squared norm [B] of each row's loss gradient at the logits, from log-probs [B, T] after `backward` and Σ p² [B, T].

    In units of the temperature and of what the loss was scaled by. NaN where no gradient came.
    """
    if logprobs.grad is None:
        return torch.full_like(logprobs[:, 0], torch.nan)
    of_token = (1 - 2 * logprobs.exp() + collision).clamp(min=0)
    return (logprobs.grad.square() * of_token).sum(dim=-1)


def estimated_norms(
    classes: Mapping[str, NDArray[np.bool_]], mini_batches: NDArray[np.float64], squared: NDArray[np.float64]
) -> dict[str, list[float]]:
    """Norm of each class in each mini-batch from the rows' squared norms; NaN in `mini_batches` where a row was not computed."""
    numbers = sorted(set(mini_batches[~np.isnan(mini_batches)].tolist()))
    return {
        name: [math.sqrt(squared[chosen & (mini_batches == number)].sum()) for number in numbers]
        for name, chosen in classes.items()
    }


def shares(norms: Mapping[str, Sequence[float]], prefix: str) -> dict[str, float]:
    """`prefix`/CLASS: norm of the class over that of the pair's both, mean over mini-batches; left out where there is none."""
    found: dict[str, float] = {}
    for pair in PAIRS:
        both = [(one, other) for one, other in zip(*(norms[name] for name in pair), strict=True) if one + other > 0]
        parts = [one / (one + other) for one, other in both if math.isfinite(one + other)]
        if parts:
            found |= {f"{prefix}/{pair[0]}": fmean(parts), f"{prefix}/{pair[1]}": 1 - fmean(parts)}
    return found
