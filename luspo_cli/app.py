"""The command line: registrations only."""

from __future__ import annotations

from typing import Annotated

import typer

from luspo_cli import __version__
from luspo_cli.commands import compare, eval, merge, objectives, plot_length, prepare_data, train

app = typer.Typer(
    name="luspo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


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


def _epilog(examples: list[str]) -> str:
    return "**Examples**\n\n" + "\n\n".join(f"`{example}`" for example in examples)


app.command("prepare-data", epilog=_epilog(prepare_data.PREPARE_DATA_EXAMPLES))(prepare_data.prepare_data_cli)
app.command("train", epilog=_epilog(train.TRAIN_EXAMPLES))(train.train_cli)
app.command("eval", epilog=_epilog(eval.EVAL_EXAMPLES))(eval.eval_cli)
app.command("compare", epilog=_epilog(compare.COMPARE_EXAMPLES))(compare.compare_cli)
app.command("merge", epilog=_epilog(merge.MERGE_EXAMPLES))(merge.merge_cli)
app.command("plot-length", epilog=_epilog(plot_length.PLOT_LENGTH_EXAMPLES))(plot_length.plot_length_cli)
app.command("objectives", epilog=_epilog(objectives.OBJECTIVES_EXAMPLES))(objectives.objectives_cli)
