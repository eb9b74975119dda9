"""What `luspo fork` is asked for: which variants there are, and the configuration of each fork.

A variant is an objective under settings of its own. `--objectives gspo,luspo` names objectives, and each `--variant LABEL` or
`--variant LABEL:section.key=value,section.key=value` gives every one of them once more under these settings:

    --objectives gspo,luspo --variant both --variant low-only:objective.clip_high=1e6 --variant high-only:objective.clip_low=1.0

are six variants. Everything else is the parent's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luspo_cli.config.fork import ForkConfig
from luspo_cli.config.kernels import KERNEL_KEYS
from luspo_cli.config.layers import merge, parse_set, preset_objective, validated
from luspo_cli.config.own_objective import check_labels, label_of
from luspo_cli.config.run import TrainRun
from luspo_cli.config.stored import flatten
from luspo_cli.errors import UsageError

REPLICATE_STRIDE = 100
"""Between the seeds of replicates; the first one goes on with the parent's own."""
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NEXT_SETTING = re.compile(r",(?=\s*[a-z_]+(?:\.[a-z_]+)+\s*=)")
"""A comma before the next section.key=; those in lists are left alone."""
_OF_THE_FORK = {
    "objective.name": "give it in --objectives",
    "run.seed": "the replicates set it",
    "run.steps": "give --steps",
    "evaluation.blind": "a fork has no blind control",
    "update.optimizer": "the optimizer's state is that of the checkpoint",
    "update.moments": "the optimizer's state is that of the checkpoint",
}
_FREE_OF_MODEL = (
    "model.compute_dtype",
    "model.gradient_checkpointing",
    *KERNEL_KEYS,
    "model.sharding",
)
"""Keys of the model that change how it is computed and not what its weights are."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One objective under some settings."""

    objective: str
    label: str = ""
    sets: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.objective} {self.label}".rstrip()

    @property
    def folder(self) -> str:
        return f"{label_of(self.objective)} {self.label}".rstrip().replace(" ", "-")


def parse_variants(objectives: Sequence[str], variants: Sequence[str]) -> list[Variant]:
    """Every objective under every variant, objective by objective; without variants each one as it is."""
    check_labels(objectives)
    parsed = [_parse(text) for text in variants] or [("", ())]
    labels = [label for label, _ in parsed]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"--variant {label} is given twice; name each variant once.")
    return [Variant(objective, label, sets) for objective in objectives for label, sets in parsed]


def _parse(text: str) -> tuple[str, tuple[str, ...]]:
    label, colon, rest = text.partition(":")
    if not _LABEL.fullmatch(label) or (colon and not rest.strip()):
        raise UsageError(
            "--variant wants LABEL or LABEL:section.key=value,section.key=value, for example --variant"
            f" low-only:objective.clip_high=1e6; got '{text}'"
        )
    sets = tuple(part.strip() for part in _NEXT_SETTING.split(rest)) if colon else ()
    for setting in sets:
        parse_set(setting, "objective.clip_high=1e6")
    return label, sets


def fork_configuration(
    parent: TrainRun,
    fork: ForkConfig,
    variant: Variant,
    replicate: int,
    steps: int,
    *,
    sets: Sequence[str] = (),
    preset: str | None = None,
) -> TrainRun:
    """The configuration of one fork: the parent's, but for the variant, the replicate's seed and what is stored and measured.

    An objective other than the parent's has the values of its own name, or those that `preset` gives it. UsageError, one
    sentence, for a setting that does not belong to a fork or does not fit.
    """
    merged: dict[str, Any] = parent.model_dump(mode="json")
    merged["objective"] = _objective(parent, variant.objective, preset)
    origins = dict.fromkeys(flatten(merged), "the run's config.json")
    layer = {
        "run": {
            "seed": parent.run.seed + REPLICATE_STRIDE * replicate,
            "steps": steps,
            "checkpoint_every": 0,
            "checkpoint_last": False,
            "keep_checkpoints": 1,
            "rollouts_every": 1,
            "track": [],
        },
        "evaluation": {"every": steps, "temperature": parent.rollout.temperature, "blind": "none"},
        "fork": fork.model_dump(),
    }
    merge(merged, origins, layer, "luspo fork")
    for option, settings in (("--set", sets), ("--variant", variant.sets)):
        for setting in settings:
            parsed = parse_set(setting, "objective.clip_high=1e6")
            for key in flatten(parsed):
                _refuse(option, setting, key)
            merge(merged, origins, parsed, option)
    if not merged["data"]["held_out"]:
        raise UsageError(
            "forks are compared on held-out problems and the run has none: set data.held_out to a file or folder from luspo"
            " prepare-data"
        )
    config = validated(TrainRun, merged, origins)
    if not config.run.rollouts_every:
        raise UsageError(
            "run.rollouts_every = 0: forks share their first step through its stored rollouts; leave it out."
        )
    if not config.evaluation.every:
        raise UsageError("evaluation.every = 0: forks are compared by their evaluations; leave it out.")
    return config


def _refuse(option: str, setting: str, key: str) -> None:
    section = key.partition(".")[0]
    if key in _OF_THE_FORK:
        raise UsageError(f"{option} {setting}: the fork itself sets this; {_OF_THE_FORK[key]}.")
    if section in ("model", "warmup", "fork") and key not in _FREE_OF_MODEL:
        raise UsageError(
            f"{option} {setting}: {key} says how the weights came about, and a fork has those of the checkpoint; leave it out."
        )


def _objective(parent: TrainRun, name: str, preset: str | None) -> dict[str, Any]:
    if name == parent.objective.name:
        return dict(parent.model_dump(mode="json")["objective"])
    if preset is None:
        return {"name": name, "entropy_coefficient": parent.objective.entropy_coefficient}
    return preset_objective(preset, name)
