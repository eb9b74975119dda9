"""`luspo objectives check`: is a loss the same however its batch was padded, split, shared out and ordered?"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

if TYPE_CHECKING:
    from luspo_cli.training.objective_proofs import Proof, Proven

CHECK_EXAMPLES = [
    "luspo objectives check loss.py",
    "luspo objectives check loss.py:mine --json",
    "luspo objectives check luspo",
]


def check_cli(
    target: Annotated[
        str,
        Argument(
            metavar="FILE[:NAME]",
            help="A Python file or module, all its objectives or one; or the name of a built-in or installed objective.",
        ),
    ],
    as_json: Annotated[bool, Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Run the engine's proofs on a loss and say where it is not invariant, and by how much; exit status 1 where it is not."""
    from luspo_cli.training.objective_check import proven_of

    found = proven_of(target)
    if as_json:
        typer.echo(json.dumps({one.name: _as_json(one) for one in found}, indent=2))
    else:
        for one in found:
            _print(one)
    if not all(one.invariant for one in found):
        raise typer.Exit(1)


def _as_json(proven: Proven) -> dict[str, Any]:
    proofs = [
        {**asdict(proof), "difference": _finite(proof.difference), "holds": proof.holds} for proof in proven.proofs
    ]
    reads = {"reads": list(proven.reads), "reads_unknown": proven.reads_unknown or None}
    return {"invariant": proven.invariant, **reads, "proofs": proofs}


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _print(proven: Proven) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("proof", "what is changed", "result", title=proven.name, title_justify="left")
    for proof in proven.proofs:
        table.add_row(proof.name, proof.what, _result(proof))
    console = Console(highlight=False)
    console.print(table, markup=False)
    if proven.reads_unknown:
        console.print(f"reads: cannot be found out, for {proven.reads_unknown}", markup=False)
    elif proven.reads:
        console.print(f"reads: {'; '.join(proven.reads)}", markup=False)
    if proven.invariant:
        console.print("invariant: every proof holds\n")
    else:
        console.print(f"not invariant: {', '.join(proof.name for proof in proven.failed())}\n", markup=False)


def _result(proof: Proof) -> str:
    if proof.error:
        return f"failed: {proof.error}"
    if proof.holds:
        return "holds"
    how = f"differs by {proof.difference:.2g}" if math.isfinite(proof.difference) else "no"
    return f"{'note: ' * proof.note}{how}{f' ({proof.where})' if proof.where else ''}"
