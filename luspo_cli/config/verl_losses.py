"""The names under which our objectives stand in verl's registry of policy losses, and the overrides that select one.

verl's configuration of a policy loss is closed: a loss cannot be given a key that verl does not know. So what an objective has
beyond verl's keys is in its name, which verl refuses where it is not registered, and not in an environment variable, which
would be missing on some node in silence:

    luspo                              an objective of the table, as it is: luspo, luspo_grpo, luspo_dapo, luspo_gspo, ...
    luspo_custom_sequence_cispo        `custom`: its ratio and its surrogate; its aggregation is verl's `loss_agg_mode`
    luspo_gspo_on_sum                  ... with `clip_on`, where the name has not fixed it
    luspo_grpo_dual_clip               ... with a dual clip at verl's `clip_ratio_c`, which is read under no other name

Not expressible: a balanced clip range, since verl calls the loss with one micro-batch; aggregations that ask which responses
answer one prompt, since it does not say; and numbers that its configuration has no key for (`_not_carried`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any, get_args

from luspo_cli.config.objective import (
    NAMED_OBJECTIVES,
    VESPO_KEYS,
    Aggregation,
    ClipOn,
    ObjectiveConfig,
    Ratio,
    Surrogate,
    resolve,
)
from luspo_cli.config.peers import ACTOR, RESPONSE_LIMIT, PeerSettings, Value, verl_terms

OLDEST_VERL = (0, 9, 1)
"""Releases before 0.9.1 call a loss otherwise, and their own gspo ignores `loss_agg_mode`."""
_VERSION = re.compile(
    r"v?(?:\d+!)?(?P<release>\d+(?:\.\d+)*)(?P<before>[-_.]?(?:a|alpha|b|beta|c|rc|pre|preview|dev)[-_.]?\d*)?", re.I
)


def verl_too_old(version: str) -> bool:
    """Whether this release of verl comes before `OLDEST_VERL`; its own pre-releases do (PEP 440), and what is no version."""
    found = _VERSION.match(version)
    if found is None:
        return True
    release = tuple(map(int, found["release"].split(".")))
    return release < OLDEST_VERL or (found["before"] is not None and release == OLDEST_VERL)


@dataclass(frozen=True, slots=True)
class VerlLoss:
    """What a registered name says of the objective; the numbers are in verl's configuration of the actor."""

    name: str
    """The objective's."""
    ratio: Ratio | None = None
    """Of `custom`, as is the surrogate."""
    surrogate: Surrogate | None = None
    clip_on: ClipOn | None = None
    """None: the objective's own."""
    dual_clip: bool = False

    def objective(
        self,
        aggregation: str,
        *,
        clip: tuple[float, float] | None = None,
        dual_clip: float | None = None,
        temperatures: tuple[float, float] | None = None,
    ) -> ObjectiveConfig:
        """The objective with verl's numbers, those that it reads; ValueError where they do not fit it."""
        values: dict[str, Any] = {"aggregation": aggregation, "clip_on": self.clip_on}
        if self.name == "custom":
            values |= {"advantage": "group_mean_std", "ratio": self.ratio, "surrogate": self.surrogate}
        if self.reads_temperatures:
            if temperatures is not None:
                values |= {"sapo_temperature_positive": temperatures[0], "sapo_temperature_negative": temperatures[1]}
        elif clip is not None and self.reads_clip:
            values |= {"clip_low": clip[0], "clip_high": clip[1]}
        if self.dual_clip:
            values["dual_clip"] = dual_clip
        return resolve(self.name, **values)

    @property
    def aggregation(self) -> Aggregation | None:
        """The one that the name fixes; None for `custom`."""
        return None if self.name == "custom" else NAMED_OBJECTIVES[self.name].aggregation

    @property
    def reads_clip(self) -> bool:
        """Whether it has a clip range."""
        return (self.surrogate or NAMED_OBJECTIVES[self.name].surrogate) not in ("sapo", "vespo", "reinforce")

    @property
    def reads_temperatures(self) -> bool:
        """Whether it has SAPO's temperatures instead of a clip range."""
        return (self.surrogate or NAMED_OBJECTIVES[self.name].surrogate) == "sapo"


def verl_loss_name(config: ObjectiveConfig) -> str:
    """The name of the objective in verl's registry; ValueError for a balanced clip range."""
    if config.clip_band == "balanced":
        raise ValueError(
            "objective.clip_band 'balanced' looks at a whole mini-batch and verl shows a loss one micro-batch at a time: "
            "use 'fixed', or the luspo engine"
        )
    if reason := _not_carried(config):
        raise ValueError(f"{reason}: use the luspo engine")
    fixed = _fixed_clip_on(config)
    loss = VerlLoss(
        config.name,
        config.ratio if config.name == "custom" else None,
        config.surrogate if config.name == "custom" else None,
        None if config.clip_on == fixed else config.clip_on,
        config.dual_clip is not None,
    )
    return next(name for name, known in VERL_LOSSES.items() if known == loss)


def verl_plugin_settings(config: ObjectiveConfig, response_limit: int | None = None) -> PeerSettings:
    """verl's overrides for our own loss in it; `response_limit`: of `seq-mean-token-sum-norm`, its `loss_scale_factor`."""
    try:
        name = verl_loss_name(config)
    except ValueError as error:
        return PeerSettings(missing=str(error))
    numbers: dict[str, Value] = {}
    if config.surrogate == "sapo":
        numbers |= {
            "tau_pos": config.sapo_temperature_positive or 0.0,
            "tau_neg": config.sapo_temperature_negative or 0.0,
        }
    elif config.clips:
        numbers |= {"clip_ratio_low": config.clip_low or 0.0, "clip_ratio_high": config.clip_high or 0.0}
    if config.dual_clip is not None:
        numbers["clip_ratio_c"] = config.dual_clip
    if config.aggregation == "seq-mean-token-sum-norm":
        numbers["loss_scale_factor"] = RESPONSE_LIMIT if response_limit is None else response_limit
    before, after = verl_terms(config)
    loss = {f"{ACTOR}.policy_loss.loss_mode": name, f"{ACTOR}.loss_agg_mode": config.aggregation or ""}
    return PeerSettings({**before, **loss, **{f"{ACTOR}.{key}": value for key, value in numbers.items()}, **after})


def _not_carried(config: ObjectiveConfig) -> str:
    """What of the objective neither verl's call of a loss nor its configuration carries; "" where all of it arrives."""
    if config.own_parts:
        return f"a function of one's own ({', '.join(config.own_parts)}) is not handed to verl's processes"
    if config.needs_group_ids:
        return f"verl does not tell a loss which responses answer one prompt, as {config.aggregation} asks"
    if config.aggregation == "length-power":
        return "verl has no key for objective.length_exponent"
    if config.ratio_cap is not None:
        return "verl has no key for objective.ratio_cap"
    if config.surrogate == "vespo":
        usual = NAMED_OBJECTIVES["vespo"]
        if config.name != "vespo" or any(getattr(config, key) != getattr(usual, key) for key in VESPO_KEYS):
            return "verl has no key for VESPO's exponents, so it can have those of the name vespo alone"
    if config.advantage in ("group_mean_batch_std", "max_rl"):
        return f"verl has no such advantage as {config.advantage}"
    return ""


def _fixed_clip_on(config: ObjectiveConfig) -> str | None:
    """The `clip_on` that goes without saying under the objective's name."""
    if config.name == "custom":
        return "mean" if config.clip_on is not None else None
    return resolve(config.name).clip_on


def _all() -> Iterator[tuple[str, VerlLoss]]:
    bases = [VerlLoss(name) for name in NAMED_OBJECTIVES]
    bases += [VerlLoss("custom", ratio, kind) for ratio, kind in product(get_args(Ratio), get_args(Surrogate))]
    for base, clip_on, dual in product(bases, (None, *get_args(ClipOn)), (False, True)):
        loss = VerlLoss(base.name, base.ratio, base.surrogate, clip_on, dual)
        if clip_on == "mean" or not _exists(loss):
            continue
        words = ["luspo", *([] if loss.name == "luspo" else [loss.name])]
        words += [part.replace("-", "_") for part in (loss.ratio, loss.surrogate) if part]
        words += [f"on_{clip_on}"] if clip_on else []
        yield "_".join([*words, *(["dual_clip"] if dual else [])]), loss


def _exists(loss: VerlLoss) -> bool:
    """Whether there is an objective of this form, and this is its only name."""
    try:
        config = loss.objective(
            loss.aggregation or "token-mean", clip=(0.2, 0.2), dual_clip=3.0, temperatures=(1.0, 1.0)
        )
    except ValueError:
        return False
    if _not_carried(config):
        return False
    return loss.clip_on is None or config.clip_on != _fixed_clip_on(config)


VERL_LOSSES: Mapping[str, VerlLoss] = MappingProxyType(dict(_all()))
"""Name in verl's registry -> what it says."""
