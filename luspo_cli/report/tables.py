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
from luspo_cli.analysis.variants import Variant, differing_values, expected_to_differ, show
from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.config.objective_text import describe
from luspo_cli.config.stored import flatten, with_defaults

OF_THE_UPDATE = (
    "rollout.problems", "rollout.group_size", "rollout.max_response_tokens", "rollout.temperature", "update.mini_batches",
    "update.optimizer", "update.learning_rate", "update.betas", "update.gradient_clip", "update.sampler_correction",
)  # fmt: skip
"""Numbers that the formula is executed with, beside the objective's own."""


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
    section = stored.get("objective")
    if not isinstance(section, Mapping):
        return None
    try:
        text = describe(ObjectiveConfig(**section))
    except (TypeError, ValueError) as error:
        return {"label": variant.label, "equation": None, "rows": [["not known to this version", str(error)]]}
    rows = [[title, said] for title, said in text.lines() if title != "equation"]
    leaves = flatten(stored)
    rows += [[key, show(leaves[key])] for key in OF_THE_UPDATE if key in leaves]
    counts = [leaves.get(key) for key in ("rollout.problems", "rollout.group_size", "update.mini_batches")]
    match counts:
        case [int(problems), int(size), int(parts)]:
            rows.append(["N, sequences of a mini-batch", f"{problems * size / parts:g}"])
    return {"label": variant.label, "equation": text.equation, "rows": rows}


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
