"""Responses that try to hang, crash or fool the scorer: none is lost or right by accident, all in bounded time."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hostile import hostile_responses, megabytes

from luspo_cli.evaluation.benchmark import BenchmarkProblem
from luspo_cli.evaluation.benchmarks.table import load_benchmark
from luspo_cli.evaluation.responses import Sample
from luspo_cli.evaluation.scorer import score_samples
from luspo_cli.grading.verdict import Reason

GOLDS = [
    r"\frac{1}{2}",
    "25",
    "(3,4]",
    "52_8",
    "x=5",
    r"\text{east}",
    "3,5,7",
    r"\begin{pmatrix}1\\2\end{pmatrix}",
    "y=2x+3",
    r"\pi",
]


def test_ten_thousand_hostile_responses_all_get_a_verdict_in_bounded_time() -> None:
    problems = [BenchmarkProblem(str(n), "", gold, gold) for n, gold in enumerate(GOLDS)]
    samples = [Sample(str(n % 10), response) for n, response in enumerate(hostile_responses(10_000))]
    start = time.monotonic()
    result = score_samples(load_benchmark("math500"), problems, samples, workers=2, timeout_s=1.0)
    assert time.monotonic() - start < 60
    assert sum(len(verdicts) for verdicts in result.graded.values()) == 10_000
    reasons = result.metrics["reasons"]
    assert sum(reasons.values()) == 10_000
    assert reasons.get("timeout", 0) + reasons.get("crashed", 0) <= 20
    # Right by chance: only answers in which the gold itself can be read.
    for problem in problems:
        for verdict in result.graded[problem.id]:
            if verdict.correct:
                assert verdict.extracted is not None
                assert any(part in verdict.extracted for part in ("25", "２５", "52_8", "east", "pi", "½", "x=5"))


@pytest.mark.parametrize("name", ["aime24", "gsm8k"])
def test_hostile_responses_to_the_number_benchmarks(name: str) -> None:
    benchmark = load_benchmark(name)
    problem = BenchmarkProblem("0", "", "271828", "271828")
    result = score_samples(
        benchmark, [problem], [Sample("0", response) for response in hostile_responses(3_000, seed=1)]
    )
    assert len(result.graded["0"]) == 3_000
    assert result.metrics["correct"] == 0
    assert Reason.CRASHED not in result.metrics["reasons"]


_MEMORY = """
import resource
from luspo_cli.evaluation.benchmark import BenchmarkProblem
from luspo_cli.evaluation.benchmarks.table import load_benchmark
from luspo_cli.evaluation.responses import Sample
from luspo_cli.evaluation.scorer import score_samples

def run(count):
    samples = (Sample("0", f"Answer: {number} " + "7" * 1_000_000) for number in range(count))
    result = score_samples(load_benchmark("math500"), [BenchmarkProblem("0", "", "25", "25")], samples)
    assert result.metrics["reasons"] == {"different": count}
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

few = run(5)
print(run(150) - few)
"""


def test_long_answers_do_not_fill_the_memory() -> None:
    done = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30, "150 answers of a megabyte each were kept"


def test_a_megabyte_of_anything_is_read_in_linear_time() -> None:
    responses = megabytes()
    benchmarks = [load_benchmark(name) for name in ("math500", "gsm8k", "aime24")]
    problem = BenchmarkProblem("0", "", "25", "25")
    for number, response in enumerate(responses):
        benchmark = benchmarks[number % len(benchmarks)]
        start = time.process_time()
        extracted = benchmark.extract(problem, response)
        if extracted is not None:
            benchmark.compare(problem, extracted)
            benchmark.answer_key(extracted)
        assert time.process_time() - start < 3, f"{response[:20]!r} repeated to a megabyte is too slow"
