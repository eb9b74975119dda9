"""From a model and a benchmark to a scored result on disk; killed at any point, the same call goes on.

One chunk of problems is one call of the sampler. Chunks are cut by `max_rows` and `samples` alone and seeded by (seed,
benchmark, first problem of the chunk), so a chunk that is drawn after a kill has the same rows beside it, the same
random numbers and therefore the same bytes as it would have had. A result that is there is not drawn again: where only
the scoring differs (mode, judge, a newer version of the benchmark), its stored samples are scored anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from luspo_cli.config.eval import EvalRun, Mode
from luspo_cli.errors import RunError
from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem
from luspo_cli.evaluation.judge import Judge
from luspo_cli.evaluation.judging import JudgeLog, judge_samples, known_replies
from luspo_cli.evaluation.responses import Sample
from luspo_cli.evaluation.samples import (
    PartialSamples,
    StoredSample,
    is_same,
    read_samples,
    require_same,
    write_results,
)
from luspo_cli.evaluation.sampling import BenchmarkPrompts, SamplingModel
from luspo_cli.evaluation.scorer import EvaluationResult, Finished, score_samples
from luspo_cli.files import read_object
from luspo_cli.grading.verdict import GRADER_VERSION
from luspo_cli.metrics.rollout_metrics import length_statistics, lengths_by_verdict
from luspo_cli.records import Prompt, StopReason
from luspo_cli.rollout.sampler import SamplingOptions

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int, int], None]
"""Hears (benchmark, finished samples, all samples, samples that an earlier session drew)."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One benchmark to run: `problems` are those left after the limit; `model` names the weights, `weights` is their hash."""

    benchmark: Benchmark
    problems: Sequence[BenchmarkProblem]
    config: EvalRun
    """Resolved: nothing is left to be decided by the machine or the run."""
    model: str
    weights: str
    step: int | None
    """Training steps behind the weights, where they are a run's."""
    out: Path

    @property
    def variant(self) -> str:
        return self.config.benchmark.prompt or self.benchmark.default_prompt

    @property
    def mode(self) -> Mode:
        return self.config.benchmark.mode

    @property
    def json_file(self) -> Path:
        return self.out / f"{self.benchmark.name}.json"

    @property
    def samples_file(self) -> Path:
        return self.out / f"{self.benchmark.name}.parquet"

    def identity(self) -> dict[str, Any]:
        """Return everything that the samples depend on."""
        posed = [
            [problem.id, [[turn.role, turn.content] for turn in self.benchmark.prompt(problem, self.variant)]]
            for problem in self.problems
        ]
        settings = self.config.sampling.model_dump(mode="json")
        # Results from before there was a choice are of this sampler, and of templates without arguments.
        if settings["sampler"] == "in-process":
            del settings["sampler"]
        if not settings["chat_template"]:
            del settings["chat_template"]
        return {
            "model": self.model,
            "weights": self.weights,
            "step": self.step,
            "prompt": self.variant,
            "prompts_sha256": hashlib.sha256(json.dumps(posed).encode()).hexdigest(),
            **settings,
        }


def check(evaluation: Evaluation, *, replace_other: bool) -> bool:
    """Return whether a finished result with these samples is there.

    Raises:
        UsageError: a result or chunks with other settings are in the way, and `replace_other` is not given.
    """
    settings = evaluation.identity()
    unfinished = PartialSamples(evaluation.out, evaluation.benchmark.name)
    for stored, what in (
        (_finished(evaluation), str(evaluation.json_file)),
        (unfinished.settings(), f"The unfinished evaluation in {unfinished.path}"),
    ):
        if stored is not None and not replace_other:
            require_same(stored, settings, what)
    finished = _finished(evaluation)
    return finished is not None and is_same(finished, settings)


def evaluate(
    evaluation: Evaluation,
    load: Callable[[], SamplingModel],
    *,
    judge: Judge | None = None,
    replace_other: bool = False,
    on_progress: Progress | None = None,
) -> Finished:
    """Draw what is missing, score, and leave NAME.json and NAME.parquet; `load` is called only to draw.

    Raises:
        UsageError: a result or chunks with other settings are there, or a prompt does not fit the model.
        RunError: a file could not be written; the finished chunks are kept.
    """
    total = len(evaluation.problems) * evaluation.config.sampling.samples
    if check(evaluation, replace_other=replace_other):
        return _score_again(evaluation, judge)
    name, identity = evaluation.benchmark.name, evaluation.identity()
    model = load()
    prompts = BenchmarkPrompts(model, evaluation.benchmark, evaluation.problems, evaluation.variant)
    prompts.require_room(evaluation.config.sampling.max_response_tokens)
    if lost := prompts.lost_text():
        logger.warning(lost)
    with PartialSamples(evaluation.out, name) as partial:
        partial.open(identity, replace=replace_other)
        samples, drawn = _draw(evaluation, model, prompts, partial, on_progress)
        log = JudgeLog(partial.path / "judge.jsonl", judge) if judge is not None else None
        content = _score(evaluation, samples, judge, log)
        partial.remove()
    return Finished(content, evaluation.json_file, evaluation.samples_file, drawn, total - drawn)


def _draw(
    evaluation: Evaluation,
    model: SamplingModel,
    prompts: Sequence[Prompt],
    partial: PartialSamples,
    on_progress: Progress | None,
) -> tuple[list[StoredSample], int]:
    """Return all samples in the order of the problems, and how many of them are new."""
    settings, name = evaluation.config.sampling, evaluation.benchmark.name
    size, total = settings.chunk_problems, len(prompts) * settings.samples
    ids = [problem.id for problem in evaluation.problems]
    starts = range(0, len(prompts), size)
    chunks = {start: partial.get(start, ids[start : start + size], settings.samples) for start in starts}
    found = sum(len(chunk) for chunk in chunks.values() if chunk is not None)
    if found:
        logger.info(f"{name}: going on after {found:,} of {total:,} samples")
    done = found
    for start in starts:
        if chunks[start] is not None:
            continue
        here = done

        def report(rows: int, here: int = here) -> None:
            if on_progress is not None:
                on_progress(name, here + rows, total, found)

        report(0)
        options = SamplingOptions(
            group_size=settings.samples,
            max_response_tokens=settings.max_response_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=chunk_seed(settings.seed, name, start),
        )
        groups = model.sampler.sample_groups(prompts[start : start + size], options, report)
        chunk = [
            StoredSample(
                id=rollout.problem_id,
                sample=number,
                prompt_variant=evaluation.variant,
                response=rollout.response,
                response_length=rollout.response_length,
                stop_reason=str(rollout.stop_reason),
                seed=settings.seed,
                thought_open=rollout.thought_open,
            )
            for group in groups
            for number, rollout in enumerate(group)
        ]
        partial.add(start, chunk)
        chunks[start] = chunk
        done += len(chunk)
    return [sample for start in starts for sample in chunks[start] or ()], total - found


def chunk_seed(seed: int, benchmark: str, first_problem: int) -> int:
    """Return the sampler's seed, 62 bits, for the chunk that begins with this problem (0-based)."""
    digest = hashlib.sha256(f"luspo eval {benchmark} {seed} {first_problem}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def _finished(evaluation: Evaluation) -> dict[str, Any] | None:
    """Return the settings of the finished result, or None where none is there."""
    content = read_object(evaluation.json_file)
    if content is None or not evaluation.samples_file.is_file():
        return None
    settings = content.get("sampling")
    return settings if isinstance(settings, dict) else {}


def _score_again(evaluation: Evaluation, judge: Judge | None) -> Finished:
    content: Mapping[str, Any] = read_object(evaluation.json_file) or {}
    samples = _read_back(evaluation)
    keys = ("version", "mode", "grader_version")
    scored_alike = [content.get(key) for key in keys] == [evaluation.benchmark.version, evaluation.mode, GRADER_VERSION]
    wanted = None if judge is None else judge.identity()
    judged = content.get("judge")
    failed = content.get("metrics", {}).get("judge", {}).get("failed", 0)
    if scored_alike and (wanted is None or (wanted == judged and not failed)):
        logger.info(f"{evaluation.benchmark.name}: the result is there")
    else:
        logger.info(f"{evaluation.benchmark.name}: scoring the {len(samples):,} samples that are there")
        log = None
        if judge is not None:
            replies = PartialSamples(evaluation.out, evaluation.benchmark.name).path / "judge.jsonl"
            log = JudgeLog(replies, judge, known_replies(evaluation.samples_file) if wanted == judged else {})
        content = _score(evaluation, samples, judge, log)
    PartialSamples(evaluation.out, evaluation.benchmark.name).remove()  # a kill between result and clean-up leaves it
    return Finished(content, evaluation.json_file, evaluation.samples_file, 0, len(samples))


def _read_back(evaluation: Evaluation) -> list[StoredSample]:
    try:
        samples = read_samples(evaluation.samples_file)
    except (OSError, ValueError, KeyError):
        samples = []
    if len(samples) != len(evaluation.problems) * evaluation.config.sampling.samples:
        raise RunError(
            f"{evaluation.samples_file} does not hold the samples of {evaluation.json_file.name}; remove both files,"
            " then the same command draws the samples again."
        )
    return samples


def _score(
    evaluation: Evaluation,
    samples: Sequence[StoredSample],
    judge: Judge | None,
    log: JudgeLog | None,
) -> dict[str, Any]:
    """Score and write both files, the JSON last: it says that the result is whole."""
    benchmark, problems = evaluation.benchmark, evaluation.problems
    truncated = [sample.stop_reason == StopReason.LENGTH for sample in samples]
    to_grade = [
        Sample(
            sample.id,
            sample.response,
            truncated=cut,
            response_length=sample.response_length,
            thought_open=sample.thought_open,
        )
        for sample, cut in zip(samples, truncated, strict=True)
    ]
    result = score_samples(benchmark, problems, to_grade, mode=evaluation.mode, variant=evaluation.variant)
    details: dict[str, Any] = {"benchmark_size": benchmark.size, "sampling": evaluation.identity()}
    details["config"] = evaluation.config.stored()
    lengths = [sample.response_length for sample in samples]
    right = [result.graded[sample.id][sample.sample].correct for sample in samples]
    metrics = {**result.metrics, **length_statistics(lengths), **lengths_by_verdict(lengths, right)}
    result = replace(result, metrics=metrics, details=details)
    if judge is not None and log is not None:
        result = judge_samples(judge, benchmark, result, to_grade, log)
    earlier = _finished(evaluation)
    if earlier is not None and not is_same(earlier, details["sampling"]):
        evaluation.json_file.unlink()  # --replace: it must not stand beside samples that it does not describe
    write_results(evaluation.samples_file, _rows(result, samples))
    result.write(evaluation.json_file)
    return result.to_json()


def _rows(result: EvaluationResult, samples: Sequence[StoredSample]) -> list[dict[str, Any]]:
    golds = {problem.id: problem.gold for problem in result.problems}
    rows = []
    for sample in samples:
        verdict = result.graded[sample.id][sample.sample]
        judged = result.sample_details[sample.id][sample.sample] if result.sample_details else {}
        rows.append(
            asdict(sample)
            | {"gold": golds[sample.id], "extracted": verdict.extracted, "correct": verdict.correct}
            | {"reason": str(verdict.reason), "read_from": str(verdict.read_from)}
            | {"decided_by": str(verdict.decided_by), **judged}
        )
    return rows
