"""Two variants seed by seed, and what their difference shows: numbers, and a verdict in words that calls noise noise.

A verdict never says more than its interval and its number of seeds allow: "shown" needs Student's interval, the bootstrap and the
sign-flip test together; an interval that leaves out 0 with fewer than six pairs rests on a normal spread alone, since no test by
signs can reach p = 0.05 there, and is "suggested"; everything else is "within noise", which is no proof of equality: it stands
beside the smallest difference that so many seeds would have shown.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

from luspo_cli.analysis.differences import BLIND
from luspo_cli.analysis.measures import Measure, RunSummary
from luspo_cli.metrics.intervals import Estimate, estimate
from luspo_cli.metrics.seed_statistics import (
    Resampled,
    detectable_difference,
    interquartile_mean,
    paired_mean,
    probability_of_improvement,
    seeds_needed,
    sign_flip_p,
    smallest_p,
)

SIGNIFICANT = 0.05


class Verdict(StrEnum):
    """What the pairs allow to be said about a difference."""

    ONE_PAIR = "one pair"
    EQUAL = "equal"
    NOISE = "within noise"
    SUGGESTED = "suggested"
    SHOWN = "shown"


@dataclass(frozen=True)
class PairedDifference:
    """`first` minus `second` in one measure over the seeds that both have."""

    first: str
    second: str
    measure: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    estimate: Estimate
    """Mean with Student's interval."""
    positive: int
    bootstrap: Resampled
    """Mean with the interval over resampled pairs."""
    interquartile: Resampled
    improvement: Resampled
    """Chance that a run of `first` is above a run of `second`."""
    p: float
    """Two-sided, by flipping signs."""
    smallest_p: float
    """What p would be if all pairs agreed."""
    detectable: float | None
    """Smallest true difference that so many pairs of this spread show four times in five."""
    seeds_needed: int | None
    """Pairs that would show a true difference as large as the mean; None: with one pair, or beyond reach."""
    verdict: Verdict


def paired_differences(
    runs_by_variant: Mapping[str, Sequence[RunSummary]], measures: Mapping[str, Measure]
) -> list[PairedDifference]:
    """Every later variant minus every earlier one, in each paired measure that both recorded."""
    by_seed = {
        variant: {run.seed: run for run in runs if run.seed is not None} for variant, runs in runs_by_variant.items()
    }
    pairs = []
    for second, first in combinations(by_seed, 2):
        seeds = sorted(by_seed[first].keys() & by_seed[second].keys())
        for name, measure in measures.items():
            if not measure.paired:
                continue
            found: dict[int, tuple[float, float]] = {}
            for seed in seeds:
                run, against = by_seed[first][seed], by_seed[second][seed]
                one, other = run.values.get(name), against.values.get(name)
                if one is not None and other is not None and _alike(measure, run, against):
                    found[seed] = one, other
            if found:
                pairs.append(paired_difference(first, second, name, found))
    return pairs


def paired_difference(
    first: str, second: str, measure: str, found: Mapping[int, tuple[float, float]]
) -> PairedDifference:
    """`first` minus `second` and what it shows; `found`: the two values of each seed, of one at least."""
    ones, others = [one for one, _ in found.values()], [other for _, other in found.values()]
    differences = [one - other for one, other in found.values()]
    mean, middle = estimate(differences), interquartile_mean(differences)
    assert mean is not None  # there is at least one pair
    assert middle is not None
    several = len(differences) > 1
    deviation = statistics.stdev(differences) if several else 0.0
    resampled, p = paired_mean(differences), sign_flip_p(differences)
    return PairedDifference(
        first=first,
        second=second,
        measure=measure,
        seeds=tuple(found),
        differences=tuple(differences),
        estimate=mean,
        positive=sum(difference > 0 for difference in differences),
        bootstrap=resampled,
        interquartile=middle,
        improvement=probability_of_improvement(ones, others),
        p=p,
        smallest_p=smallest_p(len(differences)),
        detectable=detectable_difference(deviation, len(differences)),
        seeds_needed=seeds_needed(mean.mean, deviation) if several else None,
        verdict=_verdict(differences, mean, resampled, p),
    )


def _verdict(differences: Sequence[float], mean: Estimate, resampled: Resampled, p: float) -> Verdict:
    if len(differences) == 1:
        return Verdict.ONE_PAIR
    if not any(differences):
        return Verdict.EQUAL
    if not _leaves_out_zero(mean.low, mean.high):
        return Verdict.NOISE
    return Verdict.SHOWN if p <= SIGNIFICANT and _leaves_out_zero(resampled.low, resampled.high) else Verdict.SUGGESTED


def verdict_text(pair: PairedDifference, measure: Measure, of: str = "seeds") -> str:
    """The verdict in words, for a line that names difference and measure; `of`: what is paired."""
    n = pair.estimate.n
    words = ("longer", "shorter") if measure.unit == "tokens" else ("higher", "lower")
    direction = words[pair.estimate.mean < 0]
    size = measure.write(abs(pair.estimate.mean))
    match pair.verdict:
        case Verdict.ONE_PAIR:
            return "one pair: chance cannot be told from effect"
        case Verdict.EQUAL:
            return "equal in every pair"
        case Verdict.NOISE:
            shows = "" if pair.detectable is None else f": {n} {of} can show {measure.write(pair.detectable)}"
            return f"within noise{shows}" + (
                f"; {size} takes some {pair.seeds_needed} {of}" if pair.seeds_needed else ""
            )
        case Verdict.SUGGESTED if pair.smallest_p > SIGNIFICANT:
            return f"{direction}, given a normal spread; by signs p cannot go below {pair.smallest_p:.2g}"
        case Verdict.SUGGESTED:
            return f"{direction}, given a normal spread; by signs p = {pair.p:.2g}"
        case Verdict.SHOWN:
            agreeing = max(pair.positive, n - pair.positive)
            return f"{direction}: {agreeing} of {n} pairs, p = {pair.p:.2g}"


def _leaves_out_zero(low: float | None, high: float | None) -> bool:
    return low is not None and high is not None and (low > 0 or high < 0)


def _alike(measure: Measure, one: RunSummary, other: RunSummary) -> bool:
    """Whether a measure was found in the same way in both runs: a benchmark's with the same settings."""
    ours, theirs = (run.benchmark_settings.get(measure.benchmark, {}) for run in (one, other))
    return all(ours.get(key) == theirs.get(key) for key in ours.keys() | theirs.keys() if key != BLIND or measure.blind)
