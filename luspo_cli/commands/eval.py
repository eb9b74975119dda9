"""`luspo eval`: draw responses with a model or a run's checkpoint and score them, or score responses made elsewhere.

Everything that the user can mend (names, data, prompts, results in the way) is checked for all benchmarks before the
model is loaded. The same command goes on where a killed one stopped, so there is no option for it.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

if TYPE_CHECKING:
    from luspo_cli.config.eval import EvalRun
    from luspo_cli.evaluation.scorer import Finished

EVAL_EXAMPLES = [
    "luspo eval runs/gsm8k-luspo --benchmark gsm8k --data data/gsm8k --samples 4",
    "luspo eval Qwen/Qwen2.5-0.5B-Instruct --suite text --samples 4 --temperature 0.7",
    "luspo eval my-model --benchmark math500,gsm8k --limit 100 --temperature 0 --out evals/quick",
    "luspo eval --benchmark math500 --responses responses.jsonl --data data/math500 --out scores.json",
    "luspo eval my-model --benchmark own.toml --samples 4",
    "luspo eval my-model --suite text --set 'sampling.chat_template={enable_thinking=false}'",
    "luspo eval --list",
]
PLAIN_WIDTH = 180
"""Of tables that go to a file or a pipe: wide enough that no cell is folded."""


def eval_cli(
    context: typer.Context,
    model: Annotated[
        str | None,
        Argument(
            metavar="MODEL_OR_RUN", help="A run, a folder of a model or adapter, or a hub id; none with --responses."
        ),
    ] = None,
    benchmark: Annotated[
        str | None, Option("--benchmark", "-b", help="Names, comma between; `--list` shows them. FILE.toml: one's own.")
    ] = None,
    suite: Annotated[str | None, Option(help="text, vision or all.")] = None,
    data: Annotated[
        Path | None, Option(help="Folder with the benchmark's files; of several, with a folder each. [the hub]")
    ] = None,
    out: Annotated[
        Path | None, Option(help="Folder of the results [RUN/evals or evals/MODEL]; with --responses the JSON file.")
    ] = None,
    samples: Annotated[int | None, Option(min=1, help="Responses a problem. [1]")] = None,
    temperature: Annotated[float | None, Option(min=0.0, help="0: greedy. [1.0]")] = None,
    top_p: Annotated[float | None, Option(help="Nucleus, above 0 up to 1. [1.0]")] = None,
    max_response_tokens: Annotated[int | None, Option(min=1, help="Response limit. [the run's; else 2048]")] = None,
    prompt: Annotated[str | None, Option(help="Prompt variant; the extraction follows it. [the benchmark's]")] = None,
    seed: Annotated[int | None, Option(min=0, help="Of the draws. [0]")] = None,
    limit: Annotated[int | None, Option(min=1, help="The first N problems only; the result says so.")] = None,
    dtype: Annotated[str | None, Option(help="auto, float32 or bfloat16. [auto: the run's; else by machine]")] = None,
    max_rows: Annotated[int | None, Option(min=1, help="Responses in flight; a kill costs about so many. [64]")] = None,
    sampler: Annotated[
        str | None, Option(help="auto, in-process or vllm. [auto: vllm with a CUDA device, if installed]")
    ] = None,
    step: Annotated[int | None, Option(min=1, help="The run's checkpoint of this step. [the newest whole one]")] = None,
    revision: Annotated[str | None, Option(help="Branch, tag or commit of a hub id. [main]")] = None,
    trust_remote_code: Annotated[
        bool, Option("--trust-remote-code", help="Run Python code that comes with the model. Read it first.")
    ] = False,
    replace: Annotated[bool, Option("--replace", help="Draw anew where results with other settings stand.")] = False,
    responses: Annotated[Path | None, Option(help="Score this JSON-lines file; no model is needed.")] = None,
    mode: Annotated[
        str | None, Option(help="rule (ours, never guesses) or official (the benchmark's own script). [rule]")
    ] = None,
    judge_url: Annotated[
        str | None, Option(help="OpenAI-compatible endpoint: a second verdict beside the rule's.")
    ] = None,
    judge_model: Annotated[str | None, Option(help="The judge's name at the endpoint.")] = None,
    judge_key_env: Annotated[str | None, Option(help="Environment variable that holds the endpoint's key.")] = None,
    judge_task: Annotated[
        str | None, Option(help="extract (we compare) or verdict (the judge decides). [extract]")
    ] = None,
    judge_timeout: Annotated[float | None, Option(help="Seconds that one request may take. [60]")] = None,
    judge_workers: Annotated[int | None, Option(min=1, help="Requests in flight at the judge. [8]")] = None,
    config: Annotated[Path | None, Option(help="A TOML file with the keys that options and --set set.")] = None,
    sets: Annotated[
        list[str] | None, Option("--set", help="section.key=value, on top of everything; can be repeated.")
    ] = None,
    list_benchmarks: Annotated[
        bool, Option("--list", help="List the benchmarks: licence, size, modality, version, prompts, hub ids.")
    ] = False,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Evaluate a model or a run on the field's benchmarks, or score responses made elsewhere."""
    if list_benchmarks:
        show_benchmarks(as_json=as_json)
        return
    # Here, because pydantic's sections take longer than all else of `luspo --help`.
    from luspo_cli.config.eval import OPTIONS, resolve_eval

    given = {name: context.params[name] for name in OPTIONS}
    options = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in given.items()
        if value is not None and value is not False  # 0 is a temperature
    }
    evaluate(resolve_eval(options, sets=sets or (), config_file=config), as_json=as_json)


def evaluate(config: EvalRun, *, as_json: bool = False) -> None:
    """Run an evaluation, report on stderr and print the summary; exits 130 where Ctrl-C stopped it."""
    from rich.console import Console

    from luspo_cli.commands.display.drawing import choose_progress
    from luspo_cli.evaluation.evaluate import run_evaluation
    from luspo_cli.runs.log import StderrHandler, messages_to

    try:
        with choose_progress(Console(stderr=True)) as progress, messages_to([StderrHandler()]):
            finished = run_evaluation(config, on_progress=progress)
    except KeyboardInterrupt:
        again = shlex.join(["luspo", *sys.argv[1:]])
        typer.echo(f"Stopped; finished chunks are kept. Go on with the same command: {again}", err=True)
        raise typer.Exit(130) from None
    if config.responses.file:
        show_scores(finished[0], as_json=as_json)
    else:
        show_results(finished, as_json=as_json)


def show_scores(finished: Finished, *, as_json: bool) -> None:
    """Print the summary of a scored responses file."""
    file = finished.json_file
    if as_json:
        summary = {key: value for key, value in finished.content.items() if key != "problems"}
        typer.echo(json.dumps({**summary, "file": None if file is None else str(file)}, allow_nan=False))
        return
    _print_tables([finished])
    if file is not None:
        typer.echo(f"\n{file}")


def show_results(finished: list[Finished], *, as_json: bool) -> None:
    """Print the summary of drawn and scored benchmarks."""
    if as_json:
        typer.echo(json.dumps({"results": [_summary(one) for one in finished]}, allow_nan=False))
        return
    _print_tables(finished)
    typer.echo("")
    for one in finished:
        files = [file.name for file in (one.samples_file, one.blind_samples_file) if file is not None]
        typer.echo(f"{one.json_file} and {', '.join(files) or 'no samples'}")


def _summary(finished: Finished) -> dict[str, Any]:
    shown = {key: value for key, value in finished.content.items() if key not in ("problems", "responses")}
    files = {"file": str(finished.json_file), "samples_file": str(finished.samples_file)}
    if finished.blind_samples_file is not None:
        files["blind_samples_file"] = str(finished.blind_samples_file)
    return {**shown, **files, "drawn": finished.drawn, "found": finished.found}


def show_benchmarks(*, as_json: bool) -> None:
    """Print the table of benchmarks."""
    from luspo_cli.commands.display.results import benchmark_json, benchmark_table
    from luspo_cli.evaluation.benchmarks.table import BENCHMARKS, load_benchmark

    rows = [benchmark_json(name, load_benchmark(name)) for name in BENCHMARKS]
    if as_json:
        typer.echo(json.dumps({"benchmarks": rows}))
    else:
        _console().print(benchmark_table(rows))


def _print_tables(finished: list[Finished]) -> None:
    from luspo_cli.commands.display.results import breakdown, result_table, warnings

    _console().print(result_table([one.content for one in finished]))
    for one in finished:
        if (table := breakdown(one.content, one.tables)) is not None:
            typer.echo("")
            _console().print(table)
    for one in finished:
        for warning in warnings(one.content):
            typer.echo(f"warning: {warning}", err=True)


def _console() -> Any:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)
