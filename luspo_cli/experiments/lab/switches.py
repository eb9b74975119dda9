"""One cause of length drift taken out at a time, and how much of the drift goes with it.

The recipe without the cause starts from the same policies and the same first responses, seed by seed, so what a cause adds to the
final length is a mean of paired differences. Effects need not add up to the whole drift: two causes may need each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from luspo_cli.config.lab import LabRolloutConfig, LabRun
from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.experiments.lab.experiment import LabHistory, run_experiment
from luspo_cli.experiments.lab.summary import over_seeds
from luspo_cli.metrics.intervals import Estimate

UNREACHED = 1e9
"""A bound that no ratio reaches."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What one cause adds to the final length of one objective, tokens; None: the recipe does not have this cause."""

    cause: str
    objective: str
    final_without: Estimate | None
    effect: Estimate | None
    """Final length with the cause less without it, paired by seed."""


def attribute(config: LabRun, base: LabHistory) -> list[Effect]:
    """The effect of each cause under `config`, whose own history is `base`."""
    effects = []
    for cause, remove in CAUSES.items():
        other = remove(config, base)
        if other is None:
            effects.append(Effect(cause, config.objective.name, None, None))
            continue
        history = run_experiment(other, base.seeds)
        final = history.final(history.length)
        difference = over_seeds(base.final(base.length) - final)
        effects.append(Effect(cause, config.objective.name, over_seeds(final), difference))
    return effects


def _changed(config: LabRun, section: str, **values: Any) -> LabRun:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def _with_objective(config: LabRun, objective: ObjectiveConfig) -> LabRun:
    return config.model_copy(update={"objective": objective})


def _with_part(config: LabRun, part: str, value: str) -> LabRun:
    """The mix of the objective's parts with another built-in one, which no name stands for."""
    if not config.objective.own_parts:
        return _with_objective(config, replace(config.objective, name="custom", **{part: value}))  # type: ignore[arg-type]
    # Functions of one's own are found by their name, under which the other parts are its base's: no such mix can be asked for.
    objective = copy(config.objective)
    object.__setattr__(objective, part, value)
    return _with_objective(config, objective)


def _without_bounds(config: LabRun, base: LabHistory, *, low: bool, high: bool) -> LabRun | None:
    objective = config.objective
    # A balanced range has no side of its own: without one the other would cut nothing either.
    if not objective.clips or (objective.clip_band == "balanced" and not (low and high)):
        return None
    # A ratio is never below 0; in log space, and of a divergence, there is no bound that is met by nothing.
    on_ratio = not (objective.clips_log_ratio or objective.clips_divergence)
    bounds = {"clip_low": 1.0 if on_ratio else UNREACHED} if low else {}
    if high:
        bounds["clip_high"] = UNREACHED
    if objective.clip_band == "balanced":
        objective = replace(objective, clip_band="fixed")
    return _with_objective(config, replace(objective, **bounds))  # type: ignore[arg-type]


def without_low_side(config: LabRun, base: LabHistory) -> LabRun | None:
    return _without_bounds(config, base, low=True, high=False)


def without_high_side(config: LabRun, base: LabHistory) -> LabRun | None:
    return _without_bounds(config, base, low=False, high=True)


def without_both_sides(config: LabRun, base: LabHistory) -> LabRun | None:
    return _without_bounds(config, base, low=True, high=True)


def without_balance(config: LabRun, base: LabHistory) -> LabRun | None:
    if config.objective.clip_band != "balanced":
        return None
    return _with_objective(config, replace(config.objective, clip_band="fixed"))


def without_length_division(config: LabRun, base: LabHistory) -> LabRun | None:
    if config.objective.aggregation != "seq-mean-token-mean":
        return None
    return _with_part(config, "aggregation", "seq-mean-token-sum")


def without_gradient_limit(config: LabRun, base: LabHistory) -> LabRun | None:
    return _changed(config, "update", gradient_clip=0.0) if config.update.gradient_clip else None


def without_std(config: LabRun, base: LabHistory) -> LabRun | None:
    if config.objective.advantage != "group_mean_std":
        return None
    return _with_part(config, "advantage", "group_mean")


def without_adam(config: LabRun, base: LabHistory) -> LabRun | None:
    """SGD at the learning rate with which its steps are on average as long as AdamW's were."""
    if config.update.optimizer == "sgd":
        return None
    limit = config.update.gradient_clip
    norms = base.gradient_norm.clamp(max=limit) if limit else base.gradient_norm
    rate = float(base.update_norm.mean() / norms.mean())
    return _changed(config, "update", optimizer="sgd", learning_rate=rate)


def without_later_mini_batches(config: LabRun, base: LabHistory) -> LabRun | None:
    return _changed(config, "update", mini_batches=1) if config.update.mini_batches > 1 else None


def without_response_limit(config: LabRun, base: LabHistory) -> LabRun | None:
    far = LabRolloutConfig().max_response_tokens
    if config.rollout.max_response_tokens >= far:
        return None
    return _changed(config, "rollout", max_response_tokens=far)


CAUSES: Mapping[str, Callable[[LabRun, LabHistory], LabRun | None]] = MappingProxyType(
    {
        "low side of the clip": without_low_side,
        "high side of the clip": without_high_side,
        "both sides": without_both_sides,
        "balance of the sides": without_balance,
        "1/|y|": without_length_division,
        "gradient limit": without_gradient_limit,
        "std of the advantage": without_std,
        "Adam": without_adam,
        "later mini-batches": without_later_mini_batches,
        "response limit": without_response_limit,
    }
)
"""Name of a cause → the recipe without it, or None where the recipe does not have it."""


def causes_present(effects: Sequence[Effect]) -> list[str]:
    """The causes that at least one of the objectives has, in their order."""
    present = {found.cause for found in effects if found.effect is not None}
    return [cause for cause in CAUSES if cause in present]
