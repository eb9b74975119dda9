"""`luspo objectives`: each name with its four parts, its equation, its paper and the peers' spelling of it.

"GRPO" means several formulas in the field, so the names are printed from the table that the loss itself reads. Nothing
here needs torch.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import typer
from typer import Argument, Option

from luspo_cli.config.objective import NAMED_OBJECTIVES
from luspo_cli.config.objective_text import ObjectiveText, chosen_names, configured, describe
from luspo_cli.config.own_objective import installed

ABOUT = (
    "The objectives: list them (what `luspo objectives` does without a command), say which loss ran, and run the proofs on one of"
    " your own."
)
OBJECTIVES_EXAMPLES = ["luspo objectives", "luspo objectives luspo gspo", "luspo objectives --json"]


def objectives_cli(
    names: Annotated[list[str] | None, Argument(help="Names to show; all of them where none is given.")] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object, name → parts, for programs.")] = False,
) -> None:
    """List the objectives: four parts in words, clip range, equation, paper, and the spelling in TRL and verl."""
    texts = [describe(configured(name)) for name in chosen_names(names)]
    if as_json:
        typer.echo(json.dumps({text.name: objective_json(text) for text in texts}, indent=2))
    else:
        print_objectives(texts)
        if not names:
            print_installed()


def objective_json(text: ObjectiveText) -> dict[str, Any]:
    """The text with the identifiers and numbers of its configuration beside it."""
    return {"config": dataclasses.asdict(configured(text.name)), **dataclasses.asdict(text)}


def print_objectives(texts: list[ObjectiveText]) -> None:
    """Print an overview table, then the equation and spellings of each objective."""
    from rich.console import Console
    from rich.table import Table

    from luspo_cli.commands.display.details import print_details

    console = Console()
    overview = Table("name", "advantage", "ratio", "surrogate", "aggregation", "clip range", title="Objectives")
    for text in texts:
        config = configured(text.name)
        overview.add_row(
            text.name, config.advantage, config.ratio, config.surrogate, config.aggregation, text.clip_range
        )
    console.print(overview)
    for text in texts:
        console.print()
        print_details(console, text.name, text.lines())


def print_installed() -> None:
    """Print the names that installed packages bring, where there are any; none of them is imported."""
    from rich.console import Console

    from luspo_cli.commands.display.details import print_details

    lines = []
    for name, places in installed().items():
        for place, package in places.items():
            hidden = f"; the built-in {name} goes first: name {place}" if name in NAMED_OBJECTIVES else ""
            lines.append((name, f"{place} of {package}{hidden}"))
    if lines:
        console = Console()
        console.print()
        print_details(console, "of installed packages", lines)
