"""The command line: registrations, and what holds for every command: `~` is the home folder wherever a path is given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from luspo_cli import __version__
from luspo_cli.commands import (
    compare,
    eval,
    export_verl,
    fork,
    inspect,
    lab,
    merge,
    objectives,
    objectives_check,
    objectives_show,
    plot_length,
    prepare_data,
    push,
    train,
)

app = typer.Typer(
    name="luspo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


class Command(TyperCommand):
    """A command whose paths may begin with `~` where the shell leaves it there, as in `--run=~/x` and `--out "~/x"`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        left = super().parse_args(ctx, args)
        ctx.params = {name: _expanded(value) for name, value in ctx.params.items()}
        return left


class ListedByDefault(TyperGroup):
    """`luspo objectives` with words that are no command of its own lists: `luspo objectives`, `luspo objectives luspo --json`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args and args[0] in (*self.commands, "--help") else ["list", *args])


def _expanded(value: Any) -> Any:
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    if isinstance(value, list | tuple):
        return type(value)(map(_expanded, value))
    # Models, sources and presets are paths or names.
    return os.path.expanduser(value) if type(value) is str and value.startswith("~/") else value


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"luspo {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Train one model with GRPO, GSPO and LUSPO, and see what the objective does to response length."""


def _epilog(examples: list[str], about: str = "") -> str:
    return about + "**Examples**\n\n" + "\n\n".join(f"`{example}`" for example in examples)


app.command("prepare-data", cls=Command, epilog=_epilog(prepare_data.PREPARE_DATA_EXAMPLES, prepare_data.VIRL39K))(
    prepare_data.prepare_data_cli
)
app.command("train", cls=Command, epilog=_epilog(train.TRAIN_EXAMPLES))(train.train_cli)
app.command("eval", cls=Command, epilog=_epilog(eval.EVAL_EXAMPLES))(eval.eval_cli)
app.command("compare", cls=Command, epilog=_epilog(compare.COMPARE_EXAMPLES))(compare.compare_cli)
app.command("fork", cls=Command, epilog=_epilog(fork.FORK_EXAMPLES))(fork.fork_cli)
app.command("lab", cls=Command, epilog=_epilog(lab.LAB_EXAMPLES))(lab.lab_cli)
app.command("inspect", cls=Command, epilog=_epilog(inspect.INSPECT_EXAMPLES))(inspect.inspect_cli)
app.command("merge", cls=Command, epilog=_epilog(merge.MERGE_EXAMPLES))(merge.merge_cli)
app.command("push", cls=Command, epilog=_epilog(push.PUSH_EXAMPLES))(push.push_cli)
app.command("plot-length", cls=Command, epilog=_epilog(plot_length.PLOT_LENGTH_EXAMPLES))(plot_length.plot_length_cli)
objectives_app = typer.Typer(cls=ListedByDefault, rich_markup_mode="markdown")
objectives_app.command("list", cls=Command, epilog=_epilog(objectives.OBJECTIVES_EXAMPLES))(objectives.objectives_cli)
objectives_app.command("show", cls=Command, epilog=_epilog(objectives_show.SHOW_EXAMPLES))(objectives_show.show_cli)
objectives_app.command("check", cls=Command, epilog=_epilog(objectives_check.CHECK_EXAMPLES))(
    objectives_check.check_cli
)
app.add_typer(
    objectives_app,
    name="objectives",
    help=objectives.ABOUT,
    epilog=_epilog([*objectives.OBJECTIVES_EXAMPLES, *objectives_show.SHOW_EXAMPLES, *objectives_check.CHECK_EXAMPLES]),
)
app.command("export-verl", cls=Command, epilog=_epilog(export_verl.EXPORT_VERL_EXAMPLES))(export_verl.export_verl_cli)
