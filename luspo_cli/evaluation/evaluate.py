"""The work behind `luspo eval MODEL_OR_RUN`: check every benchmark, load the model once, draw and score.

Nothing is loaded or written before all benchmarks, their data, prompts and earlier results have been looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from luspo_cli.errors import UsageError

if TYPE_CHECKING:
    from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem, Mode
    from luspo_cli.evaluation.judge import Judge
    from luspo_cli.evaluation.runner import Evaluation, EvaluationSettings, Finished, Progress
    from luspo_cli.evaluation.sampling import SamplingModel
    from luspo_cli.evaluation.weights import Weights

DEFAULT_RESPONSE_TOKENS = 2048
EVAL_SAMPLERS = ("auto", "in-process", "vllm")


@dataclass(frozen=True, slots=True)
class Drawing:
    """The options of generation as given; None: not given."""

    samples: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_response_tokens: int | None = None
    prompt: str | None = None
    seed: int | None = None
    limit: int | None = None
    dtype: str | None = None
    max_rows: int | None = None
    step: int | None = None
    replace: bool | None = None
    sampler: str | None = None
    revision: str | None = None
    trust_remote_code: bool | None = None


def run_evaluations(
    model: str,
    names: list[str],
    drawing: Drawing,
    *,
    data: Path | None,
    out: Path | None,
    mode: str = "rule",
    judge: Judge | None = None,
    on_progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Finished]:
    """Evaluate one model on benchmarks, one after the other; the model is loaded once, and only if something is to draw."""
    from luspo_cli.evaluation.runner import check, evaluate
    from luspo_cli.evaluation.sampling import choose_dtype, load_sampling_model
    from luspo_cli.evaluation.weights import find_weights

    loaded = {name: checked_benchmark(name, mode, drawing.prompt) for name in names}
    weights = find_weights(model, drawing.step, drawing.revision)
    for benchmark in loaded.values():
        _require_readable(benchmark, weights)
    problems = _all_problems(loaded, data, drawing.limit or 0)
    if judge is not None:
        judge.check()
    dtype = choose_dtype(drawing.dtype or "auto", weights.compute_dtype)
    settings = _settings(drawing, weights, dtype)
    found: list[SamplingModel] = []

    def load() -> SamplingModel:
        if not found:
            say(f"loading {weights.path} ({dtype})")
            found.append(
                load_sampling_model(
                    weights.path,
                    dtype,
                    settings.max_rows,
                    weights.revision,
                    bool(drawing.trust_remote_code),
                    sampler_name=settings.sampler,
                    max_response_tokens=settings.max_response_tokens,
                )
            )
        return found[0]

    for note in weights.notes:
        say(f"warning: {note}; taking the one before")
    fingerprint = weights.fingerprint()
    if fingerprint is None:  # a hub id that is not on this machine yet
        load()
        fingerprint = weights.fingerprint() or weights.path
    evaluations = []
    for name, benchmark in loaded.items():
        evaluation = _evaluation(benchmark, problems[name], drawing, settings, weights, fingerprint, mode, out)
        if benchmark.modality == "vision":
            evaluation = replace(evaluation, images=_image_folder(name, data, len(loaded) > 1))
        check(evaluation, replace_other=bool(drawing.replace))
        evaluations.append(evaluation)
    return [
        evaluate(
            evaluation,
            load,
            judge=judge,
            replace_other=bool(drawing.replace),
            on_progress=on_progress,
            say=say,
        )
        for evaluation in evaluations
    ]


def _image_folder(name: str, data: Path | None, several: bool) -> Path | None:
    from luspo_cli.evaluation.problem_source import benchmark_data

    if data is None:
        return None
    found = benchmark_data(name, data, several=several)
    return found if found.is_dir() else found.parent


def checked_benchmark(name: str, mode: str, variant: str | None) -> Benchmark:
    """Return the benchmark; UsageError if there is no such name, mode or prompt variant."""
    from luspo_cli.evaluation.benchmarks.table import load_benchmark

    benchmark = load_benchmark(name)
    benchmark.require_mode(mode)
    benchmark.template(variant)
    return benchmark


def _require_readable(benchmark: Benchmark, weights: Weights) -> None:
    if benchmark.modality == "text":
        return
    if weights.reads_images() is not False:  # None: a hub id that is not on the disk yet; loading it will tell
        return
    raise UsageError(
        f"{benchmark.name} shows pictures, and {weights.name} is a model for text only; choose --suite text, or score"
        " responses made elsewhere with --responses."
    )


def _all_problems(loaded: dict[str, Benchmark], data: Path | None, limit: int) -> dict[str, list[BenchmarkProblem]]:
    from luspo_cli.evaluation.problem_source import benchmark_problems, first_problems

    several = len(loaded) > 1
    return {
        name: first_problems(benchmark_problems(name, benchmark, data, several=several), limit, benchmark.name)
        for name, benchmark in loaded.items()
    }


def _settings(drawing: Drawing, weights: Weights, dtype: str) -> EvaluationSettings:
    from luspo_cli.evaluation.runner import MAX_ROWS, EvaluationSettings

    if drawing.top_p is not None and not 0 < drawing.top_p <= 1:
        raise UsageError(f"--top-p must be above 0 and at most 1, not {drawing.top_p:g}.")
    limit = drawing.max_response_tokens or weights.max_response_tokens or DEFAULT_RESPONSE_TOKENS
    return EvaluationSettings(
        samples=drawing.samples or 1,
        temperature=1.0 if drawing.temperature is None else drawing.temperature,
        top_p=1.0 if drawing.top_p is None else drawing.top_p,
        max_response_tokens=limit,
        seed=drawing.seed or 0,
        limit=drawing.limit or 0,
        dtype=dtype,
        max_rows=drawing.max_rows or MAX_ROWS,
        sampler=_sampler(drawing.sampler or "auto", weights),
    )


def _sampler(asked: str, weights: Weights) -> str:
    """The sampler of this evaluation; UsageError for an unknown one, or where it is missing or cannot read the model."""
    from luspo_cli.rollout.samplers import INSTALL_VLLM, choose_sampler, vllm_is_installed

    if asked not in EVAL_SAMPLERS:
        raise UsageError(f"--sampler must be one of {', '.join(EVAL_SAMPLERS)}, not '{asked}'.")
    choice = choose_sampler(asked, reads_images=bool(weights.reads_images()))
    if choice.name == "vllm" and not vllm_is_installed():
        raise UsageError(f"--sampler vllm needs vllm, which is not installed: {INSTALL_VLLM}")
    return choice.name


def _evaluation(
    benchmark: Benchmark,
    problems: list[BenchmarkProblem],
    drawing: Drawing,
    settings: EvaluationSettings,
    weights: Weights,
    fingerprint: str,
    mode: str,
    out: Path | None,
) -> Evaluation:
    from luspo_cli.evaluation.runner import Evaluation

    return Evaluation(
        benchmark=benchmark,
        problems=problems,
        variant=drawing.prompt or benchmark.default_prompt,
        mode=cast("Mode", mode),
        settings=settings,
        model=weights.name,
        weights=fingerprint,
        step=weights.step,
        out=out or weights.out,
    )
