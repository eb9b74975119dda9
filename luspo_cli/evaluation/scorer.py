"""Samples in, an evaluation result out: extract, compare, settle what needs algebra in killable workers, aggregate.

Decided here: every sample ends with a verdict. Cheap comparisons are made at once; each distinct pair of gold and
answer that is left goes to a worker once, with a time limit after which the worker is killed and the answer counts as
wrong, as `timeout`. The result keeps every sample beside the score, so it can be scored again without the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem, Mode
from luspo_cli.evaluation.responses import ResponseReport, Sample
from luspo_cli.files import replace_file
from luspo_cli.grading.maths.symbolic import is_for_sympy
from luspo_cli.grading.pool import KillablePool, Outcome
from luspo_cli.grading.verdict import NeedsSymbolic, Reason, Verdict
from luspo_cli.machine import usable_cores

TIMEOUT_S = 3.0
"""Seconds for one comparison; Qwen2.5-Math's evaluation allows the same."""
MAX_WORKERS = 8
_DECIDE = "luspo_cli.grading.maths.symbolic:decide_fully"
_DECIDE_WITH_SYMPY = "luspo_cli.grading.maths.worker:decide"
_LONGEST_STORED = 2_000
_CACHED_VERDICTS = 200_000


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """A benchmark's scores with every sample; `to_json` is the layout of OUT.json (docs/benchmarks.md)."""

    benchmark: str
    version: int
    mode: Mode
    problems: Sequence[BenchmarkProblem]
    graded: Mapping[str, Sequence[Verdict]]
    metrics: Mapping[str, Any]
    responses: Mapping[str, Any] = field(default_factory=dict)
    """What was handed in: lines, empty responses, missing, unknown and duplicate ids."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further top-level keys of the result file, such as how the samples were drawn."""
    sample_details: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Problem id → further keys of each of its samples, such as a judge's verdict."""

    @property
    def n_samples(self) -> int:
        """Samples a problem has (the most, where they differ)."""
        return max((len(verdicts) for verdicts in self.graded.values()), default=0)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data; the same samples give the same data."""
        return {
            "benchmark": self.benchmark,
            "version": self.version,
            "mode": self.mode,
            "n_problems": len(self.problems),
            "n_samples": self.n_samples,
            "metrics": dict(self.metrics),
            "responses": dict(self.responses),
            **self.details,
            "problems": [
                {"id": problem.id, "gold": problem.gold, "samples": self._samples(problem.id)}
                for problem in self.problems
            ],
        }

    def _samples(self, problem_id: str) -> list[dict[str, Any]]:
        verdicts = self.graded[problem_id]
        further = self.sample_details.get(problem_id, [{}] * len(verdicts))
        return [
            {"extracted": v.extracted, "correct": v.correct, "reason": str(v.reason), **more}
            for v, more in zip(verdicts, further, strict=True)
        ]

    def write(self, file: Path) -> None:
        """Write `to_json` to `file`, whole or not at all; raises RunError where it cannot be written."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=True, allow_nan=False) + "\n"
        replace_file(file, text.encode(), "or choose another --out")


@dataclass(frozen=True, slots=True)
class Finished:
    """A result, and how much of it this call drew."""

    content: Mapping[str, Any]
    """Of the JSON file."""
    json_file: Path | None
    """None where a scored responses file was not asked to be written."""
    samples_file: Path | None
    """Of drawn samples."""
    drawn: int
    found: int
    """Samples that were there already."""


def score_samples(
    benchmark: Benchmark,
    problems: Sequence[BenchmarkProblem],
    samples: Iterable[Sample],
    *,
    mode: Mode = "rule",
    variant: str | None = None,
    report: ResponseReport | None = None,
    workers: int = 0,
    timeout_s: float = TIMEOUT_S,
    on_progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Grade `samples` (read one at a time, so they need not fit in memory) and aggregate.

    `workers` 0 means one a core, at most 8. `on_progress` gets (comparisons settled by workers, all of them).
    """
    benchmark.require_mode(mode)
    if variant is not None:
        benchmark.template(variant)
    tally = _Tally()
    graded = _grade(benchmark, problems, samples, mode, variant, tally)
    settled = _settle(tally.pairs, workers, timeout_s, on_progress)
    verdicts = {
        problem.id: tuple(_final(verdict, settled) for verdict in graded[problem.id])
        or (Verdict(None, False, Reason.MISSING),)
        for problem in problems
    }
    metrics = benchmark.aggregate(problems, verdicts)
    if tally.truncated_known:
        metrics["truncated_fraction"] = tally.truncated / tally.truncated_known
    if tally.lengths_known:
        metrics["response_length/mean"] = tally.tokens / tally.lengths_known
    handed = report.to_json(problems) if report is not None else {}
    return EvaluationResult(benchmark.name, benchmark.version, mode, tuple(problems), verdicts, metrics, handed)


@dataclass(slots=True)
class _Tally:
    """What is counted while samples go by; `pairs` numbers the comparisons that wait for a worker."""

    pairs: dict[tuple[str, str], int] = field(default_factory=dict)
    truncated: int = 0
    truncated_known: int = 0
    tokens: int = 0
    lengths_known: int = 0


def _grade(
    benchmark: Benchmark,
    problems: Sequence[BenchmarkProblem],
    samples: Iterable[Sample],
    mode: Mode,
    variant: str | None,
    tally: _Tally,
) -> dict[str, list[Verdict | NeedsSymbolic]]:
    by_id = {problem.id: problem for problem in problems}
    graded: dict[str, list[Verdict | NeedsSymbolic]] = {problem.id: [] for problem in problems}
    compared: dict[tuple[str, str], Verdict | NeedsSymbolic] = {}
    for sample in samples:
        problem = by_id[sample.problem_id]
        verdict = _grade_one(benchmark, problem, sample, mode, variant, compared)
        if isinstance(verdict, NeedsSymbolic):
            tally.pairs.setdefault((verdict.gold, verdict.answer), len(tally.pairs))
        graded[problem.id].append(verdict)
        if sample.truncated is not None:
            tally.truncated_known += 1
            tally.truncated += sample.truncated
        if sample.response_length is not None:
            tally.lengths_known += 1
            tally.tokens += sample.response_length
    return graded


def _grade_one(
    benchmark: Benchmark,
    problem: BenchmarkProblem,
    sample: Sample,
    mode: Mode,
    variant: str | None,
    compared: dict[tuple[str, str], Verdict | NeedsSymbolic],
) -> Verdict | NeedsSymbolic:
    try:
        extracted = sample.extraction
        if extracted is None:
            extracted = benchmark.extract(problem, sample.response, mode=mode, variant=variant)
        if extracted is None:
            return Verdict(None, False, Reason.NO_ANSWER)
        key = (problem.id, extracted)
        verdict = compared.get(key)
        if verdict is None:
            verdict = _clipped(benchmark.compare(problem, extracted, mode=mode))
            if len(extracted) <= _LONGEST_STORED and len(compared) < _CACHED_VERDICTS:
                compared[key] = verdict
        return verdict
    except Exception:
        # One response must not end the evaluation of the others; it is wrong, and counted as crashed.
        return Verdict(None, False, Reason.CRASHED)


def _clipped(verdict: Verdict | NeedsSymbolic) -> Verdict | NeedsSymbolic:
    """Bound what is stored of an answer that is a megabyte long."""
    if isinstance(verdict, Verdict) and verdict.extracted is not None and len(verdict.extracted) > _LONGEST_STORED:
        return Verdict(verdict.extracted[:_LONGEST_STORED] + "…", verdict.correct, verdict.reason)
    return verdict


def _settle(
    pairs: Mapping[tuple[str, str], int],
    workers: int,
    timeout_s: float,
    on_progress: Callable[[int, int], None] | None,
) -> dict[tuple[str, str], Reason]:
    if not pairs:
        return {}
    count = workers or min(usable_cores(), MAX_WORKERS)
    tasks = list(pairs)
    report = None if on_progress is None else lambda done: on_progress(done, len(tasks))
    function = _DECIDE_WITH_SYMPY if any(map(is_for_sympy, chain.from_iterable(tasks))) else _DECIDE
    with KillablePool(function, workers=min(count, len(tasks)), timeout_s=timeout_s) as pool:
        outcomes = pool.map(tasks, on_done=report)
    return {pair: _reason(outcome) for pair, outcome in zip(tasks, outcomes, strict=True)}


def _reason(outcome: Outcome) -> Reason:
    if outcome.timed_out:
        return Reason.TIMEOUT
    return Reason.CRASHED if outcome.crashed else Reason(outcome.value)


def _final(verdict: Verdict | NeedsSymbolic, settled: Mapping[tuple[str, str], Reason]) -> Verdict:
    if isinstance(verdict, Verdict):
        return verdict
    reason = settled[verdict.gold, verdict.answer]
    correct = reason not in (Reason.DIFFERENT, Reason.TIMEOUT, Reason.CRASHED)
    return Verdict(verdict.extracted, correct, reason)
