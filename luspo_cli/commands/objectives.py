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

from luspo_cli.config.objective_text import ObjectiveText, chosen_names, configured, describe, not_by_name
from luspo_cli.config.own_objective import installed
from luspo_cli.errors import UsageError

ABOUT = (
    "The objectives: list them (what `luspo objectives` does without a command), say which loss ran, and run the proofs on one of"
    " your own."
)
OBJECTIVES_EXAMPLES = [
    "luspo objectives",
    "luspo objectives luspo gspo",
    "luspo objectives --json",
    "luspo objectives --installed --json",
]


def objectives_cli(
    names: Annotated[list[str] | None, Argument(help="Names to show; all of them where none is given.")] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object, name → parts, for programs.")] = False,
    of_packages: Annotated[
        bool,
        Option("--installed", help="List the names that installed packages bring alone; none of them is imported."),
    ] = False,
) -> None:
    """List the objectives: four parts in words, clip range, equation, paper, and the spelling in TRL and verl."""
    if of_packages:
        if names:
            raise UsageError("--installed lists all that packages bring: leave the names out")
        if as_json:
            typer.echo(json.dumps(installed_json(), indent=2))
        else:
            print_installed("none: no installed package has the entry-point group luspo.objectives")
        return
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


def installed_json() -> dict[str, Any]:
    """Names that packages bring → `places`, each with its package, and the `reason` why a name does not stand for them."""
    return {name: {"places": dict(places), "reason": not_by_name(name)} for name, places in installed().items()}


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


def print_installed(otherwise: str = "") -> None:
    """Print the names that installed packages bring, `otherwise` where there are none; none of them is imported."""
    from rich.console import Console

    from luspo_cli.commands.display.details import print_details

    lines = []
    for name, places in installed().items():
        rows, reason = [f"{place} of {package}" for place, package in places.items()], not_by_name(name)
        if reason:
            rows = [*rows, reason] if len(rows) > 1 else [f"{rows[0]}; {reason}"]
        lines += [(name, row) for row in rows]
    if lines:
        console = Console()
        console.print()
        print_details(console, "of installed packages", lines)
    elif otherwise:
        typer.echo(otherwise)
