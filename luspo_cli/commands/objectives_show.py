"""`luspo objectives show`: which loss ran, or would run, with every number."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from luspo_cli.errors import UsageError, nearest

SHOW_EXAMPLES = [
    "luspo objectives show runs/tiny-luspo-seed0",
    "luspo objectives show luspo --preset tiny",
    "luspo objectives show gspo --json",
    "luspo objectives show trl_config.yaml",
    "luspo objectives show run_verl.sh",
]


def show_cli(
    target: Annotated[
        str,
        Argument(
            metavar="RUN_OR_NAME",
            help="A run folder, an objective's name, or a file with another trainer's settings: TRL's GRPOConfig as YAML or JSON,"
            " verl's overrides as YAML, lines or a shell script.",
        ),
    ],
    preset: Annotated[str | None, Option(help="With a name: the preset whose numbers it would run with.")] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Say which loss ran, or would: the equation as executed, with every number; of TRL's and verl's settings too."""
    path = Path(target)
    if path.is_dir() or path.is_file():
        if preset is not None:
            raise UsageError(f"--preset goes with an objective's name: {target} has its own numbers")
        shown = _of_run(path) if path.is_dir() else _of_peer(path)
    else:
        shown = _of_name(target, preset)
    if as_json:
        typer.echo(json.dumps(shown, indent=2))
    else:
        from rich.console import Console

        from luspo_cli.commands.display.details import print_details

        print_details(
            Console(), shown["title"], [("equation", shown["equation"] or "none in our words"), *shown["rows"]]
        )


def _of_run(path: Path) -> dict[str, Any]:
    from luspo_cli.config.stored import with_defaults
    from luspo_cli.files import require_object

    stored = require_object(path / "config.json", "name a run folder, or an objective")
    if not isinstance(stored.get("objective"), dict):
        raise UsageError(f"{path / 'config.json'} has no [objective]: name the folder of a run, or an objective")
    return _as_executed(f"{stored['objective'].get('name')} as run in {path}", with_defaults(stored))


def _of_peer(path: Path) -> dict[str, Any]:
    from luspo_cli.config.other_trainers.files import read_peer_loss

    return read_peer_loss(path).answer()


def _of_name(name: str, preset: str | None) -> dict[str, Any]:
    from luspo_cli.config.objective import NAMED_OBJECTIVES, resolve
    from luspo_cli.config.own_objective import is_own, with_installed

    if name not in NAMED_OBJECTIVES and name != "custom" and not is_own(name):
        known = with_installed(NAMED_OBJECTIVES)
        raise UsageError(
            f"{name} is neither a folder, nor a file, nor an objective{nearest(name, known)}: name a run folder, a"
            f" file with settings of TRL or verl, or one of {', '.join(known)}"
        )
    if preset is not None:
        from luspo_cli.config.layers import resolve_train

        config = resolve_train(preset=preset, objective=name)
        return _as_executed(f"{name} with preset {preset}", config.model_dump(mode="json"))
    try:
        section = dataclasses.asdict(resolve(name))
    except ValueError as error:
        shown = "; a run or a preset that sets them can be shown" if name == "custom" else ""
        raise UsageError(f"{error}{shown}") from None
    return _as_executed(
        f"{name} with its own numbers; --preset or a run has those of a batch too", {"objective": section}
    )


def _as_executed(title: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    from luspo_cli.config.executed import executed

    try:
        found = executed(stored)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{title}: an objective that this version does not know: {error}") from None
    return {"title": title, "config": stored["objective"], **dataclasses.asdict(found)}
