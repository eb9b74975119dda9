"""How often `rule` mode and the published verdicts agree, and whose error each disagreement is.

    python -m bench.agreement.agreement DATA            every system
    python -m bench.agreement.agreement DATA --goals    the systems with a goal, and where it is missed

Two figures a system: our `rule` verdict against the published one, and our extraction under the official comparison
(`official` mode without a stored extraction). Every disagreement of the first is classed:
a, the official rule decided by something else than what was said (nearest choice, truncated or binary number, a label
outside A to E); b, the judge that made the published extraction did not extract what the response says; c, ours.
A disagreement that no rule classes was read by hand (`adjudicated.py`); one that was not is `unread` and fails a test.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.agreement.adjudicated import ADJUDICATED
from luspo_cli.errors import UsageError
from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem
from luspo_cli.evaluation.benchmarks.logicvista import LOGICVISTA
from luspo_cli.evaluation.benchmarks.mathvista import MATHVISTA
from luspo_cli.grading.free_text.choices import choice_position
from luspo_cli.grading.free_text.numbers import decimal
from luspo_cli.grading.verdict import Verdict

GOALS = {
    "MathVista/bard": 0.98,
    "MathVista/claude": 0.98,
    "MathVista/chatgpt_2shot_solution": 0.965,
    "MathVista/idefics_9b_instruct": 0.965,
    "MathVista/llava_llama_2_13b": 0.925,
    "LogicVista/GPT4": 0.99,
    "LogicVista/pix2struct": 0.99,
    "LogicVista/BLIP2": 0.98,
    "LogicVista/LLAVA7B": 0.97,
    "LogicVista/miniGPTvicuna7B": 0.92,
    "LogicVista/GIT-large": 0.92,
}
"""Share of rows on which the rule verdict should be the published one, set before the reader was finished."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One row on which the rule verdict and the published verdict differ."""

    id: str
    extracted: str | None
    official_extraction: Any
    official_correct: bool
    cause: str
    """a, b, c or unread."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """One system: rows on which the verdicts agree, and the disagreements."""

    benchmark: str
    system: str
    rows: int
    agreed: int
    agreed_official: int
    """Rows on which our extraction under the official comparison agrees."""
    disagreements: tuple[Disagreement, ...]

    @property
    def causes(self) -> Counter[str]:
        return Counter(disagreement.cause for disagreement in self.disagreements)


def agreement(folder: Path) -> list[Agreement]:
    """Compare every published system below `folder`; raises UsageError where the data is not there."""
    found = [
        _compare(folder / name, benchmark, file)
        for name, benchmark in (("mathvista", MATHVISTA), ("logicvista", LOGICVISTA))
        for file in sorted((folder / name / "published").glob("*.jsonl"))
    ]
    if not found:
        raise UsageError(f"{folder} holds no mathvista/published or logicvista/published; give the data folder.")
    return [result for result in found if result is not None]


def main(folder: str, *, goals: bool = False) -> None:
    """Print one Markdown line a system; with `goals` only of systems that have one, with the goal and whether it is met."""
    results = agreement(Path(folder))
    if goals:
        _print_goals({f"{result.benchmark}/{result.system}": result for result in results})
        return
    print("| benchmark | system | rows | agree (rule) | agree (our extraction, official comparison) | a | b | c |")
    print("|---|---|---|---|---|---|---|---|")
    for result in results:
        causes = result.causes
        shares = f"{result.agreed / result.rows:.1%} | {result.agreed_official / result.rows:.1%}"
        counts = " | ".join(str(causes[cause]) for cause in "abc")
        unread = f" ({causes['unread']} unread)" if causes["unread"] else ""
        print(f"| {result.benchmark} | {result.system} | {result.rows} | {shares} | {counts}{unread} |")


def _print_goals(results: dict[str, Agreement]) -> None:
    print(
        "| system | goal | agree (rule) | met | disagreements | a | b | c | agree (our extraction, official comparison) |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, goal in GOALS.items():
        result = results[name]
        share = result.agreed / result.rows
        met = "yes" if share >= goal else f"no, by {(goal * result.rows) - result.agreed:.0f} rows"
        counts = " | ".join(str(result.causes[cause]) for cause in "abc")
        shares = f"{goal:.1%} | {share:.1%} | {met} | {len(result.disagreements)} | {counts}"
        print(f"| {name} | {shares} | {result.agreed_official / result.rows:.1%} |")


def _compare(folder: Path, benchmark: Benchmark, file: Path) -> Agreement | None:
    problems = {problem.id: problem for problem in benchmark.problems(folder)}
    rows = list(_rows(file))
    if not all("response" in row for row in rows):
        return None  # a program's system: its judge read more than the printed output that is published
    agreed = agreed_official = 0
    disagreements = []
    for row in rows:
        problem = problems[row["id"]]
        verdict = _verdict(benchmark, problem, row["response"], "rule")
        agreed += verdict.correct == row["correct"]
        agreed_official += _verdict(benchmark, problem, row["response"], "official").correct == row["correct"]
        if verdict.correct != row["correct"]:
            cause = _cause(benchmark, file.stem, problem, verdict, row)
            disagreements.append(Disagreement(problem.id, verdict.extracted, row["extraction"], row["correct"], cause))
    return Agreement(benchmark.name, file.stem, len(rows), agreed, agreed_official, tuple(disagreements))


def _verdict(benchmark: Benchmark, problem: BenchmarkProblem, response: str, mode: Any) -> Verdict:
    verdict = benchmark.grade(problem, response, mode=mode)
    assert isinstance(verdict, Verdict), f"{benchmark.name} needs no algebra."
    return verdict


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(encoding="utf-8").split("\n"):
        if not line.strip():
            continue
        row = json.loads(line)
        if "pid" in row:
            row |= {"id": row["pid"], "correct": row["true_false_current"]}
        else:
            row |= {"extraction": row["extracted"], "correct": bool(row["match"])}
        yield row


def _cause(benchmark: Benchmark, system: str, problem: BenchmarkProblem, verdict: Verdict, row: dict[str, Any]) -> str:
    """The class by rule where one decides, else by the table of rows read by hand."""
    read = ADJUDICATED.get(f"{benchmark.name}/{system}", {}).get(problem.id)
    if read is not None:
        return read
    extraction, choices = row["extraction"], problem.extra.get("choices")
    if benchmark is not MATHVISTA:
        return "unread"
    if choices and choice_position(extraction, choices) is None and verdict.extracted is None:
        return "a"  # nothing was named, and the nearest choice was taken
    value = None if choices else decimal(extraction)
    if value is not None and verdict.extracted is not None and decimal(verdict.extracted) == value:
        return "a"  # the same number, truncated or rounded in binary
    return "unread"


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--goals"]
    if len(words) != 1:
        sys.exit("Give the data folder: the one that holds mathvista/ and logicvista/.")
    try:
        main(words[0], goals="--goals" in sys.argv)
    except UsageError as error:
        sys.exit(str(error))
