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
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from luspo_cli.config.eval import EvalRun, Mode
from luspo_cli.config.evaluation import Blind
from luspo_cli.data.blind import blinded
from luspo_cli.errors import RunError
from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem
from luspo_cli.evaluation.judge import Judge
from luspo_cli.evaluation.judging import JudgeLog, judge_samples, known_replies
from luspo_cli.evaluation.problems import require_images
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
from luspo_cli.evaluation.scores import against_blind
from luspo_cli.files import read_object
from luspo_cli.grading.verdict import GRADER_VERSION
from luspo_cli.metrics.rollout_metrics import length_statistics, lengths_by_verdict
from luspo_cli.records import Prompt, StopReason
from luspo_cli.rollout.sampler import SamplingOptions

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int, int], None]
"""Hears (benchmark, finished samples, all samples, samples that an earlier session drew)."""
Result = Mapping[str, Any] | None
"""The content of NAME.json before an evaluation; None where there is none. It can be long, so it is read once and handed on."""


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
    shows: Blind = "none"
    """What stands in the place of the images: of the blind pass what `sampling.blind` names."""

    @property
    def label(self) -> str:
        """What the pass is called, and its file of samples."""
        return self.benchmark.name if self.shows == "none" else f"{self.benchmark.name}.blind"

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
        return self.out / f"{self.label}.parquet"

    def passes(self) -> list[Evaluation]:
        """This one, and the same draws with other images where they are asked for."""
        blind = self.config.sampling.blind
        return [self] if blind == "none" else [self, replace(self, shows=blind)]

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
        del settings["blind"]  # it changes no sample of the pass that sees
        return {
            "model": self.model,
            "weights": self.weights,
            "step": self.step,
            "prompt": self.variant,
            "prompts_sha256": hashlib.sha256(json.dumps(posed).encode()).hexdigest(),
            **settings,
            **({} if self.shows == "none" else {"blind": self.shows}),
        }


def check(evaluation: Evaluation, *, replace_other: bool) -> bool:
    """Return whether a finished result with these samples is there.

    Raises:
        UsageError: a result or chunks with other settings are in the way, and `replace_other` is not given.
    """
    return _check(evaluation, read_object(evaluation.json_file), replace_other)


def _check(evaluation: Evaluation, result: Result, replace_other: bool) -> bool:
    for one in evaluation.passes():
        unfinished = PartialSamples(one.out, one.label)
        for stored, what in (
            (_finished(one, result), str(one.json_file)),
            (unfinished.settings(), f"The unfinished evaluation in {unfinished.path}"),
        ):
            if stored is not None and not replace_other:
                require_same(stored, one.identity(), what)
    return _all_there(evaluation, result)


def evaluate(
    evaluation: Evaluation,
    load: Callable[[], SamplingModel],
    *,
    judge: Judge | None = None,
    replace_other: bool = False,
    on_progress: Progress | None = None,
) -> Finished:
    """Draw what is missing, score, and leave NAME.json and NAME.parquet; `load` is called only to draw.

    A blind pass has its samples in NAME.blind.parquet and its score beside the other one.

    Raises:
        UsageError: a result or chunks with other settings are there, images are missing, or a prompt does not fit the model.
        RunError: a file could not be written; the finished chunks are kept.
    """
    result = read_object(evaluation.json_file)
    evaluation = _with_stored_blind(evaluation, result)
    if _check(evaluation, result, replace_other):
        return _score_again(evaluation, result or {}, judge)
    benchmark = evaluation.benchmark
    published = benchmark.hub_ids[0].partition(":")[0] if benchmark.hub_ids else "the benchmark's repository"
    require_images(evaluation.problems, benchmark.name, published)
    model = load()
    prompts = {one.label: _prompts(one, model) for one in evaluation.passes() if not _is_there(one, result)}
    samples: list[list[StoredSample]] = []
    drawn = 0
    with ExitStack() as stack:
        for one in evaluation.passes():
            if one.label not in prompts:
                samples.append(_read_back(one))
                continue
            partial = stack.enter_context(PartialSamples(one.out, one.label))
            partial.open(one.identity(), replace=replace_other)
            found, new = _draw(one, model, prompts[one.label], partial, on_progress)
            samples.append(found)
            drawn += new
        content = _score(evaluation, samples, result, judge)
        _remove_chunks(evaluation)
    return _finish(evaluation, content, drawn, sum(map(len, samples)) - drawn)


def _prompts(one: Evaluation, model: SamplingModel) -> BenchmarkPrompts:
    """The prompts of a pass; UsageError where one does not fit the model."""
    problems = blinded(one.problems, one.shows, one.config.sampling.seed)
    prompts = BenchmarkPrompts(model, one.benchmark, problems, one.variant)
    prompts.require_room(one.config.sampling.max_response_tokens)
    if one.shows == "none" and (lost := prompts.lost_text()):
        logger.warning(lost)
    return prompts


def _draw(
    evaluation: Evaluation,
    model: SamplingModel,
    prompts: Sequence[Prompt],
    partial: PartialSamples,
    on_progress: Progress | None,
) -> tuple[list[StoredSample], int]:
    """Return all samples of a pass in the order of the problems, and how many of them are new."""
    settings, name = evaluation.config.sampling, evaluation.benchmark.name
    size, total = settings.chunk_problems, len(prompts) * settings.samples
    ids = [problem.id for problem in evaluation.problems]
    starts = range(0, len(prompts), size)
    chunks = {start: partial.get(start, ids[start : start + size], settings.samples) for start in starts}
    found = sum(len(chunk) for chunk in chunks.values() if chunk is not None)
    if found:
        logger.info(f"{evaluation.label}: going on after {found:,} of {total:,} samples")
    done = found
    for start in starts:
        if chunks[start] is not None:
            continue
        here = done

        def report(rows: int, here: int = here) -> None:
            if on_progress is not None:
                on_progress(evaluation.label, here + rows, total, found)

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


def _finished(one: Evaluation, result: Result) -> dict[str, Any] | None:
    """Return the settings of a pass in the finished result, or None where it is not there."""
    if result is None or not one.samples_file.is_file():
        return None
    found = result.get("sampling")
    settings = found if isinstance(found, dict) else {}
    if one.shows == "none":
        return settings
    blind = result.get("blind")
    return {**settings, "blind": blind.get("shows")} if isinstance(blind, dict) else None


def _is_there(one: Evaluation, result: Result) -> bool:
    stored = _finished(one, result)
    return stored is not None and is_same(stored, one.identity())


def _all_there(evaluation: Evaluation, result: Result) -> bool:
    return all(_is_there(one, result) for one in evaluation.passes())


def _with_stored_blind(evaluation: Evaluation, result: Result) -> Evaluation:
    """`evaluation` with the blind pass that stands beside its samples, where none is asked for: a new scoring keeps it."""
    stored = (result or {}).get("blind")
    if evaluation.config.sampling.blind != "none" or not isinstance(stored, dict):
        return evaluation
    sampling = evaluation.config.sampling.model_copy(update={"blind": stored.get("shows")})
    with_blind = replace(evaluation, config=evaluation.config.model_copy(update={"sampling": sampling}))
    return with_blind if _all_there(with_blind, result) else evaluation


def _score_again(evaluation: Evaluation, content: Mapping[str, Any], judge: Judge | None) -> Finished:
    samples = [_read_back(one) for one in evaluation.passes()]
    number = sum(map(len, samples))
    keys, own = ("version", "mode", "grader_version", "benchmark_files"), evaluation.benchmark
    scored_alike = [content.get(key) for key in keys] == [own.version, evaluation.mode, GRADER_VERSION, own.own_files()]
    failed = content.get("metrics", {}).get("judge", {}).get("failed", 0)
    if scored_alike and (judge is None or (judge.identity() == content.get("judge") and not failed)):
        logger.info(f"{evaluation.benchmark.name}: the result is there")
    else:
        logger.info(f"{evaluation.benchmark.name}: scoring the {number:,} samples that are there")
        content = _score(evaluation, samples, content, judge)
    _remove_chunks(evaluation)  # a kill between result and clean-up leaves them
    return _finish(evaluation, content, 0, number)


def _remove_chunks(evaluation: Evaluation) -> None:
    for one in evaluation.passes():
        PartialSamples(one.out, one.label).remove()


def _finish(evaluation: Evaluation, content: Mapping[str, Any], drawn: int, found: int) -> Finished:
    seeing, *blind = (one.samples_file for one in evaluation.passes())
    return Finished(
        content, evaluation.json_file, seeing, drawn, found, evaluation.benchmark.tables, blind[0] if blind else None
    )


def _judge_log(evaluation: Evaluation, result: Result, judge: Judge) -> JudgeLog:
    """Where the judge's replies are kept, with those that stand in the finished result."""
    known = (result or {}).get("judge") == judge.identity() and _is_there(evaluation, result)
    replies = PartialSamples(evaluation.out, evaluation.label).path / "judge.jsonl"
    return JudgeLog(replies, judge, known_replies(evaluation.samples_file) if known else {})


def _read_back(one: Evaluation) -> list[StoredSample]:
    try:
        samples = read_samples(one.samples_file)
    except (OSError, ValueError, KeyError):
        samples = []
    if len(samples) != len(one.problems) * one.config.sampling.samples:
        raise RunError(
            f"{one.samples_file} does not hold the samples of {one.json_file.name}; remove both files,"
            " then the same command draws the samples again."
        )
    return samples


def _score(
    evaluation: Evaluation, samples: Sequence[Sequence[StoredSample]], before: Result, judge: Judge | None
) -> dict[str, Any]:
    """Score each pass and write all files in the place of those `before`, the JSON last: it says that the result is whole."""
    passes = evaluation.passes()
    results = [_scored(evaluation, drawn) for drawn in samples]
    details: dict[str, Any] = {"benchmark_size": evaluation.benchmark.size, "sampling": evaluation.identity()}
    details["config"] = evaluation.config.stored()
    for one, blind in list(zip(passes, results, strict=True))[1:]:
        difference, bounds = against_blind(evaluation.problems, results[0].graded, blind.graded)
        details["blind"] = {
            "shows": one.shows,
            "accuracy": blind.metrics["accuracy"],
            "accuracy_interval_95": blind.metrics["accuracy_interval_95"],
            "seeing_minus_blind": difference,
            "seeing_minus_blind_interval_95": bounds,
            "metrics": dict(blind.metrics),
        }
    results[0] = replace(results[0], details=details)
    if judge is not None:
        log = _judge_log(evaluation, before, judge)
        results[0] = judge_samples(judge, evaluation.benchmark, results[0], _to_grade(samples[0]), log)
    settings = [(_finished(one, before), one.identity()) for one in passes]
    if any(stored is not None and not is_same(stored, own) for stored, own in settings):
        evaluation.json_file.unlink()  # --replace: it must not stand beside samples that it does not describe
    if len(passes) == 1:
        replace(evaluation, shows="noise").samples_file.unlink(missing_ok=True)
    for one, result, drawn in zip(passes, results, samples, strict=True):
        write_results(one.samples_file, _rows(result, drawn))
    results[0].write(evaluation.json_file)
    return results[0].to_json()


def _scored(evaluation: Evaluation, samples: Sequence[StoredSample]) -> EvaluationResult:
    benchmark, problems = evaluation.benchmark, evaluation.problems
    result = score_samples(benchmark, problems, _to_grade(samples), mode=evaluation.mode, variant=evaluation.variant)
    lengths = [sample.response_length for sample in samples]
    right = [result.graded[sample.id][sample.sample].correct for sample in samples]
    return replace(
        result, metrics={**result.metrics, **length_statistics(lengths), **lengths_by_verdict(lengths, right)}
    )


def _to_grade(samples: Sequence[StoredSample]) -> list[Sample]:
    return [
        Sample(
            sample.id,
            sample.response,
            truncated=sample.stop_reason == StopReason.LENGTH,
            response_length=sample.response_length,
            thought_open=sample.thought_open,
        )
        for sample in samples
    ]


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
