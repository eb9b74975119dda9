"""The judge's verdicts beside the rule's: each distinct response of a problem is asked once, and failures stay visible.

A failed request is no verdict: `accuracy` is over the samples that were judged, `failed` counts the others, and
`accuracy_bounds` says where the accuracy of all would lie if every failure were wrong, and if every one were right.
Replies are logged as they come, so an evaluation that is killed while judging does not pay for them again; failures are
not logged and are asked again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from luspo_cli.evaluation.benchmark import Benchmark
from luspo_cli.evaluation.judge import Judge, Question, Reply
from luspo_cli.evaluation.responses import Sample
from luspo_cli.evaluation.scorer import EvaluationResult, score_samples
from luspo_cli.files import append
from luspo_cli.metrics.intervals import bootstrap_interval

logger = logging.getLogger(__name__)


class JudgeLog:
    """Replies by problem and response, in memory and, with a `file`, one JSON line each on disk."""

    def __init__(self, file: Path | None, judge: Judge, known: Mapping[str, Reply] | None = None) -> None:
        self._file = file
        self._judge = json.dumps(judge.identity(), sort_keys=True)
        self._replies: dict[str, Reply] = dict(known or {})
        if file is not None and file.is_file():
            for line in file.read_bytes().split(b"\n"):
                self._take(line)

    def __contains__(self, key: str) -> bool:
        return key in self._replies

    def __getitem__(self, key: str) -> Reply:
        return self._replies[key]

    def add(self, key: str, reply: Reply) -> None:
        """Keep a reply; only one that is no failure goes to the disk."""
        self._replies[key] = reply
        if self._file is not None and reply.error is None:
            row = {"judge": self._judge, "key": key, "extracted": reply.extracted, "correct": reply.correct}
            self._file.parent.mkdir(parents=True, exist_ok=True)
            # The line feed comes first, so a line that a kill tore apart does not spoil the next one.
            append(self._file, b"\n" + json.dumps(row).encode(), "then the same command goes on")

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            if row["judge"] == self._judge:
                self._replies[row["key"]] = Reply(row["extracted"], row["correct"])
        except (ValueError, LookupError, TypeError):
            return  # the torn last line of a killed process, or the empty first one


def reply_key(problem_id: str, response: str) -> str:
    """Return the key under which a reply is kept: equal responses to one problem share it."""
    return hashlib.sha256(json.dumps([problem_id, response]).encode()).hexdigest()


def known_replies(samples_file: Path) -> dict[str, Reply]:
    """Return the replies in a finished evaluation's parquet file, failures left out."""
    import pyarrow.parquet

    names = ["id", "response", "judge_extracted", "judge_correct", "judge_error"]
    with pyarrow.parquet.ParquetFile(samples_file) as parquet:
        rows = parquet.read(columns=names).to_pylist()
    return {
        reply_key(row["id"], row["response"]): Reply(row["judge_extracted"], row["judge_correct"])
        for row in rows
        if row["judge_error"] is None and row["judge_correct"] is not None
    }


def judge_samples(
    judge: Judge, benchmark: Benchmark, result: EvaluationResult, samples: Sequence[Sample], log: JudgeLog
) -> EvaluationResult:
    """Return `result` with `judge_extracted`, `judge_correct` and `judge_error` beside each sample's verdict.

    `metrics["judge"]` has accuracy, interval and bounds, counts (`asked`, `judged` of `samples`, `failed`, `correct`) and
    `agreement`: the share of judged samples in which the rule has the same verdict (None where none was judged).
    """
    keys = [reply_key(sample.problem_id, sample.response) for sample in samples]
    _ask(judge, benchmark, result, samples, keys, log)
    replies = [log[key] for key in keys]
    correct = [reply.correct for reply in replies]
    if judge.task == "extract":
        correct = _compared(benchmark, result, samples, replies)
    details: dict[str, list[Mapping[str, Any]]] = {problem.id: [] for problem in result.problems}
    for sample, reply, right in zip(samples, replies, correct, strict=True):
        row = {"judge_extracted": reply.extracted, "judge_correct": right, "judge_error": reply.error}
        details[sample.problem_id].append(row)
    for identity, rows in details.items():
        rows.extend({} for _ in range(len(result.graded[identity]) - len(rows)))  # the verdict "missing"
    agreed = [
        judgement["judge_correct"] is verdict.correct
        for identity, rows in details.items()
        for judgement, verdict in zip(rows, result.graded[identity], strict=True)
        if judgement.get("judge_correct") is not None
    ]
    errors = [reply.error for reply in replies if reply.error is not None]
    if errors:
        most, times = Counter(errors).most_common(1)[0]
        logger.warning(
            f"the judge failed on {len(errors):,} of {len(samples):,} samples of {benchmark.name}"
            f" (most often, {times:,} times: {most})"
        )
    summary = {
        **judge.identity(),
        **_accuracy([[row["judge_correct"] for row in details[problem.id] if row] for problem in result.problems]),
        "correct": sum(right is True for right in correct),
        "samples": len(samples),
        "asked": len({key for key, sample in zip(keys, samples, strict=True) if sample.response.strip()}),
        "judged": len(agreed),
        "failed": len(errors),
        "agreement": sum(agreed) / len(agreed) if agreed else None,
    }
    metrics = {**result.metrics, "judge": summary}
    further = {**result.details, "judge": judge.identity()}
    return replace(result, metrics=metrics, details=further, sample_details=details)


def _accuracy(verdicts: Sequence[Sequence[bool | None]]) -> dict[str, Any]:
    """Return accuracy, interval and bounds over problems; None is a failed request, and a problem without samples wrong.

    A problem of which no sample was judged is left out of the accuracy, and counted.
    """
    shares, low, high = [], Fraction(0), Fraction(0)
    for found in verdicts:
        right, failed = sum(verdict is True for verdict in found), sum(verdict is None for verdict in found)
        if failed < len(found) or not found:
            shares.append(Fraction(right, max(1, len(found) - failed)))
        low += Fraction(right, max(1, len(found)))
        high += Fraction(right + failed, max(1, len(found)))
    total = max(1, len(verdicts))
    return {
        "accuracy": float(sum(shares, Fraction(0)) / len(shares)) if shares else None,
        "accuracy_interval_95": bootstrap_interval([float(share) for share in shares]) if shares else None,
        "accuracy_bounds": [float(low / total), float(high / total)],
        "problems_not_judged": len(verdicts) - len(shares),
    }


def _ask(
    judge: Judge,
    benchmark: Benchmark,
    result: EvaluationResult,
    samples: Sequence[Sample],
    keys: Sequence[str],
    log: JudgeLog,
) -> None:
    """Fill the log with a reply for every key."""
    by_id = {problem.id: problem for problem in result.problems}
    left = {key: sample for key, sample in zip(keys, samples, strict=True) if key not in log}
    if not left:
        return
    questions = []
    for sample in left.values():
        problem = by_id[sample.problem_id]
        asked = "\n\n".join(turn.content for turn in benchmark.prompt(problem) if turn.role == "user")
        questions.append(Question(asked.replace("<image>", "").strip(), sample.response, problem.gold))
    order, done = list(left), 0
    logger.info(f"{benchmark.name}: {len(order):,} responses go to the judge '{judge.model}'")

    def keep(index: int, reply: Reply) -> None:
        nonlocal done
        log.add(order[index], reply)
        done += 1
        if done % 100 == 0:
            logger.info(f"{benchmark.name}: {done:,} of {len(order):,} responses judged")

    judge.ask(questions, keep)


def _compared(
    benchmark: Benchmark, result: EvaluationResult, samples: Sequence[Sample], replies: Sequence[Reply]
) -> list[bool | None]:
    """Compare the judge's extractions by the benchmark's own rule; None where it gave none for failure."""
    extracted = [
        Sample(sample.problem_id, sample.response, extraction=reply.extracted or "")
        for sample, reply in zip(samples, replies, strict=True)
    ]
    graded = score_samples(benchmark, result.problems, extracted, mode=result.mode).graded
    verdicts = {identity: iter(row) for identity, row in graded.items()}
    correct: list[bool | None] = []
    for sample, reply in zip(samples, replies, strict=True):
        right = next(verdicts[sample.problem_id]).correct and reply.extracted is not None
        correct.append(None if reply.error is not None else right)
    return correct
