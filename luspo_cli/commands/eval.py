"""`luspo eval`: draw responses with a model or a run's checkpoint and score them, or score responses made elsewhere.

Everything that the user can mend (names, data, prompts, results in the way) is checked for all benchmarks before the
model is loaded. The same command goes on where a killed one stopped, so there is no option for it.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from luspo_cli.errors import UsageError, nearest
from luspo_cli.evaluation.evaluate import Drawing, checked_benchmark, run_evaluations

if TYPE_CHECKING:
    from luspo_cli.evaluation.benchmark import Mode
    from luspo_cli.evaluation.judge import Judge, JudgeTask
    from luspo_cli.evaluation.runner import Finished
    from luspo_cli.evaluation.scorer import EvaluationResult

EVAL_EXAMPLES = [
    "luspo eval runs/tiny/luspo-seed0 --benchmark aime24 --data data/aime24 --samples 32",
    "luspo eval Qwen/Qwen2.5-0.5B-Instruct --suite text --samples 4 --temperature 0.7",
    "luspo eval my-model --benchmark math500,gsm8k --limit 100 --temperature 0 --out evals/quick",
    "luspo eval --benchmark math500 --responses responses.jsonl --data data/math500 --out scores.json",
    "luspo eval --list",
]
PLAIN_WIDTH = 180
"""Of tables that go to a file or a pipe: wide enough that no cell is folded."""


def eval_cli(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL_OR_RUN", help="A run, a folder of a model or adapter, or a hub id; none with --responses."
        ),
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", "-b", help="Names, comma between; `--list` shows them.")
    ] = None,
    suite: Annotated[str | None, typer.Option("--suite", help="text, vision or all.")] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder with the benchmark's files; of several, with a folder each. [the hub]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the results [RUN/evals or evals/MODEL]; with --responses the JSON file."),
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Responses a problem. [1]")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0.0, help="0: greedy. [1.0]")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Nucleus, above 0 up to 1. [1.0]")] = None,
    max_response_tokens: Annotated[
        int | None, typer.Option("--max-response-tokens", min=1, help="Response limit. [the run's; else 2048]")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Prompt variant; the extraction follows it. [the benchmark's]")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the draws. [0]")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="The first N problems only; the result says so.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="auto, float32 or bfloat16. [auto: the run's; else by machine]")
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", min=1, help="Responses in flight; a kill costs about so many. [64]")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option("--sampler", help="auto, in-process or vllm. [auto: vllm with a CUDA device, if installed]"),
    ] = None,
    step: Annotated[
        int | None, typer.Option("--step", min=1, help="The run's checkpoint of this step. [the newest whole one]")
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit of a hub id. [main]")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model. Read it first.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Draw anew where results with other settings stand.")
    ] = False,
    responses: Annotated[
        Path | None, typer.Option("--responses", help="Score this JSON-lines file; no model is needed.")
    ] = None,
    mode: Annotated[
        str, typer.Option("--mode", help="rule (ours, never guesses) or official (the benchmark's own script).")
    ] = "rule",
    judge_url: Annotated[
        str | None, typer.Option("--judge-url", help="OpenAI-compatible endpoint: a second verdict beside the rule's.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option("--judge-model", help="The judge's name at the endpoint.")] = None,
    judge_key_env: Annotated[
        str | None, typer.Option("--judge-key-env", help="Environment variable that holds the endpoint's key.")
    ] = None,
    judge_task: Annotated[
        str | None, typer.Option("--judge-task", help="extract (we compare) or verdict (the judge decides). [extract]")
    ] = None,
    judge_timeout: Annotated[
        float | None, typer.Option("--judge-timeout", help="Seconds that one request may take. [60]")
    ] = None,
    judge_workers: Annotated[
        int | None, typer.Option("--judge-workers", min=1, help="Requests in flight at the judge. [8]")
    ] = None,
    list_benchmarks: Annotated[
        bool, typer.Option("--list", help="List the benchmarks: licence, size, modality, version, prompts, hub ids.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Evaluate a model or a run on the field's benchmarks, or score responses made elsewhere."""
    if list_benchmarks:
        show_benchmarks(as_json=as_json)
        return
    drawing = Drawing(
        samples,
        temperature,
        top_p,
        max_response_tokens,
        prompt,
        seed,
        limit,
        dtype,
        max_rows,
        step,
        replace or None,
        sampler,
        revision,
        trust_remote_code or None,
    )
    names = chosen_benchmarks(benchmark, suite)
    judge = make_judge(judge_url, judge_model, judge_key_env, judge_task, judge_timeout, judge_workers)
    if responses is not None:
        _refuse_with_responses(model, names, drawing)
        if judge is not None:
            judge.check()
        content = score_file(
            names[0], responses, data, mode=mode, variant=drawing.prompt, judge=judge, out=out, say=_to_stderr
        )
        show_scores(content, out, as_json=as_json)
        return
    if model is None:
        raise UsageError("Say what to evaluate: a run folder, a model folder or a hub id; or --responses FILE.")
    from rich.console import Console

    from luspo_cli.commands.display.drawing import choose_progress

    try:
        with choose_progress(Console(stderr=True)) as progress:
            finished = run_evaluations(
                model,
                names,
                drawing,
                data=data,
                out=out,
                mode=mode,
                judge=judge,
                on_progress=progress,
                say=progress.say,
            )
    except KeyboardInterrupt:
        again = shlex.join(["luspo", *sys.argv[1:]])
        typer.echo(f"Stopped; finished chunks are kept. Go on with the same command: {again}", err=True)
        raise typer.Exit(130) from None
    show_results(finished, as_json=as_json)


def chosen_benchmarks(text: str | None, suite: str | None) -> list[str]:
    """Return command-line names of benchmarks in the given order; UsageError for none, an unknown or a repeated one."""
    from luspo_cli.evaluation.benchmarks.table import SUITES, load_benchmark

    if (text is None) == (suite is None):
        raise UsageError(
            "Give either --benchmark NAMES or --suite text|vision|all; `luspo eval --list` shows the names."
        )
    if suite is not None:
        if suite not in SUITES:
            raise UsageError(
                f"There is no suite '{suite}'{nearest(suite, SUITES)}; choose one of: {', '.join(SUITES)}."
            )
        return list(SUITES[suite])
    names = [name.strip().lower() for name in (text or "").split(",") if name.strip()]
    if not names:
        raise UsageError("--benchmark is empty; `luspo eval --list` shows the names.")
    for name in names:
        load_benchmark(name)
        if names.count(name) > 1:
            raise UsageError(f"--benchmark names {name} twice; name each benchmark once.")
    return names


def make_judge(
    url: str | None,
    model: str | None,
    key_env: str | None,
    task: str | None,
    timeout_s: float | None = None,
    workers: int | None = None,
) -> Judge | None:
    """Return the judge that the options describe, or None where there is none; UsageError for half of one."""
    if url is None and model is None:
        for option, value in (
            ("--judge-key-env", key_env),
            ("--judge-task", task),
            ("--judge-timeout", timeout_s),
            ("--judge-workers", workers),
        ):
            if value is not None:
                raise UsageError(f"{option} goes with --judge-url and --judge-model; add them or leave it out.")
        return None
    if not url or not model:
        raise UsageError("A judge needs both --judge-url and --judge-model; give the other one too.")
    key = os.environ.get(key_env) if key_env is not None else None
    if key_env is not None and not key:
        raise UsageError(f"The environment variable {key_env} of --judge-key-env is not set; put the key into it.")

    if timeout_s is not None and not 0 < timeout_s < math.inf:
        raise UsageError(f"--judge-timeout must be a number of seconds above 0, not {timeout_s:g}.")

    from luspo_cli.evaluation.judge import TIMEOUT_S, WORKERS, Judge

    return Judge(
        url,
        model,
        key=key,
        task=cast("JudgeTask", task or "extract"),
        timeout_s=timeout_s or TIMEOUT_S,
        workers=workers or WORKERS,
    )


def _refuse_with_responses(model: str | None, names: list[str], drawing: Drawing) -> None:
    if model is not None:
        raise UsageError(f"--responses needs no model; leave {model} out, or leave --responses out.")
    if len(names) > 1:
        raise UsageError("--responses holds the responses to one benchmark; name one with --benchmark.")
    for field in (
        "samples",
        "temperature",
        "top_p",
        "max_response_tokens",
        "seed",
        "limit",
        "dtype",
        "max_rows",
        "step",
        "sampler",
        "revision",
        "trust_remote_code",
    ):
        if getattr(drawing, field) is not None:
            raise UsageError(f"--{field.replace('_', '-')} is for drawing responses; leave it out with --responses.")
    if drawing.replace:
        raise UsageError("--replace is for drawing responses; with --responses the file of --out is always replaced.")


def score_file(
    name: str,
    responses: Path,
    data: Path | None,
    *,
    mode: str = "rule",
    variant: str | None = None,
    judge: Judge | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> EvaluationResult:
    """Score a responses file (docs/benchmarks.md) and return the EvaluationResult.

    The judge's replies are kept beside `out`, so that the same call does not ask for them again.
    """
    from luspo_cli.evaluation.problem_source import benchmark_problems
    from luspo_cli.evaluation.responses import ResponseReport, read_responses
    from luspo_cli.evaluation.scorer import score_samples

    benchmark = checked_benchmark(name, mode, variant)
    problems = benchmark_problems(name, benchmark, data, several=False)
    report = ResponseReport()
    samples = read_responses(responses, benchmark, problems, report)
    chosen = cast("Mode", mode)
    if judge is None:
        return score_samples(benchmark, problems, samples, mode=chosen, variant=variant, report=report)

    from luspo_cli.evaluation.judging import JudgeLog, judge_samples

    kept = list(samples)
    result = score_samples(benchmark, problems, kept, mode=chosen, variant=variant, report=report)
    replies = None if out is None else out.with_name(f"{out.stem}.judge.jsonl")
    return judge_samples(judge, benchmark, result, kept, JudgeLog(replies, judge), say=say)


def show_scores(result: EvaluationResult, out: Path | None, *, as_json: bool) -> None:
    """Write the result file where one is asked for, and print the summary."""
    if out is not None:
        result.write(out)
    content = result.to_json()
    if as_json:
        summary = {key: value for key, value in content.items() if key != "problems"}
        typer.echo(json.dumps({**summary, "file": None if out is None else str(out)}, allow_nan=False))
        return
    _print_table([content])
    if out is not None:
        typer.echo(f"\n{out}")


def show_results(finished: list[Finished], *, as_json: bool) -> None:
    """Print the summary of drawn and scored benchmarks."""
    if as_json:
        typer.echo(json.dumps({"results": [_summary(one) for one in finished]}, allow_nan=False))
        return
    _print_table([dict(one.content) for one in finished])
    typer.echo("")
    for one in finished:
        typer.echo(f"{one.json_file} and {one.samples_file.name}")


def _summary(finished: Finished) -> dict[str, Any]:
    shown = {key: value for key, value in finished.content.items() if key not in ("problems", "responses")}
    files = {"file": str(finished.json_file), "samples_file": str(finished.samples_file)}
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


def _print_table(contents: list[dict[str, Any]]) -> None:
    from luspo_cli.commands.display.results import result_table, warnings

    _console().print(result_table(contents))
    for content in contents:
        for warning in warnings(content):
            _to_stderr(f"warning: {warning}")


def _console() -> Any:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def _to_stderr(text: str) -> None:
    typer.echo(text, err=True)
