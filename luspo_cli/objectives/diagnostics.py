"""What an update step reports beside its loss, in a form that micro-batches and ranks can combine.

Every value but two is a sum already divided by the mini-batch's global counts, so the values of micro-batches (and
ranks) are SUMMED to get the mini-batch's; `ratio/min` and `ratio/max` combine by min and max, and are absent where
there was no token. `combine_diagnostics` does both.

| key | unit |
| --- | --- |
| objective/loss | scale of the aggregation |
| objective/policy_term, objective/kl_term, objective/entropy_term | same scale, before their coefficients; only where \
the loss has more than a policy term |
| objective/clip_low_fraction, objective/clip_high_fraction | share of units whose gradient that bound removed; \
for cispo, whose weight it capped; for sapo 0 |
| objective/dual_clip_fraction | share of units at the dual clip; only with dual_clip |
| ratio/mean, ratio/min, ratio/max | the importance ratio, over units |
| policy/kl_old | k3 estimate of KL(old ‖ policy), nats per token |
| policy/kl_ref | k3 estimate of KL(policy ‖ reference), nats per token; only with ref_logprobs |
| policy/entropy | nats per token; only with entropy |

A unit is a sequence where the objective has a sequence ratio, a token where it has a token ratio.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from luspo_cli.config.objective import NAMED_OBJECTIVES, resolve
from luspo_cli.errors import nearest

MINIMUM_KEYS = frozenset({"ratio/min"})
MAXIMUM_KEYS = frozenset({"ratio/max"})


def unit_mean(values: torch.Tensor, amounts: torch.Tensor, units: float | torch.Tensor) -> torch.Tensor:
    """Σ of `values` · `amounts` / max(units, 1) over each batch [...]; what stands where an amount is 0 is never read.

    `amounts`: how many units an element ([..., B, T] tokens or [..., B, 1] sequences) stands for; a bool mask says 1 or 0.
    """
    divisor = units.clamp(min=1) if isinstance(units, torch.Tensor) else max(units, 1.0)
    return (torch.where(amounts != 0, values, 0) * amounts).sum(dim=(-2, -1)) / divisor


def ratio_range(ratio: torch.Tensor, amounts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and greatest ratio [...] over the units of each batch; (inf, −inf) where there is none."""
    if ratio.numel() == 0:
        return ratio.new_full(ratio.shape[:-2], math.inf), ratio.new_full(ratio.shape[:-2], -math.inf)
    present = amounts != 0
    least, greatest = torch.where(present, ratio, math.inf), torch.where(present, ratio, -math.inf)
    return least.amin(dim=(-2, -1)), greatest.amax(dim=(-2, -1))


def as_floats(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Scalar tensors as floats with one transfer from the device; an empty range (infinite) is left out."""
    numbers = torch.stack([value.detach().double() for value in values.values()]).tolist()
    ranges = MINIMUM_KEYS | MAXIMUM_KEYS
    return {
        key: number for key, number in zip(values, numbers, strict=True) if key not in ranges or math.isfinite(number)
    }


def combine_diagnostics(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mini-batch's diagnostics from those of its micro-batches, all computed with the same global counts."""
    combined: dict[str, float] = {}
    for part in parts:
        for key, value in part.items():
            if key not in combined:
                combined[key] = value
            elif key in MINIMUM_KEYS:
                combined[key] = min(combined[key], value)
            elif key in MAXIMUM_KEYS:
                combined[key] = max(combined[key], value)
            else:
                combined[key] += value
    return combined


def length_pressure(advantages: Sequence[float], lengths: Sequence[int], weighting: str) -> float:
    """P = Σ_i w_i A_i (|y_i| − mean|y|) / Σ_i |w_i A_i| in tokens, before any clipping.

    `weighting` is an objective's name: w = 1/|y_i| where its aggregation divides by the length (grpo, gspo), 1 where
    it does not (luspo). Above 0, the update favours responses longer than the batch's mean. A diagnostic and no
    prediction: under sequence clipping its sign often differs from the trend. Rows of length 0 are left out; 0.0 where
    no advantage is left.
    """
    if len(advantages) != len(lengths):
        raise ValueError(
            f"length_pressure needs one length for each advantage, got {len(lengths)} and {len(advantages)}"
        )
    if weighting not in NAMED_OBJECTIVES:
        raise ValueError(
            f"unknown weighting '{weighting}'{nearest(weighting, NAMED_OBJECTIVES)}: give an objective's name"
        )
    if resolve(weighting).needs_group_ids:
        raise ValueError(f"the weights of {weighting} follow from the groups, which length_pressure is not told")
    per_length = NAMED_OBJECTIVES[weighting].aggregation == "seq-mean-token-mean"
    tokens = torch.tensor(lengths, dtype=torch.float64)
    weighted, counted = torch.tensor(advantages, dtype=torch.float64)[tokens > 0], tokens[tokens > 0]
    if per_length:
        weighted = weighted / counted
    total = float(weighted.abs().sum())
    return float((weighted * (counted - counted.mean())).sum()) / total if total > 0 else 0.0
