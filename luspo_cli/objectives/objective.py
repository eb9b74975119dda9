"""One function from log-probs and advantages to a scalar to minimise: ratio, surrogate, aggregation, KL, entropy.

loss = policy term + kl_coefficient · KL term − entropy_coefficient · entropy term. All three terms use the same
per-token weights, that is, the aggregation of the objective: under seq-mean-token-sum (luspo) the KL term is nats per
sequence, under seq-mean-token-mean or token-mean nats per token. So the balance of the three terms, and the meaning of
a coefficient, is the same under every name, while their common scale is not.

Many batches can be computed at once, one loss each, and rows and tokens that are equal can be given once with their number: a
study over seeds with short descriptions of its responses then runs on the very code that trains a model.

Arithmetic runs in float32 at least, whatever the inputs' type; float64 stays float64. NaN at a trained position is not
hidden: it reaches the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from luspo_cli.config.objective import ObjectiveConfig, resolve
from luspo_cli.config.own_objective import OWN
from luspo_cli.objectives.aggregation import Counts, batch_size, token_weights
from luspo_cli.objectives.balance import balanced_shift, cut_points, shifted
from luspo_cli.objectives.diagnostics import as_floats, ratio_range, unit_mean
from luspo_cli.objectives.kl import kl_estimate, kl_k3
from luspo_cli.objectives.own import OwnParts, objective_batch
from luspo_cli.objectives.ratio import clip_position, sequence_ratio, token_log_ratio, token_ratio
from luspo_cli.objectives.row_values import RowValues, row_values, row_weight
from luspo_cli.objectives.surrogate import (
    SurrogateLoss,
    cispo_surrogate,
    clip_surrogate,
    dppo_surrogate,
    gmpo_surrogate,
    reinforce_surrogate,
    sapo_surrogate,
    vespo_surrogate,
)

_READ_BY_SURROGATE = (
    "ratio", "surrogate", "clip_low", "clip_high", "clip_on", "dual_clip", "ratio_cap",
    "sapo_temperature_positive", "sapo_temperature_negative",
    "vespo_k_positive", "vespo_k_negative", "vespo_lambda_positive", "vespo_lambda_negative",
)  # fmt: skip
"""What of an objective `_ratio` and `_surrogate` read, its advantages apart."""


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A loss and what to report with it (units and how to combine them: `diagnostics`)."""

    loss: torch.Tensor
    """Scalar to minimise; [S] for S batches. With `counts`, the losses of micro-batches are to be summed."""
    diagnostics: dict[str, float]
    """Of one batch; empty where there is a leading axis."""
    clipped: torch.Tensor
    """Whether a bound removed the gradient, bool [..., B, 1] where the loss is one number a sequence, [..., B, T] otherwise."""
    rows: RowValues
    """What became of each row, without gradient."""
    by_batch: dict[str, torch.Tensor] = field(default_factory=dict)
    """The diagnostics of each batch [S] where there is a leading axis."""


def policy_loss(
    objective: str | ObjectiveConfig,
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    clip_low: float | None = None,
    clip_high: float | None = None,
    max_response_length: int | None = None,
    counts: Counts | None = None,
    ref_logprobs: torch.Tensor | None = None,
    entropy: torch.Tensor | None = None,
    rollout_weights: torch.Tensor | None = None,
    token_counts: torch.Tensor | None = None,
    row_counts: torch.Tensor | None = None,
    clip_shift: float | None = None,
    group_ids: torch.Tensor | None = None,
) -> PolicyLoss:
    """The loss of `objective` over a batch; gradient flows to `logprobs` and `entropy` only.

    A leading axis on every tensor, [S, B, T] and [S, B], holds S batches (seeds) that know nothing of each other: the loss is
    [S], and each number is what a call with that batch alone would give.

    Args:
        objective: a name of `NAMED_OBJECTIVES` or of one's own (docs/own-objective.md), or a configuration.
        logprobs, old_logprobs: [B, T] natural logs; what stands at masked positions is never read.
        advantages: [B], one number a sequence.
        response_mask: [B, T], non-zero on trained tokens, any dtype, any padding side.
        clip_low, clip_high: override the objective's clip range.
        max_response_length: the response limit; divisor of seq-mean-token-sum-norm (dr_grpo), unused by the others.
        counts: size of the whole mini-batch where these rows are a part of it; without it they are the whole.
        ref_logprobs: [B, T]; required where kl_coefficient is above 0.
        entropy: [B, T] nats per token; required where entropy_coefficient is above 0.
        rollout_weights: [B, T] truncated importance weights (sampler → old policy) that multiply each token's policy
            loss. They never enter the ratio or a length: with a sequence ratio, a sequence is weighted by their mean.
        token_counts: [B, T], at least 1 on trained tokens: an element stands for so many tokens that are all alike.
        row_counts: [B], not negative: a row stands for so many equal rows; fractions (probabilities) are taken as they are.
        clip_shift: b of a balanced clip range for the whole mini-batch (`balance`); required beside `counts`, and otherwise
            found from the rows.
        group_ids: [B] integers from 0, equal for the responses to one prompt; required by objectives that `needs_group_ids`,
            unused by the others. A part of a mini-batch has the ids that its `counts.groups` was made with.

    Raises:
        ValueError: for shapes that do not match, an unknown name, or a missing input of a term that is switched on.
        RunError: where a function of an objective of one's own fails or returns something else than it must.
    """
    config = _configured(objective, clip_low, clip_high)
    per_token = {
        "old_logprobs": old_logprobs,
        "response_mask": response_mask,
        "ref_logprobs": ref_logprobs,
        "entropy": entropy,
        "rollout_weights": rollout_weights,
        "token_counts": token_counts,
    }
    per_row = {"advantages": advantages, "row_counts": row_counts, "group_ids": group_ids}
    _check_inputs(config, logprobs, per_token, per_row)
    if config.clip_band == "balanced" and counts is not None and clip_shift is None:
        raise ValueError(
            "clip_band is 'balanced' and these rows are a part: pass clip_shift, that of the whole mini-batch"
        )
    if config.clip_band != "balanced" and clip_shift is not None:
        raise ValueError(f"clip_shift is {clip_shift} and clip_band is not 'balanced': leave it out")
    dtype = torch.promote_types(torch.promote_types(logprobs.dtype, old_logprobs.dtype), torch.float32)
    mask = response_mask != 0
    row_mask = mask.any(dim=-1, keepdim=True)  # [..., B, 1]
    amounts = mask if token_counts is None else torch.where(mask, token_counts.to(dtype), 0)
    repeats = None if row_counts is None else row_counts.to(dtype)
    size = batch_size(config, amounts, repeats, advantages.detach(), group_ids, max_response_length, counts)
    sequences, tokens = size.sequences, size.tokens
    # How many sequences and how many tokens of the batch an element stands for.
    of_sequences, of_tokens = row_mask, amounts
    if repeats is not None:
        of_sequences, of_tokens = row_mask * repeats[..., None], amounts * repeats[..., None]

    logprobs = torch.where(mask, logprobs.to(dtype), 0)
    log_ratio = token_log_ratio(logprobs, old_logprobs.detach().to(dtype), mask)
    advantage = torch.where(row_mask, advantages.detach().to(dtype)[..., None], 0)  # [..., B, 1]
    own = None
    if config.own_parts:
        seen = objective_batch(config, logprobs, old_logprobs, log_ratio, advantage, mask, amounts, size, group_ids)
        own = OwnParts(config, seen)
    ratio = own.ratio() if own and config.ratio == OWN else _ratio(config, log_ratio, amounts)
    of_units, units = (of_sequences, sequences) if config.by_sequence else (of_tokens, tokens)

    weights = own.weights() if own and config.aggregation == OWN else token_weights(amounts, config, size, dtype)
    row_weights = weights
    if repeats is not None:
        weights = weights * repeats[..., None]
    shift: float | torch.Tensor = clip_shift or 0.0
    if config.clip_band == "balanced" and clip_shift is None:
        points = cut_points(config, log_ratio, amounts, advantages, repeats, size.divisors)
        shift = balanced_shift(points).to(dtype)[..., None, None]
    if own and config.surrogate == OWN:
        surrogate = own.surrogate(ratio)
    else:
        surrogate = _surrogate(config, ratio, log_ratio, logprobs, advantage, amounts, shift)
    policy_weights = weights
    if rollout_weights is not None:
        policy_weights = weights * torch.where(mask, rollout_weights.detach().to(dtype), 0)
    loss = policy_term = (policy_weights * surrogate.loss).sum(dim=(-2, -1))

    report: dict[str, torch.Tensor] = {}
    if ref_logprobs is not None:
        ref_log_ratio = token_log_ratio(logprobs, ref_logprobs.detach().to(dtype), mask)
        report["policy/kl_ref"] = unit_mean(kl_k3(ref_log_ratio.detach()), of_tokens, tokens)
        if config.kl_estimator is not None:
            kl_term = (weights * kl_estimate(ref_log_ratio, config.kl_estimator)).sum(dim=(-2, -1))
            report["objective/kl_term"] = kl_term
            loss = loss + config.kl_coefficient * kl_term
    if entropy is not None:
        token_entropy = torch.where(mask, entropy.to(dtype), 0)
        report["policy/entropy"] = unit_mean(token_entropy.detach(), of_tokens, tokens)
        if config.entropy_coefficient > 0:
            entropy_term = (weights * token_entropy).sum(dim=(-2, -1))
            report["objective/entropy_term"] = entropy_term
            loss = loss - config.entropy_coefficient * entropy_term
    report["objective/loss"] = loss
    if loss is not policy_term:
        report["objective/policy_term"] = policy_term
    with torch.no_grad():
        report["policy/kl_old"] = unit_mean(kl_k3(-log_ratio), of_tokens, tokens)
        report["ratio/mean"] = unit_mean(ratio, of_units, units)
        report["ratio/min"], report["ratio/max"] = ratio_range(ratio, of_units)
        report.update(_clip_fractions(surrogate, of_units, units))
        clipped = _clipped(config, surrogate)
        rows = row_values(config, surrogate, log_ratio, row_weights, amounts, sequences)
        if logprobs.dim() == 2:
            return PolicyLoss(loss, as_floats(report), clipped, rows)
        return PolicyLoss(loss, {}, clipped, rows, {key: value.detach() for key, value in report.items()})


@torch.no_grad()
def row_outcomes(
    objectives: Mapping[str, ObjectiveConfig],
    logprobs: torch.Tensor,
    log_ratio: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    counts: Mapping[str, Counts],
    max_response_length: int,
    group_ids: torch.Tensor | None = None,
) -> dict[str, RowValues]:
    """The `rows` that `policy_loss` would give for log-probs and token log-ratios [B, T] under each of `objectives`.

    Without its loss; a balanced clip range is taken as configured. Of built-in objectives: ValueError for one of one's own.
    """
    mask = response_mask != 0
    log_ratio, logprobs = torch.where(mask, log_ratio, 0), torch.where(mask, logprobs, 0)
    advantage = advantages.to(log_ratio.dtype)[:, None]
    found: dict[str, RowValues] = {}
    # Objectives that differ in their weights alone share what a surrogate costs.
    alike: dict[tuple[Any, ...], RowValues] = {}
    for name, config in objectives.items():
        if config.own_parts:
            raise ValueError(
                f"row_outcomes knows the built-in objectives, and {config.name} replaces {', '.join(config.own_parts)}"
            )
        size = batch_size(config, mask, None, advantages, group_ids, max_response_length, counts[name])
        weights = token_weights(mask, config, size, log_ratio.dtype)
        key = tuple(getattr(config, read) for read in _READ_BY_SURROGATE)
        if key in alike:
            weight = row_weight(config, weights, mask, counts[name].sequences)
            found[name] = alike[key]._replace(weight=weight)
        else:
            surrogate = _surrogate(config, _ratio(config, log_ratio, mask), log_ratio, logprobs, advantage, mask, 0.0)
            found[name] = row_values(config, surrogate, log_ratio, weights, mask, counts[name].sequences)
            alike[key] = found[name]
    return found


def _ratio(config: ObjectiveConfig, log_ratio: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
    if not config.by_sequence:
        return token_ratio(log_ratio)
    return sequence_ratio(log_ratio, amounts, config.ratio == "sequence-product")


def _configured(objective: str | ObjectiveConfig, clip_low: float | None, clip_high: float | None) -> ObjectiveConfig:
    clip: dict[str, Any] = {}
    if clip_low is not None:
        clip["clip_low"] = clip_low
    if clip_high is not None:
        clip["clip_high"] = clip_high
    if isinstance(objective, str):
        return resolve(objective, **clip)
    return replace(objective, **clip) if clip else objective


def _surrogate(
    config: ObjectiveConfig,
    ratio: torch.Tensor,
    log_ratio: torch.Tensor,
    logprobs: torch.Tensor,
    advantage: torch.Tensor,
    amounts: torch.Tensor,
    shift: float | torch.Tensor,
) -> SurrogateLoss:
    # ObjectiveConfig has filled what its surrogate reads, which the type checker cannot see.
    low, high = config.clip_low, config.clip_high
    if config.surrogate == "clip":
        scale = None
        if config.clip_on in ("root", "sum"):
            scale = clip_position(log_ratio, amounts, config.clip_on, config.ratio == "sequence-product")
        lower, upper = shifted(low, high, shift)  # type: ignore[arg-type]
        return clip_surrogate(ratio, advantage, lower, upper, config.dual_clip, scale)
    if config.surrogate == "cispo":
        return cispo_surrogate(ratio, logprobs, advantage, low, high)  # type: ignore[arg-type]
    if config.surrogate == "gmpo":
        return gmpo_surrogate(log_ratio, amounts, advantage, low, high)  # type: ignore[arg-type]
    if config.clips_divergence:
        kl = config.surrogate == "dppo-kl"
        return dppo_surrogate(log_ratio, logprobs, advantage, low, high, config.ratio_cap, kl)  # type: ignore[arg-type]
    if config.surrogate == "reinforce":
        return reinforce_surrogate(logprobs, advantage)
    if config.surrogate == "vespo":
        above = config.vespo_k_positive, config.vespo_lambda_positive
        below = config.vespo_k_negative, config.vespo_lambda_negative
        return vespo_surrogate(log_ratio, amounts, logprobs, advantage, above, below)  # type: ignore[arg-type]
    positive, negative = config.sapo_temperature_positive, config.sapo_temperature_negative
    return sapo_surrogate(ratio, advantage, positive, negative)  # type: ignore[arg-type]


def _clip_fractions(
    surrogate: SurrogateLoss, of_units: torch.Tensor, units: float | torch.Tensor
) -> dict[str, torch.Tensor]:
    marks = {"clip_low": surrogate.clipped_low, "clip_high": surrogate.clipped_high}
    if surrogate.dual_clipped is not None:
        marks["dual_clip"] = surrogate.dual_clipped
    none = surrogate.loss.new_zeros(surrogate.loss.shape[:-2])
    return {
        f"objective/{key}_fraction": none if mark is None else unit_mean(mark.to(none.dtype), of_units, units)
        for key, mark in marks.items()
    }


def _clipped(config: ObjectiveConfig, surrogate: SurrogateLoss) -> torch.Tensor:
    clipped = torch.zeros_like(surrogate.loss, dtype=torch.bool)
    if config.surrogate == "cispo":
        # Its marks say where the weight is capped: the gradient stays.
        return clipped
    for mark in (surrogate.clipped_low, surrogate.clipped_high, surrogate.dual_clipped):
        if mark is not None:
            clipped = clipped | mark
    return clipped


def _check_inputs(
    config: ObjectiveConfig,
    logprobs: torch.Tensor,
    per_token: Mapping[str, torch.Tensor | None],
    per_row: Mapping[str, torch.Tensor | None],
) -> None:
    if logprobs.dim() not in (2, 3):
        raise ValueError(f"logprobs must be [B, T], or [S, B, T] for S batches, got shape {tuple(logprobs.shape)}")
    for name, tensor in per_token.items():
        if tensor is not None and tensor.shape != logprobs.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, logprobs {tuple(logprobs.shape)}: they must agree"
            )
    for name, tensor in per_row.items():
        if tensor is not None and tensor.shape != logprobs.shape[:-1]:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}: give one number a sequence, {list(logprobs.shape[:-1])}"
            )
    if config.kl_coefficient > 0 and per_token["ref_logprobs"] is None:
        raise ValueError(f"kl_coefficient is {config.kl_coefficient}: pass ref_logprobs, or set it to 0")
    if config.entropy_coefficient > 0 and per_token["entropy"] is None:
        raise ValueError(f"entropy_coefficient is {config.entropy_coefficient}: pass entropy, or set it to 0")
