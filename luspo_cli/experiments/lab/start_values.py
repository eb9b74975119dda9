"""What steps 1 to 3 of a run say about the start of the exact model, and what they do not say.

Everything is a mean over those steps, which the lab's own first steps are then compared with (`fitting`): a fit never reads
further, so what it predicts of the rest is a forecast.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from luspo_cli.analysis.axis import LENGTH
from luspo_cli.analysis.history import RunHistory
from luspo_cli.analysis.measures import ACCURACY
from luspo_cli.config.reward import BESIDE_ACCURACY
from luspo_cli.errors import UsageError
from luspo_cli.experiments.lab.experiment import CLIP_HIGH, CLIP_LOW, KL_OLD
from luspo_cli.experiments.lab.measurements import (
    StoredStep,
    coupling,
    moves,
    read_steps,
    skill_spread,
    squared_log_ratio,
    squared_wrong,
    stop_profile,
)
from luspo_cli.metrics.intervals import Estimate

FITTED_STEPS = 3
TAIL = 2
"""Tokens of the lab's answer and end."""

SizeSource = Literal["answers' log-ratios", "sequences' log-ratios", "kl_old", "clip fractions", "none"]


@dataclass(frozen=True, slots=True)
class UpdateSize:
    """How far a step moves the policy: one positive number for each step of which it is known, and where it was read."""

    source: SizeSource
    by_step: dict[int, float]


@dataclass(frozen=True, slots=True)
class StartValues:
    """The measured start of one run, or of several that differ in their seed alone."""

    length: float
    """Mean response length of the fitted steps, tokens; so `accuracy`."""
    accuracy: float
    size: UpdateSize
    gradient_norm: float | None
    """Before the limit; None where it was not recorded."""
    bin_tokens: int
    profile: tuple[float, ...]
    """Logits of stopping by bin of `bin_tokens` positions, centred; empty where no rollouts are stored."""
    skill_spread: float | None
    """Standard deviation over problems of the logit of being right; None where no rollouts are stored."""
    coupling: Estimate | None
    """Stopping logit's move for each unit of the right answer's; None where it cannot be told."""
    stored: tuple[int, ...]
    """Steps whose rollouts were read."""
    notes: tuple[str, ...]
    """What could not be fitted, one sentence each."""

    @property
    def coupled(self) -> float:
        """The coupling where its interval leaves 0 out, otherwise 0."""
        found = self.coupling
        if found is None or found.low is None or found.high is None or found.low <= 0 <= found.high:
            return 0.0
        return found.mean


def measure_start(runs: Sequence[RunHistory]) -> StartValues:
    """Read the first steps of runs that differ in their seed alone; UsageError where they cannot start a prediction."""
    for run in runs:
        _check(run)
    length, accuracy = (_pooled([_first(run, metric) for run in runs]) for metric in (LENGTH, ACCURACY))
    assert length is not None
    assert accuracy is not None
    where = runs[0].path if len(runs) == 1 else f"{runs[0].path} and {len(runs) - 1} more"
    if not 0 < accuracy < 1:
        raise UsageError(
            f"{where}: the accuracy of steps 1 to {FITTED_STEPS} is {accuracy:g}; with all responses alike no advantage moves"
            " anything, and there is nothing to predict."
        )
    if length <= TAIL:
        raise UsageError(
            f"{where}: responses start with {length:g} tokens, and the model has none under {TAIL}: there is nothing to predict."
        )
    of_runs = [read_steps(run.path, FITTED_STEPS) for run in runs]
    stored = [step for steps in of_runs for step in steps]
    size = _size(runs, of_runs)
    bin_tokens, profile = stop_profile(stored, TAIL) if stored else (1, ())
    coupled = coupling([moves(steps) for steps in of_runs])
    return StartValues(
        length=length,
        accuracy=accuracy,
        size=size,
        gradient_norm=_pooled([_first(run, "update/grad_norm") for run in runs]),
        bin_tokens=bin_tokens,
        profile=profile,
        skill_spread=skill_spread(stored) if stored else None,
        coupling=coupled,
        stored=tuple(sorted({step.step for step in stored})),
        notes=tuple(_notes(runs[0], stored, size, coupled)),
    )


def _check(run: RunHistory) -> None:
    if run.source != "luspo":
        raise UsageError(
            f"{run.path} is a log of {run.source}: a fit needs the configuration that a luspo run folder holds; name one."
        )
    if lag := run.setting("rollout", "lag"):
        raise UsageError(
            f"{run.path} has rollout.lag = {lag}, which the lab does not model: its first"
            f" {'step trains' if lag == 1 else f'{lag} steps train'} nothing, and a fit reads steps 1 to {FITTED_STEPS};"
            " name a run without a lag."
        )
    if run.last_step < FITTED_STEPS:
        raise UsageError(
            f"{run.path} has {run.last_step} recorded {'step' if run.last_step == 1 else 'steps'} and a fit reads"
            f" {FITTED_STEPS}: wait until it has them."
        )
    for metric in (LENGTH, ACCURACY):
        if not _first(run, metric):
            raise UsageError(f"{run.path} recorded no {metric} in steps 1 to {FITTED_STEPS}; name another run.")


def _pooled(of_runs: Sequence[Mapping[int, float]]) -> float | None:
    """Mean over all runs and steps that have a value."""
    values = [value for by_step in of_runs for value in by_step.values()]
    return statistics.fmean(values) if values else None


def _by_step(of_runs: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Geometric mean over runs of each step's positive values."""
    steps = sorted({step for by_step in of_runs for step in by_step})
    found = {step: [by_step[step] for by_step in of_runs if by_step.get(step, 0) > 0] for step in steps}
    return {step: statistics.geometric_mean(values) for step, values in found.items() if values}


def _first(run: RunHistory, metric: str) -> dict[int, float]:
    """The recorded values of the fitted steps."""
    if metric not in run.table:
        return {}
    found = run.table[metric].loc[:FITTED_STEPS].dropna()
    return dict(zip(map(int, found.index), map(float, found), strict=True))


def _size(runs: Sequence[RunHistory], of_runs: Sequence[Sequence[StoredStep]]) -> UpdateSize:
    """The first of the sources that the runs have."""
    clipped = []
    for run in runs:
        low, high = _first(run, CLIP_LOW), _first(run, CLIP_HIGH)
        clipped.append({step: low[step] + high[step] for step in low if step in high})
    sources: tuple[tuple[SizeSource, Sequence[Mapping[int, float]]], ...] = (
        ("answers' log-ratios", [squared_wrong(moves(steps)) for steps in of_runs]),
        ("sequences' log-ratios", [squared_log_ratio(steps) for steps in of_runs]),
        ("kl_old", [_first(run, KL_OLD) for run in runs]),
        ("clip fractions", clipped),
    )
    for source, found in sources:
        if sizes := _by_step(found):
            return UpdateSize(source, sizes)
    return UpdateSize("none", {})


def _notes(run: RunHistory, stored: Sequence[StoredStep], size: UpdateSize, coupled: Estimate | None) -> Iterator[str]:
    if not stored:
        yield (
            f"no rollouts of steps 1 to {FITTED_STEPS} are stored: of the length distribution only the mean is fitted, and"
            " neither the spread over problems nor the coupling"
        )
    elif not any(step.has_updates for step in stored):
        yield (
            "the stored rollouts have no log-ratios (an earlier version wrote them): the size of an update is read in"
            " metrics.jsonl, and the coupling is not measured"
        )
    elif coupled is None:
        yield (
            "the coupling is not measured: that takes three optimizer steps with stored rollouts in which each token is one"
            " character, as in the made tasks (run.rollouts_every = 1)"
        )
    if size.source == "none":
        yield "the size of an update is not recorded; the lab's own is used"
    elif size.source == "clip fractions":
        yield "the size of an update is read in the clip fractions alone"
    if run.setting("reward", "accuracy_weight") == 0:
        yield "the reward does not pay accuracy (reward.accuracy_weight = 0), and the lab's pays nothing else"
    elif any(run.setting("reward", key) for key in BESIDE_ACCURACY):
        yield "the reward has terms beside accuracy, which the lab's has not"
    if run.setting("data", "profile") in ("pays", "costs"):
        yield "how strongly length pays is not fitted; the lab's own data.length_gain is used"
    for section, key, plain, what in UNMODELLED:
        if run.setting(section, key) not in (None, plain):
            yield f"{section}.{key} = {run.setting(section, key)} is not in the lab: {what}"


UNMODELLED = (
    ("objective", "entropy_coefficient", 0, "its loss has no entropy term"),
    ("rollout", "temperature", 1, "its policy is sampled and trained at temperature 1"),
    ("rollout", "top_p", 1, "it samples from all tokens"),
    ("rollout", "top_k", 0, "it samples from all tokens"),
    ("rollout", "dynamic_sampling", False, "it keeps groups without signal"),
    ("reward", "truncated", "keep", "a cut response is wrong and trained"),
    ("update", "schedule", "constant", "its learning rate stays"),
    ("update", "ramp_steps", 0, "its learning rate is there from the first step"),
    ("update", "weight_decay", 0, "its parameters do not decay"),
    ("update", "sampler_correction", "none", "its sampler is the policy"),
)
"""Settings that the exact model leaves out: section, key, value without it, and what the lab does."""
