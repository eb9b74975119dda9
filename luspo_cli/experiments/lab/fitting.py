"""The exact model with the start of a run: its first steps are moved until they look like the run's.

Length, accuracy, noise of the answers and gradient norm of the lab's first steps, averaged over seeds, are compared with the
run's, and the start values are corrected by what is missing; a few rounds are enough, since each acts on its own number. Logits
and weights have different units: the learning rates are the lab's own, and the gradient limit is scaled by how much larger the
lab's gradients are, so that it cuts as much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from luspo_cli.analysis.history import RunHistory
from luspo_cli.config.lab import LabRun, layered
from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.errors import UsageError
from luspo_cli.experiments.lab.experiment import LabHistory, run_experiment
from luspo_cli.experiments.lab.start_values import FITTED_STEPS, TAIL, StartValues

ROUNDS = 8
FITTED = "the fit"
PROBE_SEEDS = 24
LEAST_LENGTH = TAIL + 0.05
START_NOISE, MAX_NOISE = 0.85, 10.0
"""`model.answer_noise` before the first comparison, and the largest that is tried."""
ANSWERS, PROMPT_TYPES = 10, 64
_UPDATE = {"answer_rate": 0.1}
"""An update moves each prompt's answers far and in directions of their own, and those of all prompts together little: at the
lab's own rate accuracy would be near 1 where networks reach 0.6 (docs/length.md, section 7)."""


def fit(run: RunHistory, start: StartValues, sets: Sequence[str] = ()) -> LabRun:
    """The experiment whose first steps look like `start`, under the recipe of `run`; `sets` go on top of the fit.

    UsageError where it has no step beyond those that were fitted.
    """
    recipe, origin = _recipe(run), str(run.path / "config.json")
    fitted: dict[str, Any] = {
        "model": _fixed(start) | {"length": max(start.length, LEAST_LENGTH), "accuracy": start.accuracy},
        "update": _UPDATE,
    }
    if (steps := layered(((recipe, origin), (fitted, FITTED)), sets).run.steps) <= FITTED_STEPS:
        raise UsageError(
            f"{run.path} is planned for {steps} steps and a fit reads steps 1 to {FITTED_STEPS}, so nothing is left to predict:"
            " name a longer run, or say --set run.steps=60 to see what would have followed."
        )
    limit = layered(((recipe, origin), (fitted, FITTED))).update.gradient_clip
    for _ in range(ROUNDS):
        config = layered(((recipe, origin), (fitted, FITTED)))
        probe = config.model_copy(update={"run": config.run.model_copy(update={"steps": FITTED_STEPS})})
        fitted = _corrected(config, start, run_experiment(probe, PROBE_SEEDS), limit)
    return layered(((recipe, origin), (fitted, FITTED)), sets)


def _fixed(start: StartValues) -> dict[str, Any]:
    """What is measured and needs no comparison."""
    bins = {"stop_bin_tokens": start.bin_tokens} if len(start.profile) > 1 else {}
    spread = {"prompt_types": PROMPT_TYPES, "skill_spread": start.skill_spread} if start.skill_spread else {}
    return {
        "coupling": start.coupled,
        "stop_profile": list(start.profile),
        "answers": ANSWERS,
        "answer_noise": START_NOISE,
        **bins,
        **spread,
    }


def _corrected(config: LabRun, start: StartValues, found: LabHistory, limit: float) -> dict[str, Any]:
    """The start values of `config` and what its first steps `found` lack; `limit`: the run's gradient limit."""
    length = config.model.length * start.length / _mean(found.length)
    missing = _logit(start.accuracy) - _logit(_mean(found.accuracy))
    model = {
        "length": min(max(length, LEAST_LENGTH), config.rollout.max_response_tokens - 1.0),
        "accuracy": _chance(_logit(config.model.accuracy) + missing),
    }
    update: dict[str, float] = {}
    if start.size.by_step:
        model["answer_noise"] = min(config.model.answer_noise * math.exp(_size_ratio(start, found)), MAX_NOISE)
    if start.gradient_norm and limit:
        update["gradient_clip"] = limit * _mean(found.gradient_norm) / start.gradient_norm
    return {"model": _fixed(start) | model, "update": _UPDATE | update}


def _size_ratio(start: StartValues, found: LabHistory) -> float:
    """Log of the factor that the noise lacks: all numbers grow with its square but for the clip fractions."""
    own = {
        "answers' log-ratios": found.squared_wrong,
        "sequences' log-ratios": found.squared_log_ratio,
        "kl_old": found.kl_old,
        "clip fractions": found.clip_low + found.clip_high,
    }[start.size.source]
    steps = start.size.by_step
    missing = sum(math.log(value / max(_mean(own[:, step - 1]), 1e-12)) for step, value in steps.items()) / len(steps)
    return missing / (1 if start.size.source == "clip fractions" else 2)


def _mean(values: Tensor) -> float:
    return float(values.mean())


def _logit(chance: float) -> float:
    bounded = min(max(chance, 1e-4), 1 - 1e-4)
    return math.log(bounded / (1 - bounded))


def _chance(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def _recipe(run: RunHistory) -> dict[str, Any]:
    """The sections of the run's configuration that the lab has too."""

    def part(section: str, keys: tuple[str, ...]) -> dict[str, Any]:
        found = run.config.get(section)
        return {key: found[key] for key in keys if key in found} if isinstance(found, Mapping) else {}

    modelled = [entry.name for entry in fields(ObjectiveConfig) if entry.name != "entropy_coefficient"]
    return {
        "objective": part("objective", tuple(modelled)),
        "data": part("data", ("profile",)),
        "rollout": part("rollout", ("problems", "group_size", "max_response_tokens")),
        "update": part("update", ("mini_batches", "betas", "gradient_clip")),
        "run": part("run", ("steps",)),
    }
