"""What stands in the page as text: the comparison's tables, the configuration of the runs, the formula of each objective.

The tables are those that the terminal prints, taken over cell by cell, so the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from luspo_cli.analysis.history import RunHistory
from luspo_cli.analysis.variants import Variant, differing_values, expected_to_differ
from luspo_cli.config.executed import executed
from luspo_cli.config.stored import flatten, show, with_defaults


def parts_of(rendered: RenderableType) -> list[dict[str, Any]]:
    """Return printed tables and sentences, in order: `{"title", "columns": [{"title", "right"}], "rows"}` or `{"text"}`."""
    return [part for one in _flat(rendered) if (part := _part(one)) is not None]


def configuration(runs: Sequence[RunHistory]) -> dict[str, Any]:
    """The keys in which the runs differ, those expected to differ marked, with the value in each run; and how many are equal."""
    recorded = [run for run in runs if run.config]
    configs = [with_defaults(run.config) for run in recorded]
    differing = differing_values(configs)
    keys = {key for config in configs for key in flatten(config)}
    return {
        "runs": [run.name for run in recorded],
        "equal": len(keys) - len(differing),
        "keys": [
            {"key": key, "expected": expected_to_differ(key), "values": [show(value) for value in values]}
            for key, values in differing.items()
        ],
    }


def formulas(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Of each variant the loss as its runs executed it: `{"label", "equation", "rows": [[title, text]]}`, from config.json."""
    return [found for variant in variants if (found := _formula(variant)) is not None]


def _formula(variant: Variant) -> dict[str, Any] | None:
    stored = with_defaults(variant.runs[0].config)
    if not isinstance(stored.get("objective"), Mapping):
        return None
    try:
        found = executed(stored)
    except (TypeError, ValueError) as error:
        return {"label": variant.label, "equation": None, "rows": [["not known to this version", str(error)]]}
    return {"label": variant.label, "equation": found.equation, "rows": [list(row) for row in found.rows]}


def _flat(rendered: RenderableType) -> Iterator[RenderableType]:
    if isinstance(rendered, Group):
        for one in rendered.renderables:
            yield from _flat(one)
    else:
        yield rendered


def _part(rendered: RenderableType) -> dict[str, Any] | None:
    if isinstance(rendered, Table):
        cells = [[_text(cell) for cell in column.cells] for column in rendered.columns]
        return {
            "title": _text(rendered.title or ""),
            "columns": [
                {"title": _text(column.header), "right": column.justify == "right"} for column in rendered.columns
            ],
            "rows": [list(row) for row in zip(*cells, strict=True)],
        }
    text = _text(rendered)
    return {"text": text} if text.strip() else None


def _text(cell: RenderableType) -> str:
    if isinstance(cell, Text):
        return cell.plain
    # Cells that are plain strings may hold rich's markup.
    return Text.from_markup(cell).plain if isinstance(cell, str) else str(cell)
