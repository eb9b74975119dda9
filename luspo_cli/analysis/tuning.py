"""The best value of one key for each objective, chosen without looking at the seed that it is then compared on.

One learning rate for all is the first objection to a comparison of objectives; choosing each one's best is the first mistake in
answering it: the best of several noisy numbers is too good, and more so for the objective with more spread. So the value of each
seed is the one that all other seeds favour, by mean accuracy on held-out problems, and what is compared never chose itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luspo_cli.analysis.history import RunHistory
from luspo_cli.analysis.measures import RunSummary
from luspo_cli.analysis.variants import Variant, reading_order
from luspo_cli.config.stored import flatten, show
from luspo_cli.errors import UsageError
from luspo_cli.metrics.intervals import Estimate, estimate

HELD_OUT, BATCH = "held_out_final", "accuracy_final"
"""What is chosen by: accuracy on held-out problems, or on the training batch where not every run evaluated."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One value under one objective."""

    value: str
    accuracy: Estimate
    """Over seeds."""
    chosen_for: tuple[int, ...]
    """Seeds that are compared at this value."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """The values of one key under one objective."""

    key: str
    objective: str
    criterion: str
    """A measure of the comparison."""
    candidates: tuple[Candidate, ...]
    """In the order in which the runs name them."""
    best: str
    """By the mean over all seeds."""
    apart: bool
    """Whether each seed's value was chosen on other seeds; with one seed there are none."""

    @property
    def at_end(self) -> bool:
        """Whether the best value is the smallest or the largest: a better one may lie beyond."""
        numbers = [_number(candidate.value) for candidate in self.candidates]
        known = [number for number in numbers if number is not None]
        return len(known) == len(numbers) > 1 and _number(self.best) in (min(known), max(known))


def tune(runs: Sequence[RunHistory], summaries: Sequence[RunSummary], key: str) -> tuple[list[Tuning], list[Variant]]:
    """Choose a value of `key` for each objective and seed; returns what was chosen, and the chosen runs as a variant each.

    Every objective must have every value with the same seeds, once each, of two values at least: UsageError says what it lacks.
    """
    values = {summary.name: summary.values for summary in summaries}
    criterion = HELD_OUT if all(found[HELD_OUT] is not None for found in values.values()) else BATCH
    tunings, variants = [], []
    for objective in sorted({run.objective for run in runs}, key=reading_order):
        table = _table([run for run in runs if run.objective == objective], key)
        accuracy = {
            value: {seed: values[run.name][criterion] for seed, run in row.items()} for value, row in table.items()
        }
        known = _known(accuracy, objective)
        if len(known) == 1:
            raise UsageError(
                f"All runs of {objective} have {key}={next(iter(known))}, so there is nothing to choose; leave --sweep out,"
                " or add runs with other values."
            )
        tuning = choose(key, objective, criterion, known)
        tunings.append(tuning)
        chosen = {seed: candidate.value for candidate in tuning.candidates for seed in candidate.chosen_for}
        members = tuple(table[chosen[seed]][seed] for seed in sorted(chosen))
        variants.append(Variant(f"{objective}, tuned", objective, members))
    return tunings, variants


def choose(key: str, objective: str, criterion: str, accuracy: Mapping[str, Mapping[int, float]]) -> Tuning:
    """What the accuracies by value and seed speak for."""
    seeds = sorted(next(iter(accuracy.values())))
    apart = len(seeds) > 1

    def best(judges: Sequence[int]) -> str:
        return max(accuracy, key=lambda value: sum(accuracy[value][seed] for seed in judges))

    chosen = {seed: best([judge for judge in seeds if judge != seed or not apart]) for seed in seeds}
    candidates = []
    for value, row in accuracy.items():
        found = estimate(list(row.values()))
        assert found is not None  # each value has a run
        candidates.append(Candidate(value, found, tuple(seed for seed in seeds if chosen[seed] == value)))
    return Tuning(key, objective, criterion, tuple(candidates), best(seeds), apart)


def _table(runs: Sequence[RunHistory], key: str) -> dict[str, dict[int, RunHistory]]:
    """The runs of one objective by value and seed."""
    table: dict[str, dict[int, RunHistory]] = {}
    for run in runs:
        leaves = flatten(run.config)
        if key not in leaves or run.seed is None:
            raise UsageError(f"{run.path} records no {key} or no seed, so it cannot be tuned; leave it out.")
        row = table.setdefault(show(leaves[key]), {})
        if run.seed in row:
            raise UsageError(f"{run.path} and {row[run.seed].path} have the same {key} and seed; leave one out.")
        row[run.seed] = run
    wanted = set().union(*table.values())
    for value, row in table.items():
        if lacking := sorted(wanted - row.keys()):
            raise UsageError(
                f"{runs[0].objective} with {key}={value} lacks seed {', '.join(map(str, lacking))}, which others have;"
                " every value needs the same seeds."
            )
    return table


def _known(accuracy: Mapping[str, Mapping[int, float | None]], objective: str) -> dict[str, dict[int, float]]:
    known = {
        value: {seed: number for seed, number in row.items() if number is not None} for value, row in accuracy.items()
    }
    if any(known[value].keys() != row.keys() for value, row in accuracy.items()):
        raise UsageError(f"A run of {objective} recorded no accuracy to choose by; leave its objective out.")
    return known


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None
