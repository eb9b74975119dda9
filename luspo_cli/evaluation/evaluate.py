"""The work behind `luspo eval`: check every benchmark, load the model once, draw and score; or score responses made elsewhere.

Nothing is loaded or written before all benchmarks, their data, prompts and earlier results have been looked at.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luspo_cli.config.eval import BenchmarkConfig, EvalRun, Mode, SamplingConfig
from luspo_cli.errors import UsageError, nearest
from luspo_cli.evaluation.benchmark import Benchmark
from luspo_cli.evaluation.benchmarks.table import SUITES, load_benchmark
from luspo_cli.evaluation.problems import BenchmarkProblem, benchmark_data, first_problems
from luspo_cli.evaluation.responses import ResponseReport, read_responses
from luspo_cli.evaluation.scorer import EvaluationResult, Finished, score_samples

if TYPE_CHECKING:
    from luspo_cli.evaluation.judge import Judge
    from luspo_cli.evaluation.runner import Progress
    from luspo_cli.evaluation.sampling import SamplingModel
    from luspo_cli.evaluation.weights import Weights

logger = logging.getLogger(__name__)

DEFAULT_RESPONSE_TOKENS = 2048


def run_evaluation(config: EvalRun, *, on_progress: Progress | None = None) -> list[Finished]:
    """Evaluate a model on benchmarks, one after the other, or score a responses file; the results are on disk then.

    `on_progress` hears of drawn samples. The model is loaded once, and only if something is to be drawn.

    Raises:
        UsageError: names, data, prompts, the model or an earlier result do not fit; nothing was written.
        RunError: a file could not be written.
    """
    names = chosen_benchmarks(config.benchmark)
    loaded = {name: _checked(load_benchmark(name), config) for name in names}
    judge = None
    if config.judge.url:
        from luspo_cli.evaluation.judge import make_judge

        judge = make_judge(config.judge)
    if config.responses.file:
        return [_score_file(config, loaded, judge)]
    if not config.model.path:
        raise UsageError("Say what to evaluate: a run folder, a model folder or a hub id; or --responses FILE.")
    return _draw_and_score(config, loaded, judge, on_progress)


def chosen_benchmarks(chosen: BenchmarkConfig) -> list[str]:
    """Return command-line names of benchmarks in the given order; UsageError for none, an unknown or a repeated one."""
    if bool(chosen.names) == bool(chosen.suite):
        raise UsageError(
            "Give either --benchmark NAMES or --suite text|vision|all; `luspo eval --list` shows the names."
        )
    if chosen.suite and chosen.suite not in SUITES:
        raise UsageError(
            f"There is no suite '{chosen.suite}'{nearest(chosen.suite, SUITES)}; choose one of: {', '.join(SUITES)}."
        )
    names = list(SUITES[chosen.suite] if chosen.suite else chosen.names)
    for name in names:
        load_benchmark(name)
        if names.count(name) > 1:
            raise UsageError(f"--benchmark names {name} twice; name each benchmark once.")
    return names


def score_responses(
    benchmark: Benchmark,
    data: Path | list[BenchmarkProblem],
    responses: Path,
    *,
    mode: Mode = "rule",
    variant: str | None = None,
    judge: Judge | None = None,
    replies: Path | None = None,
    workers: int = 0,
) -> EvaluationResult:
    """Score a responses file (docs/benchmarks.md) against the problems in the folder or file `data`, or against problems.

    The judge's replies are kept in `replies`, so that the same call does not ask for them again.

    Raises:
        UsageError: the data is not this benchmark, the mode or variant is unknown, or a line cannot be read.
    """
    problems = benchmark.problems(data) if isinstance(data, Path) else data
    report = ResponseReport()
    samples = read_responses(responses, benchmark, problems, report)
    if judge is None:
        return score_samples(benchmark, problems, samples, mode=mode, variant=variant, report=report, workers=workers)

    from luspo_cli.evaluation.judging import JudgeLog, judge_samples

    kept = list(samples)
    result = score_samples(benchmark, problems, kept, mode=mode, variant=variant, report=report, workers=workers)
    return judge_samples(judge, benchmark, result, kept, JudgeLog(replies, judge))


def _score_file(config: EvalRun, loaded: dict[str, Benchmark], judge: Judge | None) -> Finished:
    if len(loaded) > 1:
        raise UsageError("--responses holds the responses to one benchmark; name one with --benchmark.")
    if judge is not None:
        judge.check()
    ((name, benchmark),) = loaded.items()
    out = Path(config.output.path) if config.output.path else None
    if out is not None and (out.is_dir() or out.resolve() == Path(config.responses.file).resolve()):
        what = "a folder" if out.is_dir() else "the responses file itself"
        raise UsageError(
            f"--out {out} is {what}; with --responses it is the JSON file that is written: give it a name."
        )
    result = score_responses(
        benchmark,
        _problems(config, name, benchmark, several=False),
        Path(config.responses.file),
        mode=config.benchmark.mode,
        variant=config.benchmark.prompt or None,
        judge=judge,
        replies=None if out is None else out.with_name(f"{out.stem}.judge.jsonl"),
    )
    result = replace(result, details={**result.details, "config": config.stored()})
    if out is not None:
        result.write(out)
    return Finished(result.to_json(), out, None, 0, 0, benchmark.tables)


def _draw_and_score(
    config: EvalRun, loaded: dict[str, Benchmark], judge: Judge | None, on_progress: Progress | None
) -> list[Finished]:
    from luspo_cli.evaluation.runner import Evaluation, check, evaluate
    from luspo_cli.evaluation.sampling import load_sampling_model
    from luspo_cli.evaluation.weights import find_weights
    from luspo_cli.policy.reading import pixel_bounds

    weights = find_weights(config.model.path, config.model.step, config.model.revision or None)
    several = len(loaded) > 1
    for benchmark in loaded.values():
        _require_readable(benchmark, weights)
    problems = {
        name: first_problems(_problems(config, name, one, several=several), config.sampling.limit, one.name)
        for name, one in loaded.items()
    }
    if judge is not None:
        judge.check()
    sampling = resolved_sampling(config.sampling, weights)
    config = config.model_copy(update={"sampling": sampling})

    @cache
    def load() -> SamplingModel:
        logger.info(f"loading {weights.path} ({sampling.dtype})")
        model = load_sampling_model(
            weights.path,
            sampling.dtype,  # type: ignore[arg-type]  # resolved: not auto
            sampling.max_rows,
            weights.revision,
            config.model.trust_remote_code,
            sampler_name=sampling.sampler,
            max_response_tokens=sampling.max_response_tokens,
            template_arguments=sampling.chat_template,
        )
        if bounds := pixel_bounds(model.processor):
            logger.info("images are resized to {:,} to {:,} pixels".format(*bounds))
        return model

    for note in weights.notes:
        logger.warning(f"{note}; taking the one before")
    fingerprint = weights.fingerprint()
    if fingerprint is None:  # a hub id that is not on this machine yet
        load()
        fingerprint = weights.fingerprint() or weights.path
    out = Path(config.output.path) if config.output.path else weights.out
    evaluations = []
    for name, benchmark in loaded.items():
        prompt = config.benchmark.prompt or benchmark.default_prompt
        asked = config.benchmark.model_copy(update={"names": (name,), "suite": "", "prompt": prompt})
        own = config.model_copy(update={"benchmark": asked})
        evaluation = Evaluation(benchmark, problems[name], own, weights.name, fingerprint, weights.step, out)
        check(evaluation, replace_other=config.output.replace)
        evaluations.append(evaluation)
    return [
        evaluate(evaluation, load, judge=judge, replace_other=config.output.replace, on_progress=on_progress)
        for evaluation in evaluations
    ]


def resolved_sampling(sampling: SamplingConfig, weights: Weights) -> SamplingConfig:
    """`sampling` with what was left open decided by the run, the model and this machine.

    Raises:
        UsageError: the sampler is not installed, or cannot read the model.
    """
    from luspo_cli.evaluation.sampling import choose_dtype
    from luspo_cli.rollout.samplers import INSTALL_VLLM, choose_sampler, vllm_is_installed

    sampler = choose_sampler(sampling.sampler).name
    if sampler == "vllm" and not vllm_is_installed():
        raise UsageError(f"--sampler vllm needs vllm, which is not installed: {INSTALL_VLLM}")
    limit = sampling.max_response_tokens or weights.max_response_tokens or DEFAULT_RESPONSE_TOKENS
    decided: dict[str, Any] = {
        "max_response_tokens": limit,
        "dtype": choose_dtype(sampling.dtype, weights.compute_dtype),
        "sampler": sampler,
        "chat_template": weights.template_arguments if sampling.chat_template is None else sampling.chat_template,
    }
    return sampling.model_copy(update=decided)


def _problems(config: EvalRun, name: str, benchmark: Benchmark, *, several: bool) -> list[BenchmarkProblem]:
    if not config.benchmark.data or benchmark.own_files():
        if config.benchmark.data and not several:
            raise UsageError(f"{name} names its own data: leave --data out.")
        return benchmark.from_hub()
    return benchmark.problems(benchmark_data(name, Path(config.benchmark.data), several=several))


def _checked(benchmark: Benchmark, config: EvalRun) -> Benchmark:
    """UsageError if the benchmark has no such mode or prompt variant, or no images for a blind pass."""
    benchmark.require_mode(config.benchmark.mode)
    benchmark.template(config.benchmark.prompt or None)
    if config.sampling.blind != "none" and benchmark.modality == "text":
        raise UsageError(
            f"sampling.blind = '{config.sampling.blind}' replaces images, and {benchmark.name} has none: leave it out, or choose"
            " --suite vision."
        )
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
