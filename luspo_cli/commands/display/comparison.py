"""A comparison as tables for people and as JSON for programs.

Every run is listed before any mean, since a mean over few seeds hides how far they lie apart, and every difference has its
verdict in words. Numbers of one measure carry equal decimals, units stand in the titles, and a missing value is a dash, never a
0. All tables fit 100 columns with short run names; nothing is cut where the output is not a terminal. What a reader of the result
can do without (further statistics of each difference, lengths by outcome) is shown on wish.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from luspo_cli.analysis.comparison import Comparison, VariantSummary
from luspo_cli.analysis.measures import Measure, RunSummary
from luspo_cli.analysis.paired import PairedDifference, Verdict, verdict_text
from luspo_cli.analysis.variants import clip_sentence
from luspo_cli.commands.display.format import DASH
from luspo_cli.metrics.intervals import LEVEL, Estimate
from luspo_cli.metrics.seed_statistics import POWER, Resampled

TERMINAL_WIDTH = 100
VARIANTS_A_TABLE = 3
"""Columns of means that fit `TERMINAL_WIDTH`; more variants continue in a table below."""
LEAST_FOR_BOOTSTRAP = 8
LEAST_FOR_MIDDLE = 4
"""Runs below which an interquartile mean is the mean."""


_NEXT_SETTING = re.compile(r", (?=[\w.]+=)")
_SETTINGS_NAMED = 3
"""Of a variant's settings, in the tables."""
_WIDEST_NAME = 60
"""Columns of a paired difference's name, which goes on in the next line."""
_LONGEST_VALUE = 24
"""Characters of a setting's value, in the tables."""


def print_comparison(comparison: Comparison, console: Console, *, full: bool = False) -> None:
    """Print the tables whole; `full`: with every measure and statistic."""
    print_whole(render_table(comparison, full=full), console)


def print_whole(table: RenderableType, console: Console) -> None:
    """Print tables; nothing is cut: a narrow terminal wraps lines, and what is no terminal gets them whole."""
    if console.is_terminal:
        console.width = max(TERMINAL_WIDTH, console.width)
        console.print(table)
        return
    plain = io.StringIO()
    Console(file=plain, width=10_000, color_system=None).print(table)
    console.file.write("".join(f"{line.rstrip()}\n" for line in plain.getvalue().split("\n")[:-1]))


def render_table(comparison: Comparison, *, full: bool = False) -> RenderableType:
    """Return the single runs, the means over seeds, the paired differences with their verdicts, and the warnings."""
    parts: list[RenderableType] = [_tuning_table(comparison), ""] if comparison.tuning else []
    parts += [_runs_table(comparison)]
    for first in range(0, len(comparison.variants), VARIANTS_A_TABLE):
        parts += ["", _means_table(comparison, comparison.variants[first : first + VARIANTS_A_TABLE], full=full)]
    pairs = [pair for pair in comparison.paired if full or not comparison.measures[pair.measure].detail]
    if pairs:
        parts += ["", _paired_table(comparison, pairs)]
        parts += ["", _statistics_table(comparison, pairs)] if full else []
        parts += ["", _verdicts_table(comparison)]
    parts += ["", *(Text(line, style="dim") for line in statements(comparison))]
    if full and any(pair.estimate.n < LEAST_FOR_BOOTSTRAP for pair in pairs):
        few = f"A bootstrap of fewer than {LEAST_FOR_BOOTSTRAP} seeds is too narrow: it never draws a value beyond those it has."
        parts.append(Text(few, style="dim"))
    parts += [Text(f"warning: {warning}", style="yellow") for warning in comparison.warnings]
    return Group(*parts)


def statements(comparison: Comparison) -> Iterator[str]:
    """Yield what a reader of the numbers must know, one sentence or two a line."""
    yield _compared(comparison)
    for label, name in short_names(comparison.variants).items():
        if len(name) > 1:
            yield f"{_in_one_line(name)}: {label}"
    for tuning in comparison.tuning:
        if tuning.at_end:
            yield f"{tuning.objective}: its best value, {tuning.best}, is at the end of the list; a better one may lie beyond."
    if comparison.tuning and all(tuning.apart for tuning in comparison.tuning):
        yield "Tuned: each seed is compared at the value that the other seeds favour, so that no seed chose for itself."
    elif comparison.tuning:
        yield "Tuned on the one seed that is compared: the best of several is too good, most so where spread is large."
    if comparison.clip_ranges:
        yield f"{clip_sentence(comparison.clip_ranges)}."
    counts = {len(variant.seeds) for variant in comparison.variants}
    if max(counts) > 1:
        yield f"±: half of the {LEVEL:.0%} interval over seeds, Student t with n - 1 degrees of freedom."
    if min(counts) == 1:
        yield "One run has no interval: differences from or to it may be chance."
    if comparison.paired:
        yield "Paired differences take the runs of equal seed together; positive: pairs in which the first is larger."
    if any(pair.detectable is not None for pair in comparison.paired):
        yield f"can show: smallest true difference that so many pairs of this spread show with a chance of {POWER:.0%}."
    if sum(pair.verdict is not Verdict.ONE_PAIR for pair in _with_verdicts(comparison)) > 1:
        yield f"Each verdict stands alone: of 20 differences that are none, one {LEVEL:.0%} interval leaves out 0."
    if any(comparison.measures[pair.measure].benchmark for pair in comparison.paired):
        yield "Of benchmarks only results with the same settings are paired."
    if (answers := comparison.answers) is not None and answers.covered is not None:
        steps = _steps((answers.first_step, answers.last_step))
        yield f"At equal length: {answers.kind}, {steps}, weighted alike by length; {answers.covered:.0%} are shared."
    yield "Intervals cover the seeds only; they say nothing about other models, data or scales."


def _compared(comparison: Comparison) -> str:
    windows = [run.windows for run in comparison.runs]
    if comparison.by == "steps":
        start, middle, final = (_steps(window) for window in (windows[0].start, windows[0].middle, windows[0].final))
        return (
            f"Compared up to step {comparison.last_step}: start = {start}, mid-run = {middle}, final = {final} (means)."
        )
    what = (
        f"{Measure('', 'count').write(comparison.end)} response tokens"
        if comparison.by == "tokens"
        else f"{comparison.end:.0f} s in steps"
    )
    ends = _steps((comparison.last_step, max(found.last_step for found in windows)))
    return f"Compared after {what}, at {ends}, mid-run at half; means over a tenth of a run's steps."


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as plain JSON values; a missing number is null."""
    return {
        "last_step": comparison.last_step,
        "by": comparison.by,
        "end": comparison.end,
        "level": LEVEL,
        "measures": {
            key: {"title": measure.title, "unit": measure.unit} for key, measure in comparison.measures.items()
        },
        "runs": [asdict(run) for run in comparison.runs],
        "variants": [asdict(variant) for variant in comparison.variants],
        "clip_ranges": {label: list(limits) for label, limits in comparison.clip_ranges.items()},
        "paired": [
            asdict(pair) | {"verdict_text": verdict_text(pair, comparison.measures[pair.measure])}
            for pair in comparison.paired
        ],
        "answers": None if comparison.answers is None else asdict(comparison.answers),
        "differing": comparison.differing,
        "tuning": [asdict(tuning) for tuning in comparison.tuning],
        "warnings": list(comparison.warnings),
    }


def short_names(variants: Sequence[VariantSummary]) -> dict[str, list[str]]:
    """Label of each variant -> its objective and its settings for a table, by the last part of their keys.

    Some settings at most, and long values by their end; variants that would have one name are numbered.
    """
    names = {variant.label: _short_name(variant.label) for variant in variants}
    alike = Counter(map(tuple, names.values()))
    met: Counter[tuple[str, ...]] = Counter()
    for label, name in names.items():
        if alike[tuple(name)] > 1:
            met[tuple(name)] += 1
            names[label] = [*name, f"no. {met[tuple(name)]}"]
    return names


def _short_name(label: str) -> list[str]:
    objective, _, settings = label.removesuffix(")").partition(" (")
    pairs = [setting.partition("=") for setting in _NEXT_SETTING.split(settings) if setting]
    last = Counter(key.rpartition(".")[2] for key, _, _ in pairs)
    named = []
    for key, _, value in pairs[:_SETTINGS_NAMED]:
        short = key.rpartition(".")[2]
        end = value if len(value) <= _LONGEST_VALUE else f"…{value[1 - _LONGEST_VALUE :]}"
        named.append(f"{short if last[short] == 1 else key}={end}")
    more = [f"{len(pairs) - len(named)} more"] if len(pairs) > len(named) else []
    return [objective, *named, *more]


def _in_one_line(name: Sequence[str]) -> str:
    return f"{name[0]} ({', '.join(name[1:])})" if len(name) > 1 else name[0]


def _tuning_table(comparison: Comparison) -> Table:
    key, criterion = comparison.tuning[0].key, comparison.measures[comparison.tuning[0].criterion]
    table = titled_table(f"{key}, by {criterion.title}")
    for title in ("objective", key):
        table.add_column(title, no_wrap=True)
    table.add_column("mean over seeds", justify="right", no_wrap=True)
    table.add_column("")
    for tuning in comparison.tuning:
        for place, candidate in enumerate(tuning.candidates):
            chosen = ", ".join(map(str, candidate.chosen_for))
            said = ["best"] if candidate.value == tuning.best else []
            said += [f"compared: seed {chosen}"] if chosen else []
            mean = _interval(candidate.accuracy, criterion, candidate.accuracy.n)
            table.add_row("" if place else tuning.objective, candidate.value, mean, "; ".join(said))
    return table


def _runs_table(comparison: Comparison) -> Table:
    table = titled_table("Single runs")
    table.padding = (0, 1, 0, 0)
    table.add_column("run", overflow="fold")
    for title in (
        "seed",
        "steps",
        "accuracy\nfinal",
        "held out\nlast",
        "held out\nbest",
        "length\nstart",
        "length\nmid-run",
        "length\nfinal",
        "trunc.\nfinal",
        "tokens\nin all",
        "time\nin all",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for run in comparison.runs:
        best = _cell(comparison, run, "held_out_best")
        table.add_row(
            Text(run.name),
            DASH if run.seed is None else str(run.seed),
            _progress(run),
            _cell(comparison, run, "accuracy_final"),
            _cell(comparison, run, "held_out_final"),
            best if run.held_out_best_step is None else f"{best} @{run.held_out_best_step}",
            *(_cell(comparison, run, key) for key in ("length_start", "length_middle", "length_final")),
            _cell(comparison, run, "truncated_final"),
            _cell(comparison, run, "tokens"),
            _cell(comparison, run, "seconds"),
        )
    return table


def _means_table(comparison: Comparison, variants: Sequence[VariantSummary], *, full: bool) -> Table:
    table = titled_table("Means over seeds")
    table.add_column("measure", no_wrap=True)
    names = short_names(comparison.variants)
    for variant in variants:
        seeds = len(variant.seeds)
        title = "\n".join([*names[variant.label], f"{seeds} {'seed' if seeds == 1 else 'seeds'}"])
        table.add_column(Text(title), justify="right")
    for key, measure in comparison.measures.items():
        estimates = [variant.estimates[key] for variant in variants]
        if any(estimates) and (full or not measure.detail):
            runs = [len(variant.seeds) for variant in variants]
            table.add_row(_title(measure), *map(_interval, estimates, [measure] * len(variants), runs))
            if full and min(runs) >= LEAST_FOR_MIDDLE:
                middles = [_resampled(variant.interquartile[key], measure) for variant in variants]
                table.add_row("  interquartile mean", *middles, style="dim")
    return table


def _paired_table(comparison: Comparison, pairs: Sequence[PairedDifference]) -> Table:
    table = titled_table("Paired differences, seed by seed")
    table.padding = (0, 1, 0, 0)
    table.add_column("difference", overflow="fold", max_width=_WIDEST_NAME)
    table.add_column("measure", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True)
    table.add_column("can show", justify="right", no_wrap=True)
    table.add_column("positive", justify="right", no_wrap=True)
    table.add_column("each seed", overflow="fold")
    for name, pair in _named(comparison, pairs):
        measure = comparison.measures[pair.measure]
        table.add_row(
            name,
            _title(measure),
            _interval(pair.estimate, measure, pair.estimate.n, signed=True),
            _value(pair.detectable, measure),
            f"{pair.positive} of {pair.estimate.n}",
            _each(pair, measure),
        )
    return table


def _statistics_table(comparison: Comparison, pairs: Sequence[PairedDifference]) -> Table:
    table = titled_table("The same differences by resampling seeds and by flipping signs")
    table.padding = (0, 1, 0, 0)
    table.add_column("difference", overflow="fold")
    table.add_column("measure", no_wrap=True)
    for title in ("bootstrap of\nthe mean", "interq.\nmean", "first above\nsecond", "p", "least\np"):
        table.add_column(title, justify="right", no_wrap=True)
    share = Measure("", "right answers")  # two decimals
    for name, pair in _named(comparison, pairs):
        measure = comparison.measures[pair.measure]
        table.add_row(
            name,
            measure.title,
            _between(pair.bootstrap, measure, signed=True),
            _value(pair.interquartile.value, measure, signed=True),
            _resampled(pair.improvement, share),
            f"{pair.p:.2g}",
            f"{pair.smallest_p:.2g}",
        )
    return table


def _verdicts_table(comparison: Comparison) -> Table:
    table = titled_table("What the pairs allow to be said")
    table.add_column("measure", overflow="fold", max_width=_WIDEST_NAME)
    table.add_column("verdict", overflow="fold")
    for name, pair in _named(comparison, _with_verdicts(comparison)):
        measure = comparison.measures[pair.measure]
        if name:
            table.add_row(name)
        table.add_row(f"  {measure.title}", verdict_text(pair, measure))
    return table


def _with_verdicts(comparison: Comparison) -> list[PairedDifference]:
    headline = {name for name, measure in comparison.measures.items() if measure.headline}
    if all(pair.measure != "held_out_final" for pair in comparison.paired):
        headline.add("accuracy_final")
    return [pair for pair in comparison.paired if pair.measure in headline]


def _named(comparison: Comparison, pairs: Sequence[PairedDifference]) -> Iterator[tuple[Text, PairedDifference]]:
    """Each pair with the name of its difference where that changes."""
    previous = ""
    names = {label: _in_one_line(name) for label, name in short_names(comparison.variants).items()}
    for pair in pairs:
        name = f"{names[pair.first]} − {names[pair.second]}"
        yield Text("" if name == previous else name), pair
        previous = name


def titled_table(title: str) -> Table:
    """A table without lines, under a bold title."""
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def _each(pair: PairedDifference, measure: Measure) -> str:
    return " ".join(_value(difference, measure, signed=True) for difference in pair.differences)


def _cell(comparison: Comparison, run: RunSummary, key: str) -> str:
    return _value(run.values[key], comparison.measures[key])


def _interval(found: Estimate | None, measure: Measure, runs: int, *, signed: bool = False) -> str:
    if found is None:
        return DASH
    text = _value(found.mean, measure, signed=signed)
    if found.half_width is not None:
        text += f" ± {_value(found.half_width, measure)}"
    return text if found.n == runs else f"{text} ({found.n} of {runs} runs)"


def _resampled(found: Resampled | None, measure: Measure) -> str:
    if found is None:
        return DASH
    value = measure.write(found.value)
    return value if found.low is None else f"{value} {_between(found, measure)}"


def _between(found: Resampled, measure: Measure, *, signed: bool = False) -> str:
    if found.low is None or found.high is None:
        return DASH
    low, high = (measure.write(end, signed=signed) for end in (found.low, found.high))
    return f"{low} to {high}" if signed else f"[{low}, {high}]"


def _value(value: float | None, measure: Measure, *, signed: bool = False) -> str:
    return DASH if value is None else measure.write(value, signed=signed)


def _title(measure: Measure) -> str:
    return f"{measure.title} (tokens)" if measure.unit == "tokens" else measure.title


def _progress(run: RunSummary) -> str:
    return str(run.last_step) if run.planned_steps in (None, run.last_step) else f"{run.last_step}/{run.planned_steps}"


def _steps(window: tuple[int, int]) -> str:
    return f"step {window[0]}" if window[0] == window[1] else f"steps {window[0]} to {window[1]}"
