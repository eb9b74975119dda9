"""Samples in, an evaluation result out: extract, compare as the reward of training does (grading/grader.py), aggregate.

Decided here: every sample ends with a verdict. What needs no worker is compared while the samples go by; each distinct
pair of gold and answer that is left goes to a worker once, at the end. The result keeps every sample
beside the score, so it can be scored again without the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem, Mode
from luspo_cli.evaluation.function_judge import judge_with
from luspo_cli.evaluation.responses import ResponseReport, Sample
from luspo_cli.evaluation.scores import accuracy_by_image_size, as_dicts
from luspo_cli.files import replace_file
from luspo_cli.grading.answers import Extraction
from luspo_cli.grading.grader import LONGEST_STORED, TIMEOUT_S, Grader
from luspo_cli.grading.verdict import GRADER_VERSION, NO_ANSWER, ReadFrom, Reason, Verdict, counts


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
    files: Mapping[str, str] | None = None
    """What a benchmark of the user's own is made of, file → sha256."""

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
            "grader_version": GRADER_VERSION,
            **({} if self.files is None else {"benchmark_files": dict(self.files)}),
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
            {"extracted": v.extracted, "correct": v.correct, "reason": str(v.reason)}
            | {"read_from": str(v.read_from), "decided_by": str(v.decided_by), **more}
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
    tables: tuple[str, ...] = ()
    """The benchmark's: which tables of the metrics are shown."""
    blind_samples_file: Path | None = None
    """Of a blind pass."""


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
    by_id = {problem.id: problem for problem in problems}
    graded: dict[str, list[Verdict | Extraction]] = {problem.id: [] for problem in problems}
    functions = benchmark.functions()
    kept: list[Sample] = []
    truncated: list[bool] = []
    lengths: list[int] = []
    with Grader(workers=workers, timeout_s=timeout_s) as grader:
        for sample in samples:
            problem = by_id[sample.problem_id]
            if functions is None:
                graded[problem.id].append(_grade(benchmark, problem, sample, mode, variant, grader))
            else:
                kept.append(sample)
            truncated += [] if sample.truncated is None else [sample.truncated]
            lengths += [] if sample.response_length is None else [sample.response_length]
        rows = ((by_id[identity].gold, row) for identity, row in graded.items())
        waiting = list(dict.fromkeys((gold, v.text) for gold, row in rows for v in row if isinstance(v, Extraction)))
        decided = dict(zip(waiting, grader.decide(waiting, on_done=on_progress), strict=True))
    said: dict[str, float | None] = {}
    if functions is not None:
        of_problem, said = judge_with(
            functions, problems, kept, lambda one: benchmark.prompt(one, variant), benchmark.name
        )
        graded.update({identity: [*row] for identity, row in of_problem.items()})
    verdicts = {
        problem.id: tuple(
            verdict if isinstance(verdict, Verdict) else decided[problem.gold, verdict.text].verdict(verdict)
            for verdict in graded[problem.id]
        )
        or (Verdict(None, False, Reason.MISSING),)
        for problem in problems
    }
    metrics = benchmark.aggregate(problems, verdicts)
    if sizes := as_dicts(accuracy_by_image_size(problems, verdicts)):
        metrics["image_size"] = sizes
    metrics |= counts(verdict for row in verdicts.values() for verdict in row if verdict.reason is not Reason.MISSING)
    if truncated:
        metrics["truncated_fraction"] = sum(truncated) / len(truncated)
    if lengths:
        metrics["response_length/mean"] = sum(lengths) / len(lengths)
    handed = report.to_json(problems) if report is not None else {}
    return EvaluationResult(
        benchmark.name,
        benchmark.version,
        mode,
        tuple(problems),
        verdicts,
        metrics | said,
        handed,
        files=benchmark.own_files(),
    )


def _grade(
    benchmark: Benchmark, problem: BenchmarkProblem, sample: Sample, mode: Mode, variant: str | None, grader: Grader
) -> Verdict | Extraction:
    """The verdict on a sample; its answer where a worker has to compare it."""
    try:
        if sample.extraction is not None:
            answer: Extraction | None = Extraction(sample.extraction, ReadFrom.GIVEN)
        else:
            answer = benchmark.find(
                problem, sample.response, mode=mode, variant=variant, thought_open=sample.thought_open
            )
        if answer is None:
            return NO_ANSWER
        if benchmark.uses_grader(mode):
            if not answer.text.strip():
                return NO_ANSWER
            decision = grader.decide_now(problem.gold, answer.text)
            return answer if decision is None else decision.verdict(answer)
        verdict = benchmark.compare(problem, answer.text, mode=mode)
        assert isinstance(verdict, Verdict), "a comparison that needs a worker belongs to the grader"
        return _clipped(verdict).read(answer.read_from if verdict.extracted is not None else ReadFrom.NONE)
    except Exception:
        # One response must not end the evaluation of the others; it is wrong, and counted as crashed.
        return Verdict(None, False, Reason.CRASHED)


def _clipped(verdict: Verdict) -> Verdict:
    """Bound what is stored of an answer that is a megabyte long."""
    if verdict.extracted is not None and len(verdict.extracted) > LONGEST_STORED:
        return replace(verdict, extracted=verdict.extracted[:LONGEST_STORED] + "…")
    return verdict
