"""What `luspo fork` found as tables for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from luspo_cli.analysis.forks import FEW, MEASURES, ForkComparison, VariantForks
from luspo_cli.analysis.paired import PairedDifference, verdict_text
from luspo_cli.commands.display.comparison import VARIANTS_A_TABLE, print_whole, titled_table
from luspo_cli.commands.display.format import DASH
from luspo_cli.metrics.intervals import LEVEL, Estimate
from luspo_cli.metrics.seed_statistics import POWER


def print_forks(comparison: ForkComparison, console: Console) -> None:
    """Print the variants, their paired differences, and what a reader of the numbers must know."""
    parts: list[RenderableType] = []
    for first in range(0, len(comparison.variants), VARIANTS_A_TABLE):
        parts += [_variants_table(comparison, comparison.variants[first : first + VARIANTS_A_TABLE]), ""]
    if comparison.differences:
        parts += [_differences_table(comparison), "", _verdicts_table(comparison), ""]
    parts += [Text(line, style="dim") for line in _statements(comparison)]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in _warnings(comparison)]
    print_whole(Group(*parts), console)


def forks_json(comparison: ForkComparison) -> dict[str, Any]:
    """Return variants and differences as plain JSON values; all pairs of variants."""
    units = {key: {"title": measure.title, "unit": measure.unit} for key, measure in MEASURES.items()}
    verdicts = [{"verdict_text": _verdict(pair)} for pair in comparison.differences]
    found = asdict(comparison)
    found["differences"] = [pair | text for pair, text in zip(found["differences"], verdicts, strict=True)]
    return {"level": LEVEL, "measures": units} | found


def _variants_table(comparison: ForkComparison, variants: Sequence[VariantForks]) -> Table:
    steps = "1 step" if comparison.steps == 1 else f"{comparison.steps} steps"
    table = titled_table(f"Change in {steps} from step {comparison.step} of {Path(comparison.parent).name}")
    table.add_column("measure\nclip low / high", no_wrap=True)
    table.add_column("the parent", justify="right", no_wrap=True)
    for variant in variants:
        table.add_column(Text(f"{variant.name}\n{_clip_range(variant)}"), justify="right", no_wrap=True)
    for key, measure in MEASURES.items():
        start = measure.write(comparison.start[key].mean)
        table.add_row(measure.named, start, *(_with_half(key, variant.change[key]) for variant in variants))
    return table


def _differences_table(comparison: ForkComparison) -> Table:
    table = titled_table("Differences, replicate by replicate")
    table.add_column("difference", overflow="fold")
    table.add_column("measure", no_wrap=True)
    for title in ("mean", "positive", "can be shown"):
        table.add_column(title, justify="right", no_wrap=True)
    previous = ""
    for pair in shown_differences(comparison):
        name = f"{pair.first} − {pair.second}"
        measure = MEASURES[pair.measure]
        table.add_row(
            Text("" if name == previous else name),
            measure.named,
            _with_half(pair.measure, pair.estimate),
            f"{pair.positive} of {pair.estimate.n}",
            DASH if pair.detectable is None else measure.write(pair.detectable),
        )
        previous = name
    return table


def _verdicts_table(comparison: ForkComparison) -> Table:
    table = titled_table("What the pairs show")
    table.add_column("difference", overflow="fold")
    table.add_column("verdict", overflow="fold")
    previous = ""
    for pair in shown_differences(comparison):
        name = f"{pair.first} − {pair.second}"
        if name != previous:
            table.add_row(Text(name))
        table.add_row(f"  {MEASURES[pair.measure].title}", _verdict(pair))
        previous = name
    return table


def _verdict(pair: PairedDifference) -> str:
    return verdict_text(pair, MEASURES[pair.measure], "replicates")


def shown_differences(comparison: ForkComparison) -> list[PairedDifference]:
    """The pairs that differ in the objective alone or in the label alone; the JSON has the others too."""
    of = {variant.name: variant for variant in comparison.variants}
    return [
        found
        for found in comparison.differences
        if of[found.first].objective == of[found.second].objective or of[found.first].label == of[found.second].label
    ]


def _statements(comparison: ForkComparison) -> Iterator[str]:
    replicates = len(comparison.seeds)
    yield (
        "Held out: the same problems and seeds for all variants of a replicate. Length and accuracy: responses of the policy's"
        " own; reweighted: from the parent's responses, each weighted by its probability under the policy over that under the"
        " parent. Entropy and KL of the policy from the parent (k3): over the parent's responses, means per token."
    )
    if comparison.shared_first_step:
        yield "Step 1 trained on the same rollouts in all variants of a replicate; later steps share problems and seeds."
    if replicates > 1:
        yield f"±: half of the {LEVEL:.0%} interval over {replicates} replicates, Student t with n - 1 degrees of freedom."
        yield (
            f"Can be shown: the smallest true difference that {replicates} replicates of this spread show in {POWER:.0%} of"
            " cases; within noise is no proof of equality."
        )
    else:
        yield "One replicate has no interval: differences may be chance."
    yield "Intervals cover replicates of this checkpoint; they say nothing about other checkpoints, models or data."


def _clip_range(variant: VariantForks) -> str:
    if variant.clip_low is None or variant.clip_high is None:
        return DASH
    return f"{variant.clip_low:g} / {variant.clip_high:g}"


def _with_half(key: str, found: Estimate) -> str:
    measure = MEASURES[key]
    text = measure.write(found.mean, signed=True)
    return text if found.half_width is None else f"{text} ± {measure.write(found.half_width)}"


def _warnings(comparison: ForkComparison) -> Iterator[str]:
    few = [variant for variant in comparison.variants if variant.sample_size < FEW]
    if few:
        named = ", ".join(f"{variant.name} ({variant.sample_size:.0%})" for variant in few)
        yield (
            f"of the parent's responses the weights leave less than {FEW:.0%} in some replicate, in the worst one of {named};"
            " take the numbers that are not reweighted, or fewer --steps"
        )
    if not comparison.shared_first_step:
        yield "the variants of a replicate did not all train on the same rollouts in step 1"
