"""How many times cheaper is a fork than full runs that say the same equally sure? From forks and full runs that exist.

    luspo compare --preset tiny --objectives gspo,luspo --seeds 8 --set run.keep_checkpoints=3
    luspo fork runs/tiny/luspo-seed0 --step 20 --objectives gspo,luspo --preset tiny --steps 5 --replicates 8
    python -m bench.fork_precision --forks runs/tiny/luspo-seed0-fork-step20 --full runs/tiny --pair luspo gspo

Both estimate what the first objective of the pair does to response length more than the second, in tokens a step. A pair of
forks: the difference of the two after their S steps, over S. A pair of full runs of one seed, in two ways: the same window,
how far their lengths moved from step K to K + S; and the whole way, their difference at the last step over the number of
steps. The second asks another question (the mean over a run in which the policies move apart), and is the kindest to full
runs.

With a standard deviation s over pairs and a cost c of one pair, a standard error e costs (s / e)^2 c: so the ratio of costs is
that of s^2 c, whatever e is. c is seconds in steps (evaluations included, starts and checkpoints not), or with --tokens the
response tokens sampled for training, which no other work of the machine changes; of forks also with the parent's way to step K
shared out over the pairs. The interval of a ratio is that of two variances of normal differences, on a log scale.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from luspo_cli.analysis.history import RunHistory, read_run, read_runs
from luspo_cli.analysis.variants import split_into_variants
from luspo_cli.metrics.intervals import Z_95
from luspo_cli.metrics.seed_statistics import seeds_needed

HELD_OUT = "evaluation/response_length/mean"
REWEIGHTED = "evaluation/reweighted_length"
TRAINED = "response_length/mean"

Pair = tuple[RunHistory, RunHistory]


@dataclass(frozen=True)
class Design:
    """One way to estimate the effect: rates in tokens a step, one a pair, and what a pair costs."""

    name: str
    rates: list[float]
    cost: float

    @property
    def spread(self) -> float:
        return statistics.stdev(self.rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forks", type=Path, required=True, help="OUT of luspo fork")
    parser.add_argument("--full", type=Path, nargs="+", required=True, help="full runs, or folders of them")
    parser.add_argument(
        "--pair", nargs=2, required=True, metavar=("FIRST", "SECOND"), help="variants, as compare names them"
    )
    parser.add_argument("--tokens", action="store_true", help="count response tokens of training, not seconds")
    options = parser.parse_args()
    unit = "tokens" if options.tokens else "s"
    first, second = options.pair
    forks, full = _pairs([options.forks], first, second), _pairs(options.full, first, second)
    parent = forks[0][0].provenance["fork"]
    start, steps = int(parent["step"]), forks[0][0].last_step
    last = min(run.last_step for pair in full for run in pair)
    if last < start + steps:
        parser.error(f"the full runs end at step {last}, before the forks' window ({start} to {start + steps})")
    to_step = _cost(read_run(Path(parent["run"])), start, unit)
    way = _cost_of_pairs(forks, steps, unit)
    designs = [
        Design("forks, own responses", _fork_rates(forks, HELD_OUT, steps), way),
        Design("forks, reweighted", _fork_rates(forks, REWEIGHTED, steps), way),
        Design(
            "full runs, same window",
            _rates(full, lambda run: _moved(run, start, steps), steps),
            _cost_of_pairs(full, start + steps, unit),
        ),
        Design(
            "full runs, whole way", _rates(full, lambda run: _length(run, last), last), _cost_of_pairs(full, last, unit)
        ),
    ]
    print(f"{first} minus {second}, tokens a step; forks: steps {start} to {start + steps} of {parent['run']}")
    print(
        f"{'':>24} {'pairs':>6} {'mean':>9} {'sd':>9} {f'{unit} a pair':>14} {f'{unit} for ±0.1':>16} {'pairs to show it':>17}"
    )
    for design in designs:
        needed = (design.spread / (0.1 / Z_95)) ** 2 * design.cost
        print(
            f"{design.name:>24} {len(design.rates):>6} {statistics.fmean(design.rates):>+9.3f} {design.spread:>9.3f}"
            f" {design.cost:>14,.0f} {needed:>16,.0f} {_shown(design):>17}"
        )
    print(
        f"\nthe parent's {start} steps took {to_step:,.0f} {unit}; a fork is so many times cheaper at the same precision:"
    )
    for design in designs[2:]:
        for fork in designs[:2]:
            print(f"  {fork.name} against {design.name}: {_cheaper(fork, design, to_step)}")


def _pairs(paths: Sequence[Path], first: str, second: str) -> list[Pair]:
    """Runs of the two variants with equal seeds, seed by seed."""
    variants = {variant.label: variant for variant in split_into_variants(read_runs(paths))}
    for name in (first, second):
        if name not in variants:
            raise SystemExit(f"{name} is none of the variants {', '.join(variants)} of {', '.join(map(str, paths))}")
    by_seed: list[Mapping[int | None, RunHistory]] = [
        {run.seed: run for run in variants[name].runs} for name in (first, second)
    ]
    seeds = sorted(seed for seed in by_seed[0].keys() & by_seed[1].keys() if seed is not None)
    if len(seeds) < 2:
        raise SystemExit(
            f"{len(seeds)} seeds have both {first} and {second} in {', '.join(map(str, paths))}: two are needed"
        )
    return [(by_seed[0][seed], by_seed[1][seed]) for seed in seeds]


def _fork_rates(pairs: Sequence[Pair], metric: str, steps: int) -> list[float]:
    return _rates(pairs, lambda run: float(run.evaluations[metric].loc[steps]), steps)


def _rates(pairs: Sequence[Pair], measured: Callable[[RunHistory], float], steps: int) -> list[float]:
    return [(measured(one) - measured(other)) / steps for one, other in pairs]


def _moved(run: RunHistory, start: int, steps: int) -> float:
    return _length(run, start + steps) - _length(run, start)


def _length(run: RunHistory, step: int) -> float:
    """Mean length of the policy after `step`: held out where that was evaluated, else of the next training batch."""
    if step in run.evaluations.index:
        return float(run.evaluations[HELD_OUT].loc[step])
    return float(run.table[TRAINED].loc[min(step + 1, run.last_step)])


def _cost(run: RunHistory, step: int, unit: str) -> float:
    """Of the steps up to `step`: seconds, or response tokens sampled."""
    return float(run.table["time/total"].loc[:step].sum() if unit == "s" else run.table["tokens/total"].loc[step])


def _cost_of_pairs(pairs: Sequence[Pair], step: int, unit: str) -> float:
    """The mean over pairs."""
    return statistics.fmean(sum(_cost(run, step, unit) for run in pair) for pair in pairs)


def _shown(design: Design) -> str:
    """Pairs that would show an effect as large as the mean four times in five."""
    found = seeds_needed(statistics.fmean(design.rates), design.spread)
    return "out of reach" if found is None else str(found)


def _cheaper(fork: Design, full: Design, to_step: float) -> str:
    def ratio(cost: float) -> float:
        return full.spread**2 * full.cost / (fork.spread**2 * cost)

    alone = ratio(fork.cost)
    half = Z_95 * math.sqrt(2 / (len(fork.rates) - 1) + 2 / (len(full.rates) - 1))
    whole = ratio(fork.cost + to_step / len(fork.rates))
    return f"{alone:.1f} ({alone / math.exp(half):.1f} to {alone * math.exp(half):.1f}); with the parent's steps {whole:.1f}"


if __name__ == "__main__":
    main()
