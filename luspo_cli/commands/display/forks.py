"""What `luspo fork` found as tables for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from luspo_cli.analysis.forks import MEASURES, ForkComparison, ForkDifference, VariantForks
from luspo_cli.commands.display.comparison import print_whole, titled_table
from luspo_cli.commands.display.format import DASH
from luspo_cli.metrics.intervals import LEVEL, Estimate


def print_forks(comparison: ForkComparison, console: Console) -> None:
    """Print the variants, their paired differences, and what a reader of the numbers must know."""
    parts: list[RenderableType] = [_variants_table(comparison)]
    if comparison.differences:
        parts += ["", _differences_table(comparison)]
    parts += ["", *(Text(line, style="dim") for line in _statements(comparison))]
    print_whole(Group(*parts), console)


def forks_json(comparison: ForkComparison) -> dict[str, Any]:
    """Return variants and differences as plain JSON values; all pairs of variants."""
    units = {key: {"title": measure.title, "unit": measure.unit} for key, measure in MEASURES.items()}
    return {"level": LEVEL, "measures": units} | asdict(comparison)


def _variants_table(comparison: ForkComparison) -> Table:
    parent = Path(comparison.parent).name
    table = titled_table(f"{comparison.steps} steps from step {comparison.step} of {parent}")
    table.add_column("variant", no_wrap=True)
    table.add_column("clip\nlow / high", justify="right", no_wrap=True)
    for measure in MEASURES.values():
        table.add_column(f"{measure.title}\n({measure.unit})", justify="right", no_wrap=True)
        if measure is not MEASURES["kl"]:
            table.add_column("\nchange", justify="right", no_wrap=True)
    start = comparison.start
    before = (cell for key in ("length", "accuracy", "entropy") for cell in (_mean(key, start[key]), ""))
    table.add_row("(the parent)", "", *before, _mean("kl", start["kl"]))
    for variant in comparison.variants:
        cells = [
            cell
            for key in ("length", "accuracy", "entropy")
            for cell in (_mean(key, variant.final[key]), _with_half(key, variant.change[key]))
        ]
        table.add_row(variant.name, _clip_range(variant), *cells, _with_half("kl", variant.final["kl"], signed=False))
    return table


def _differences_table(comparison: ForkComparison) -> Table:
    table = titled_table("Differences, replicate by replicate")
    table.add_column("difference", overflow="fold")
    table.add_column("measure", no_wrap=True)
    for title in ("mean", "positive"):
        table.add_column(title, justify="right", no_wrap=True)
    previous = ""
    for found in shown_differences(comparison):
        name = f"{found.first} − {found.second}"
        measure = MEASURES[found.measure]
        table.add_row(
            Text("" if name == previous else name),
            f"{measure.title} ({measure.unit})" if measure.unit != "1" else measure.title,
            _with_half(found.measure, found.estimate),
            f"{found.positive} of {found.estimate.n}",
        )
        previous = name
    return table


def shown_differences(comparison: ForkComparison) -> list[ForkDifference]:
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
        " own. Entropy and KL: over the parent's responses, KL of the policy from the parent (k3), means per token."
    )
    if comparison.shared_first_step:
        yield "Step 1 trained on the same rollouts in all variants of a replicate; later steps share problems and seeds."
    if replicates > 1:
        yield f"±: half of the {LEVEL:.0%} interval over {replicates} replicates, Student t with n - 1 degrees of freedom."
    else:
        yield "One replicate has no interval: differences may be chance."
    yield "Intervals cover replicates of this checkpoint; they say nothing about other checkpoints, models or data."


def _clip_range(variant: VariantForks) -> str:
    if variant.clip_low is None or variant.clip_high is None:
        return DASH
    return f"{variant.clip_low:g} / {variant.clip_high:g}"


def _mean(key: str, found: Estimate) -> str:
    return format(found.mean, MEASURES[key].form)


def _with_half(key: str, found: Estimate, *, signed: bool = True) -> str:
    form = MEASURES[key].form
    text = format(found.mean, f"+{form}" if signed else form)
    return text if found.half_width is None else f"{text} ± {format(found.half_width, form)}"
