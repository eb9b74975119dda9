"""What forks of one checkpoint differ in after their last step, paired over replicates.

Two variants of one replicate began with the same weights, trained on the same rollouts in step 1 and are measured on the same
held-out problems with the same seeds, so their difference holds what the variants do and what later draws add. An interval is
over replicates: it says how sure the difference is at this checkpoint, and nothing about other checkpoints, models or data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from luspo_cli.analysis.history import RunHistory, read_run
from luspo_cli.analysis.measures import Measure
from luspo_cli.analysis.paired import PairedDifference, paired_difference
from luspo_cli.config.forking import Variant
from luspo_cli.errors import UsageError
from luspo_cli.metrics.intervals import Estimate, estimate
from luspo_cli.runs.rollouts import step_file
from luspo_cli.runs.stored_rollouts import read_columns

SAMPLE_SIZE = "evaluation/reweighted_sample_size"
FEW = 0.5
"""Of the parent's responses that the weights leave: below this share the reweighted numbers are noise of a few of them."""


@dataclass(frozen=True, slots=True)
class ForkMeasure(Measure):
    """One number of an evaluation."""

    metric: str = ""
    form: str = ".2f"
    """How it is written, in Python's format."""

    def write(self, value: float, *, signed: bool = False) -> str:
        """A number with the measure's decimals."""
        return format(value, f"+{self.form}" if signed else self.form)

    @property
    def named(self) -> str:
        """Title and unit."""
        return self.title if self.unit == "1" else f"{self.title} ({self.unit})"


MEASURES: Mapping[str, ForkMeasure] = {
    "length": ForkMeasure("response length", "tokens", metric="evaluation/response_length/mean"),
    "length_reweighted": ForkMeasure("response length, reweighted", "tokens", metric="evaluation/reweighted_length"),
    "accuracy": ForkMeasure("accuracy", "1", metric="evaluation/accuracy", form=".4f"),
    "accuracy_reweighted": ForkMeasure(
        "accuracy, reweighted", "1", metric="evaluation/reweighted_accuracy", form=".4f"
    ),
    "entropy": ForkMeasure("entropy", "nats", metric="evaluation/entropy", form=".4f"),
    "kl": ForkMeasure("KL from the parent", "nats", metric="evaluation/kl_parent", form=".5f"),
}


@dataclass(frozen=True, slots=True)
class VariantForks:
    """The forks of one variant; estimates by measure."""

    name: str
    objective: str
    label: str
    settings: tuple[str, ...]
    clip_low: float | None
    clip_high: float | None
    runs: tuple[str, ...]
    final: dict[str, Estimate]
    """After the last step."""
    change: dict[str, Estimate]
    """Against the parent on the same problems and seeds."""
    values: dict[str, tuple[float, ...]]
    """The same after the last step, replicate by replicate."""
    sample_size: float
    """The smallest share of the parent's responses that the weights of a replicate leave."""


@dataclass(frozen=True, slots=True)
class ForkComparison:
    """Everything that the table and the JSON show."""

    parent: str
    step: int
    """Of the parent's checkpoint."""
    steps: int
    """Of each fork."""
    seeds: tuple[int, ...]
    """Of the replicates."""
    start: dict[str, Estimate]
    """The parent itself, on the held-out draws of each replicate."""
    variants: tuple[VariantForks, ...]
    differences: tuple[PairedDifference, ...]
    """Every later variant minus every earlier one, paired by the seeds of the replicates."""
    shared_first_step: bool
    """Whether the variants of each replicate were found to have trained on the same rollouts in step 1."""


def compare_forks(variants: Sequence[Variant], runs: Mapping[str, Sequence[Path]]) -> ForkComparison:
    """Compare finished forks; `runs`: the run folders of each variant by its name, in the order of the replicates."""
    histories = {name: [read_run(path) for path in paths] for name, paths in runs.items()}
    first = next(iter(histories.values()))
    values = {name: [_evaluation(run, run.last_step) for run in own] for name, own in histories.items()}
    starts = [_evaluation(run, 0) for run in first]
    shared = all(len({_first_step(path) for path in siblings}) == 1 for siblings in zip(*runs.values(), strict=True))
    forked = first[0].provenance["fork"]
    seeds = tuple(int(run.config["run"]["seed"]) for run in first)
    return ForkComparison(
        parent=forked["run"],
        step=forked["step"],
        steps=first[0].last_step,
        seeds=seeds,
        start={key: _over([start[key] for start in starts]) for key in MEASURES},
        variants=tuple(
            _variant(variant, histories[variant.name], values[variant.name], starts) for variant in variants
        ),
        differences=tuple(
            paired_difference(later.name, earlier.name, key, dict(zip(seeds, pairs, strict=True)))
            for earlier, later in combinations(variants, 2)
            for key in MEASURES
            for pairs in [
                [(one[key], other[key]) for one, other in zip(values[later.name], values[earlier.name], strict=True)]
            ]
        ),
        shared_first_step=shared,
    )


def _evaluation(run: RunHistory, step: int) -> dict[str, float]:
    """Every measure of the evaluation after `step`."""
    row = run.evaluations.reindex([step]).iloc[0]
    found = {key: float(row.get(measure.metric, float("nan"))) for key, measure in MEASURES.items()}
    lacking = [MEASURES[key].metric for key, value in found.items() if value != value]
    if lacking:
        raise UsageError(
            f"{run.path} has no {lacking[0]} of step {step} in evals/held-out.jsonl; move it away and fork again"
        )
    return found


def _variant(
    variant: Variant, runs: Sequence[RunHistory], values: Sequence[dict[str, float]], starts: Sequence[dict[str, float]]
) -> VariantForks:
    objective = runs[0].config["objective"]
    return VariantForks(
        name=variant.name,
        objective=variant.objective,
        label=variant.label,
        settings=variant.sets,
        clip_low=objective["clip_low"],
        clip_high=objective["clip_high"],
        runs=tuple(str(run.path) for run in runs),
        final={key: _over([value[key] for value in values]) for key in MEASURES},
        change={
            key: _over([value[key] - start[key] for value, start in zip(values, starts, strict=True)])
            for key in MEASURES
        },
        values={key: tuple(value[key] for value in values) for key in MEASURES},
        sample_size=min(float(run.evaluations[SAMPLE_SIZE].loc[run.last_step]) for run in runs),
    )


def _over(values: Sequence[float]) -> Estimate:
    found = estimate(values)
    assert found is not None  # there is one replicate at least
    return found


def _first_step(run: Path) -> tuple[tuple[int, ...], ...]:
    """The response tokens that step 1 trained on."""
    stored = read_columns(step_file(run / "rollouts", 1), ["response_tokens"])
    return tuple(map(tuple, stored["response_tokens"].to_pylist()))
