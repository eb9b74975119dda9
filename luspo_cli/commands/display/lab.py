"""The lab's answers as tables for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from luspo_cli.commands.display.comparison import print_whole, titled_table
from luspo_cli.commands.display.format import DASH
from luspo_cli.config.objective_text import clip_form
from luspo_cli.experiments.lab.study import Study
from luspo_cli.experiments.lab.summary import LabSummary
from luspo_cli.experiments.lab.switches import causes_present
from luspo_cli.metrics.intervals import LEVEL, Estimate


def print_study(study: Study, console: Console) -> None:
    """Print the table of experiments, the effects of causes, and what a reader of the numbers must know."""
    parts: list[RenderableType] = [_rows_table(study), "", _kept_table(study)]
    if study.effects:
        parts += ["", _effects_table(study)]
    parts += ["", *(Text(line, style="dim") for line in _statements(study))]
    print_whole(Group(*parts), console)


def study_json(study: Study) -> dict[str, Any]:
    """Return rows and effects as plain JSON values."""
    return {
        "level": LEVEL,
        "swept": study.swept or None,
        "rows": [asdict(row) for row in study.rows],
        "effects": [asdict(effect) for effect in study.effects],
    }


def _rows_table(study: Study) -> Table:
    table = titled_table("Exact model")
    table.add_column(f"objective\n{study.swept}".rstrip(), no_wrap=True)
    for title in (
        "clip\nlow / high",
        "length\nstart",
        "length\nfinal",
        "sd over\nseeds",
        "accuracy\nfinal",
        "clipped\nlow",
        "clipped\nhigh",
        "kept\nadvantage",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for row in study.rows:
        found = row.estimates
        table.add_row(
            row.label,
            _clip_range(row),
            f"{found['length_start'].mean:.1f}",
            _with_half(found["length_final"], ".2f"),
            f"{row.spread:.1f}",
            f"{found['accuracy_final'].mean:.3f}",
            f"{found['clipped_low'].mean:.3f}",
            f"{found['clipped_high'].mean:.3f}",
            _with_half(found["kept_advantage"], "+.4f"),
        )
    return table


def _kept_table(study: Study) -> Table:
    """Mean kept advantage by length: a row an experiment, a column a bin; and the pressure that follows."""
    starts = sorted({part.start for row in study.rows for part in row.kept_by_length})
    table = titled_table("Kept advantage by length (tokens from)")
    table.add_column(f"objective\n{study.swept}".rstrip(), no_wrap=True)
    table.add_column("expected\npressure", justify="right", no_wrap=True)
    table.add_column("of the\nclip", justify="right", no_wrap=True)
    for start in starts:
        table.add_column(f"\n{start}", justify="right", no_wrap=True)
    for row in study.rows:
        of_bins = {part.start: f"{part.kept.mean:+.2f}" for part in row.kept_by_length}
        pressures = (_with_half(row.estimates[name], "+.2f") for name in ("expected_pressure", "clip_pressure"))
        table.add_row(row.label, *pressures, *(of_bins.get(start, DASH) for start in starts))
    return table


def _effects_table(study: Study) -> Table:
    table = titled_table("Without one cause")
    table.add_column("cause", no_wrap=True)
    objectives = list(dict.fromkeys(effect.objective for effect in study.effects))
    for name in objectives:
        table.add_column(f"{name}\nfinal without", justify="right", no_wrap=True)
        table.add_column("\ncause adds", justify="right", no_wrap=True)
    found = {(effect.cause, effect.objective): effect for effect in study.effects}
    for cause in causes_present(study.effects):
        cells = [found[cause, name] for name in objectives]
        table.add_row(
            cause,
            *(text for cell in cells for text in (_maybe(cell.final_without, ".1f"), _maybe(cell.effect, "+.1f"))),
        )
    return table


def _statements(study: Study) -> Iterator[str]:
    yield (
        "Lengths in tokens: expected under the policy, no sampling noise; final: mean over the last tenth of the steps."
        " Clipped: share of sequences (token ratio: tokens) whose gradient the bound removed, over all steps."
    )
    yield (
        "Kept advantage: mean over a bin's responses of what no bound removed; expected pressure: its covariance, times the token"
        " weight, with length, in tokens; above 0 the update favours long responses (docs/length.md, section 8)."
    )
    yield f"±: half of the {LEVEL:.0%} interval over {study.rows[0].seeds} seeds (Student); about two standard errors."
    truncated = max(row.estimates["truncated"].mean for row in study.rows)
    if truncated > 0:
        yield f"Up to {truncated:.1%} of the responses met the limit and count as wrong: here length has a price."
    if study.effects:
        yield (
            "Cause adds: final length with the cause less without it, paired by seed; effects need not add up. Without Adam:"
            " SGD with steps as long as Adam's on average."
        )
    yield "A model of the causes, not of a network: docs/length.md has both."


def _clip_range(row: LabSummary) -> str:
    if row.clip_low is None or row.clip_high is None:
        return DASH
    form = clip_form(row.clip_on, row.clip_band).strip().replace("on the ", "")
    return "\n".join(filter(None, [f"{row.clip_low:g} / {row.clip_high:g}", form]))


def _with_half(found: Estimate, form: str) -> str:
    text = format(found.mean, form)
    return text if found.half_width is None else f"{text} ± {format(found.half_width, form.lstrip('+'))}"


def _maybe(found: Estimate | None, form: str) -> str:
    return DASH if found is None else _with_half(found, form)
