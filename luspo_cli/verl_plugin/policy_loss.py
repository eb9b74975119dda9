"""Our objectives as policy losses of verl: verl's arguments → `objectives.policy_loss` → verl's (loss, metrics).

verl imports this module with every `import verl`, through the entry point `verl.plugins`, in the driver and in each Ray worker of
every node that luspo is installed on; the import registers the names of `VERL_LOSSES`. An entry point that raises is skipped by
verl in silence, so what is wrong is logged here before it is raised, and `check` finds it before a run.

Decided here: what verl's configuration says and what is computed are the same. `loss_agg_mode` also scales verl's own KL and
entropy terms, so a value that contradicts the objective is refused. The loss of a micro-batch is its part of the whole
mini-batch's: divided by verl's global counts, to be summed over micro-batches, times the number of ranks over which gradients are
averaged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch

from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.config.verl_losses import OLDEST_VERL, VERL_LOSSES, VerlLoss, verl_too_old
from luspo_cli.objectives import Counts, policy_loss

METRICS = (
    "objective/clip_low_fraction",
    "objective/clip_high_fraction",
    "objective/dual_clip_fraction",
    "ratio/mean",
    "policy/kl_old",
)
"""Those of our diagnostics that verl can average over micro-batches and ranks: under `actor/`, each micro-batch's own mean."""
_LOG = logging.getLogger("luspo")
_UNSET_CLIP = 0.2


def register() -> None:
    """Put the names into verl's registry; ImportError for a verl that is too old, logged as an error."""
    import verl

    if refusal := version_refused(verl.__version__):
        _LOG.error(refusal)
        raise ImportError(refusal)
    from verl.trainer.ppo.core_algos import register_policy_loss

    for name, loss in VERL_LOSSES.items():
        register_policy_loss(name)(_as_verl_calls_it(name, loss))


def version_refused(version: str) -> str:
    """Why the plug-in does not work with this verl; empty where it does."""
    if not verl_too_old(version):
        return ""
    oldest = ".".join(map(str, OLDEST_VERL))
    return (
        f"verl {version} is too old for luspo's objectives: install verl {oldest} or newer (pip install verl=={oldest})"
    )


def _as_verl_calls_it(name: str, loss: VerlLoss) -> Callable[..., tuple[torch.Tensor, dict[str, float]]]:
    def luspo_policy_loss(
        old_log_prob: torch.Tensor,
        log_prob: torch.Tensor,
        advantages: torch.Tensor,
        response_mask: torch.Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss [] and metrics of a micro-batch of [B, T] tensors; `config` is verl's ActorConfig."""
        if config is None:
            raise ValueError(f"{name} needs verl's configuration of the actor: pass config")
        objective = _objective(name, loss, loss_agg_mode, _numbers(config, loss))
        info = config.global_batch_info
        mask = response_mask != 0
        ranks = info.get("dp_size") or 1
        counts = _counts(name, info, ranks, mask)
        result = policy_loss(
            objective,
            log_prob,
            old_log_prob,
            _one_a_sequence(name, advantages, mask),
            mask,
            max_response_length=_response_limit(name, objective, config),
            counts=counts,
            rollout_weights=rollout_is_weights,
        )
        return result.loss * ranks, _metrics(result.diagnostics, objective, counts, mask)

    luspo_policy_loss.__name__ = luspo_policy_loss.__qualname__ = name
    return luspo_policy_loss


def _numbers(config: Any, loss: VerlLoss) -> tuple[tuple[float, float], float | None, tuple[float, float]]:
    # Those that the objective does not read are taken along: verl has a default for each.
    low, high = (
        config.clip_ratio if value is None else value for value in (config.clip_ratio_low, config.clip_ratio_high)
    )
    return (low, high), config.clip_ratio_c if loss.dual_clip else None, (config.tau_pos, config.tau_neg)


@lru_cache(maxsize=64)
def _objective(name: str, loss: VerlLoss, aggregation: str, numbers: tuple[Any, Any, Any]) -> ObjectiveConfig:
    """The objective of a run, made once; what does not fit is refused and what is unlikely is said."""
    if loss.aggregation is not None and aggregation != loss.aggregation:
        raise ValueError(
            f"loss_mode={name} aggregates by {loss.aggregation} and loss_agg_mode is {aggregation}, which would scale the KL and "
            f"entropy terms otherwise: set actor_rollout_ref.actor.loss_agg_mode={loss.aggregation}"
        )
    clip, dual_clip, temperatures = numbers
    try:
        objective = loss.objective(aggregation, clip=clip, dual_clip=dual_clip, temperatures=temperatures)
    except ValueError as error:
        raise ValueError(f"loss_mode={name}: {error}") from None
    if objective.by_sequence and objective.clips and clip == (_UNSET_CLIP, _UNSET_CLIP):
        _LOG.warning(
            f"loss_mode={name} clips a sequence ratio at verl's default of {_UNSET_CLIP}, which clips almost nothing: set "
            "actor_rollout_ref.actor.clip_ratio_low and clip_ratio_high (clip_ratio alone changes nothing)"
        )
    return objective


def _counts(name: str, info: Mapping[str, Any], ranks: int, mask: torch.Tensor) -> Counts | None:
    """verl's size of the whole mini-batch; None where it says nothing and these rows are all there is."""
    sequences, tokens = info.get("global_batch_size"), info.get("batch_num_tokens")
    if sequences is None and tokens is None and ranks == 1:
        return None
    if sequences is None or tokens is None:
        raise ValueError(
            f"{name} needs both global_batch_size and batch_num_tokens in global_batch_info, got {sequences} and {tokens}"
        )
    return Counts(sequences=float(sequences), tokens=float(tokens))


def _one_a_sequence(name: str, advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The advantage [B] of each row from verl's [B, T], 0 for a row without a token."""
    inside = torch.where(mask, advantages, 0)
    first = mask & (mask.cumsum(dim=-1) == 1)
    advantage = torch.where(first, inside, 0).sum(dim=-1)
    if ((inside - advantage[:, None]).abs() * mask > 0).any():  # NaN is no difference: it reaches the loss
        raise ValueError(
            f"{name} takes one advantage a response and algorithm.adv_estimator gave its tokens different ones: "
            "set algorithm.adv_estimator=grpo"
        )
    return advantage


def _response_limit(name: str, objective: ObjectiveConfig, config: Any) -> int | None:
    if objective.aggregation != "seq-mean-token-sum-norm":
        return None
    if config.loss_scale_factor is None:
        raise ValueError(
            f"loss_mode={name} divides by a constant length: set actor_rollout_ref.actor.loss_scale_factor to "
            "data.max_response_length, for without it verl divides by the width of each micro-batch"
        )
    return int(config.loss_scale_factor)


def _metrics(
    diagnostics: Mapping[str, float], objective: ObjectiveConfig, counts: Counts | None, mask: torch.Tensor
) -> dict[str, float]:
    """verl takes the mean over micro-batches: each gives its own mean, where our diagnostics are parts of a sum."""
    sequences, tokens = (int(number) for number in torch.stack([mask.any(dim=-1).sum(), mask.sum()]).tolist())
    by_token = counts.tokens / max(tokens, 1) if counts else 1.0
    by_unit = counts.sequences / max(sequences, 1) if counts and objective.by_sequence else by_token
    found = {
        f"actor/{key}": diagnostics[key] * (by_token if key == "policy/kl_old" else by_unit)
        for key in METRICS
        if key in diagnostics
    }
    return found if tokens else found | {"actor/ratio/mean": 1.0}


register()
