"""The scorer as a file interface: what is counted, what is refused, and what the result file holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from doubles.files import write_json_lines
from luspo_cli.errors import RunError, UsageError
from luspo_cli.evaluation.benchmark import BenchmarkProblem
from luspo_cli.evaluation.benchmarks.aime24 import AIME24
from luspo_cli.evaluation.benchmarks.math500 import MATH500, Math500
from luspo_cli.evaluation.benchmarks.table import BENCHMARKS, SUITES, load_benchmark
from luspo_cli.evaluation.evaluate import score_responses
from luspo_cli.evaluation.responses import Sample
from luspo_cli.evaluation.scorer import EvaluationResult, score_samples
from luspo_cli.grading.answers import Extraction
from luspo_cli.grading.grader import Decision, compare
from luspo_cli.grading.verdict import NeedsSymbolic, Reason


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"id": 60 + n, "problem": f"What is {n}?", "answer": f"{n:03}"} for n in range(30)]
    return write_json_lines(tmp_path / "test.jsonl", rows)


@pytest.fixture
def score(data: Path, tmp_path: Path) -> Callable[[list[dict[str, Any]]], EvaluationResult]:
    def run(lines: list[dict[str, Any]]) -> EvaluationResult:
        return score_responses(AIME24, data, write_json_lines(tmp_path / "responses.jsonl", lines))

    return run


def right(n: int) -> str:
    return rf"\boxed{{{n}}}"


def test_an_empty_list_of_responses_is_a_missing_response(score) -> None:
    report = score([{"id": 60, "response": right(7)}, {"id": 61, "responses": []}]).responses
    assert (report["missing"], report["missing_ids"][0], report["empty"]) == (29, "61", 0)


def test_missing_empty_duplicate_and_unknown_ids_are_counted_and_none_is_lost(score) -> None:
    lines = [{"id": 60 + n, "response": right(n)} for n in range(20)]
    lines += [{"id": 80, "response": ""}, {"id": 81, "response": None}, {"id": "nobody", "response": right(1)}]
    lines += [{"id": 60, "response": right(7)}]
    result = score(lines)
    report = result.responses
    assert (report["lines"], report["empty"]) == (24, 2)
    assert (report["missing"], report["missing_ids"]) == (8, [str(n) for n in range(82, 90)])
    assert (report["unknown"], report["unknown_ids"]) == (1, ["nobody"])
    assert (report["duplicate"], report["duplicate_ids"]) == (1, ["60"])
    # Problem 60 has one right and one wrong sample; two are empty and eight missing, all of them wrong.
    assert result.metrics["accuracy"] == pytest.approx((19 + 0.5) / 30)
    assert result.metrics["problems_missing"] == 8
    by_id = {entry["id"]: entry for entry in result.to_json()["problems"]}
    assert len(by_id) == 30
    missing = {"extracted": None, "correct": False, "reason": "missing", "read_from": "none", "decided_by": "nobody"}
    assert by_id["85"]["samples"] == [missing]
    assert by_id["80"]["samples"][0]["reason"] == "no_answer"
    assert [sample["correct"] for sample in by_id["60"]["samples"]] == [True, False]


def test_ids_may_be_upstreams_or_row_numbers_as_text_or_number(score) -> None:
    result = score(
        [{"id": 60, "response": right(0)}, {"id": "1", "response": right(1)}, {"id": 2.0, "response": right(2)}]
    )
    assert [result.graded[name][0].correct for name in ("60", "61", "62")] == [True, True, True]
    assert result.responses["unknown"] == 0


def test_several_responses_a_problem(score) -> None:
    result = score([{"id": 60 + n, "responses": [right(n), right(999), right(n), "?"]} for n in range(30)])
    plain = result.to_json()
    assert (plain["n_problems"], plain["n_samples"], plain["version"]) == (30, 4, 2)
    assert plain["metrics"]["avg@4"] == 0.5
    assert plain["metrics"]["pass@2"] == pytest.approx(1 - 1 / 6)
    assert plain["metrics"]["maj@4"] == 1.0
    assert plain["metrics"]["no_answer_fraction"] == 0.25


def test_extractions_replace_ours(score) -> None:
    result = score(
        [
            {"id": 60, "response": right(5), "extraction": "0"},
            {"id": 61, "response": right(1), "extraction": None},
            {"id": 62, "responses": [right(9), right(2)], "extraction": ["2", None]},
            {"id": 63, "response": "nothing", "extraction": 3},
            {"id": 64, "response": right(4), "extraction": ""},
        ]
    )
    verdicts = {name: [v.correct for v in result.graded[name]] for name in ("60", "61", "62", "63", "64")}
    assert verdicts == {"60": [True], "61": [True], "62": [True, True], "63": [True], "64": [False]}
    assert result.graded["64"][0].reason is Reason.NO_ANSWER


def test_truncation_and_length_are_reported_where_known(score) -> None:
    lines = [
        {"id": 60, "responses": ["a", "b"], "truncated": [True, False], "response_length": [10, 30]},
        {"id": 61, "response": "c", "truncated": False},
        {"id": 62, "response": "d"},
    ]
    metrics = score(lines).metrics
    assert metrics["truncated_fraction"] == pytest.approx(1 / 3)
    assert metrics["response_length/mean"] == 20
    assert "truncated_fraction" not in score([{"id": 60, "response": "a"}]).metrics


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "not JSON"),
        ("[1]", "not an object"),
        ('{"response": "x"}', "no id"),
        ('{"id": true, "response": "x"}', "no id"),
        ('{"id": 60}', "either 'response' or 'responses'"),
        ('{"id": 60, "response": "x", "responses": ["x"]}', "either 'response' or 'responses'"),
        ('{"id": 60, "responses": "x"}', "not a list"),
        ('{"id": 60, "response": 5}', "not text"),
        ('{"id": 60, "responses": ["x"], "extraction": ["1", "2"]}', "one entry for each of the 1 responses"),
        ('{"id": 60, "response": "x", "response_length": -5}', "'response_length' must be .* not -5"),
        ('{"id": 60, "responses": ["x"], "response_length": [2.5]}', "'response_length' must be .* not 2.5"),
        ('{"id": 60, "response": "x", "response_length": true}', "'response_length' must be .* not True"),
        ('{"id": 60, "response": "x", "truncated": "no"}', "'truncated' must be true or false, not 'no'"),
        ('{"id": 60, "response": "x", "thought_open": 1}', "'thought_open' must be true or false, not 1"),
        ("[" * 100_000, "not JSON"),
        ('{"id": ' + "9" * 5_000 + "}", "not JSON"),
    ],
)
def test_a_bad_line_stops_with_its_number(data: Path, tmp_path: Path, line: str, sentence: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"id": 60, "response": "fine"}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match=rf"(?s)Line 3 of .*{sentence}"):
        score_responses(AIME24, data, file)


def test_a_file_of_another_benchmark_is_no_score_of_0(score) -> None:
    with pytest.raises(
        UsageError, match=r"No id in .* is one of AIME24: it has test/1, test/2, .* the benchmark 60, 61, 62"
    ):
        score([{"id": f"test/{n}", "response": right(1)} for n in (1, 2)])
    assert score([{"id": "test/1", "response": right(1)}, {"id": 60, "response": right(0)}]).metrics["correct"] == 1


def test_lengths_that_a_table_wrote_as_decimals_are_read(score) -> None:
    assert score([{"id": 60, "response": "a", "response_length": 12.0}]).metrics["response_length/mean"] == 12


def test_other_bad_files(data: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n \n")
    with pytest.raises(UsageError, match="is empty"):
        score_responses(AIME24, data, empty)
    with pytest.raises(UsageError, match="cannot be read"):
        score_responses(AIME24, data, tmp_path / "absent.jsonl")
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"id": 60, "response": "\xe9"}\n')
    with pytest.raises(UsageError, match=r"Line 1 of .* not UTF-8"):
        score_responses(AIME24, data, latin)
    parquet = tmp_path / "stored.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": [60], "response": ["1"]}), parquet)
    with pytest.raises(UsageError, match=r"stored\.parquet is a parquet file; responses are read from JSON lines"):
        score_responses(AIME24, data, parquet)


def test_lines_end_at_newline_alone_and_a_byte_order_mark_is_no_text(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "odd.jsonl"
    text = '{"id": 60, "response": "a\u2028b\\u0000 \\ud800 \\\\boxed{0}"}\r\n'
    file.write_bytes(b"\xef\xbb\xbf" + text.encode("utf-8"))
    result = score_responses(AIME24, data, file)
    assert result.graded["60"][0].correct
    assert result.responses["lines"] == 1


def test_the_result_file_is_whole_and_the_same_every_time(score, tmp_path: Path) -> None:
    lines = [{"id": 60 + n, "responses": [right(n), "\ud800 \\boxed{\ud800}"]} for n in range(30)]
    out = tmp_path / "new" / "OUT.json"
    score(lines).write(out)
    first = out.read_bytes()
    score(lines).write(out)
    assert out.read_bytes() == first
    assert [path.name for path in out.parent.iterdir()] == ["OUT.json"]
    plain = json.loads(first)
    assert {"benchmark", "version", "n_problems", "n_samples", "metrics", "problems"} <= set(plain)
    assert plain["problems"][7] == {
        "id": "67",
        "gold": "7",
        "samples": [
            {"extracted": "7", "correct": True, "reason": "exact", "read_from": "box", "decided_by": "comparison"},
            {"extracted": "\ud800", "correct": False, "reason": "different"}
            | {"read_from": "box", "decided_by": "comparison"},
        ],
    }


def test_a_result_that_cannot_be_written_leaves_nothing(score, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"^cannot write .*; mend that, or choose another --out$"):
        score([{"id": 60, "response": "x"}]).write(tmp_path / "file" / "OUT.json")


def test_a_comparison_that_hangs_or_raises_costs_one_sample() -> None:
    problems = [BenchmarkProblem("0", "", r"\sqrt{8}", ""), BenchmarkProblem("1", "", "5", "")]
    # sympy multiplies out a power of a power of a power: it has to be killed.
    hanging = r"\sum_{n=1}^{2}\dfrac{5^{(5^{(5^{(5^5)})}-4)}-5}{16}"
    samples = [Sample("0", r"\boxed{2\sqrt2}"), Sample("0", "", hanging), Sample("1", r"\boxed{5}")]
    result = score_samples(MATH500, problems, samples, workers=1, timeout_s=1.0)
    assert [v.reason for v in result.graded["0"]] == [Reason.SYMBOLIC, Reason.TIMEOUT]
    assert result.graded["1"][0].correct
    assert result.metrics["reasons"]["timeout"] == 1

    class Raising(Math500):
        def find(self, *arguments: object, **options: object) -> Extraction | None:
            raise RecursionError

    result = score_samples(Raising(), problems, [samples[0]] * 2, workers=1)
    assert [v.reason for v in result.graded["0"]] == [Reason.CRASHED, Reason.CRASHED]


def test_equal_pairs_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counting(gold: str, answer: str) -> Decision | None:
        calls.append(answer)
        return compare(gold, answer)

    monkeypatch.setattr("luspo_cli.grading.grader.compare", counting)
    problems = [BenchmarkProblem("0", "", "5", "")]
    score_samples(MATH500, problems, [Sample("0", r"\boxed{5}")] * 50 + [Sample("0", r"\boxed{6}")] * 50)
    assert calls == ["5", "6"]


def test_the_order_of_lines_does_not_change_the_metrics(score) -> None:
    lines = [{"id": 60 + n, "response": right(n if n % 3 else 999)} for n in range(30)]
    assert score(lines).to_json() == score(lines[::-1]).to_json()


def test_the_table_names_every_benchmark_once() -> None:
    for name in SUITES["text"]:
        assert load_benchmark(name.upper()).modality == "text"
    assert set(SUITES["all"]) <= set(BENCHMARKS)
    with pytest.raises(UsageError, match="did you mean 'math500'"):
        load_benchmark("math50")


def test_a_pending_comparison_holds_what_the_worker_needs() -> None:
    total = r"\sum_{k=1}^{2} k"
    pending = MATH500.grade(BenchmarkProblem("0", "", "3", ""), rf"\boxed{{{total}}}")
    assert pending == NeedsSymbolic(total, "3", total)
