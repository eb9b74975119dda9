"""LogicVista.

Name: LogicVista, 448 problems; the answer is one or more option labels.
Dataset: data/dataset.json of the repository Yijia-Xiao/LogicVista; no data set on the Hub is named by its authors.
Abstract: inductive, deductive, numerical, spatial and mechanical reasoning on pictures from aptitude tests. `official`
    is exact equality of sorted, lower-case label lists, given the list; `rule` reads the response and compares sets.
    v1_382 has an empty gold: an empty response is "right" there in `official` mode, and nothing is in `rule` mode.
Paper: LogicVista: Multimodal LLM Logical Reasoning Benchmark in Visual Contexts, arXiv 2407.04973.
Licence: Apache-2.0 for the repository; 287 of the 448 pictures are marked as not licensed, publish none of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luspo_cli.data.prompts import IMAGE_MARK, PromptTemplate
from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem, Mode
from luspo_cli.evaluation.problems import BenchmarkImage, whole_table
from luspo_cli.evaluation.scores import accuracy_by, as_dicts, overall
from luspo_cli.grading.answers import AnswerMark
from luspo_cli.grading.free_text.labels import assistant_part, labels_in, read_labels
from luspo_cli.grading.verdict import DecidedBy, Reason, Verdict

NONE_FOUND = "zzzzz"
"""The official list element for "no label"."""

# The wording is the benchmark's, with its spelling; its three examples are not in its repository, these are ours.
_OFFICIAL_BEFORE = (
    "<image>Your response should only contain letters/numbers, do not add extra explaination. "
    "These are some examples of how to format your output:\n"
    "question: Which number comes next? 2, 4, 6, ... Select from A, B, and C. (A) 7 (B) 9 (C) 8\nanswer: C\n"
    "question: Which of these are even? Select from A, B, and C. (A) 4 (B) 5 (C) 6\nanswer: A, C\n"
    "question: All cats are animals. Is every cat an animal? Select from A and B. (A) Yes (B) No\nanswer: A\n"
    "Now answer the following in the same style based off the provided image:\nquestion: "
)
_OFFICIAL_AFTER = "\nanswer: "
_BOXED = "\n\nReason step by step, and put the label of the right option within \\boxed{}."


class LogicVista(Benchmark):
    """LogicVista with its tables by skill and capability."""

    name = "LogicVista"
    version = 2
    modality = "vision"
    size = 448
    licence = "Apache-2.0 (repository); 287 pictures marked as not licensed"
    modes = ("rule", "official")
    tables = ("skill", "capability")
    default_prompt = "boxed"
    prompts = {  # noqa: RUF012 - read-only by contract
        "official": PromptTemplate("official", None, before=_OFFICIAL_BEFORE, after=_OFFICIAL_AFTER),
        "boxed": PromptTemplate("boxed", AnswerMark.BOX, before=IMAGE_MARK, after=_BOXED),
    }

    def problems(self, source: Path) -> list[BenchmarkProblem]:
        """Read dataset.json (object keyed by id)."""
        columns = ("id", "imagename", "question", "answer", "skill", "broad_capability", "specific_capability")
        files = ("dataset.json", "dataset.jsonl")
        path, rows = whole_table(source, files, columns, self.size, self.name)
        return [_problem(row, path.parent) for row in rows]

    def extract(
        self, problem: BenchmarkProblem, response: str, *, mode: Mode = "rule", variant: str | None = None
    ) -> str | None:
        """Return the labels joined by ", " (`rule`), or the official list as JSON."""
        if mode == "official":
            return json.dumps(_official_list(response, problem.question))
        labels = read_labels(response, problem.question)
        return ", ".join(sorted(labels)) if labels else None

    def compare(self, problem: BenchmarkProblem, extracted: str, *, mode: Mode = "rule") -> Verdict:
        """Compare label sets (`rule`), or sorted lower-case lists exactly (`official`)."""
        if mode == "official":
            given = _as_list(extracted)
            right = sorted(given) == sorted(problem.raw_gold.lower().split(", "))
            found = any(label not in ("", NONE_FOUND) for label in given)
        else:
            labels = labels_in(", ".join(_as_list(extracted)).upper())
            right = bool(problem.gold) and labels == frozenset(problem.gold.split(", "))
            found = bool(labels)
        if not right and not found:
            return Verdict(extracted, False, Reason.NO_ANSWER)
        decider = DecidedBy.OFFICIAL if mode == "official" else DecidedBy.EXACT
        return Verdict(extracted, right, Reason.EXACT if right else Reason.DIFFERENT, decided_by=decider)

    def aggregate(
        self, problems: Sequence[BenchmarkProblem], graded: Mapping[str, Sequence[Verdict]]
    ) -> dict[str, Any]:
        """Return the common metrics, `overall`, and tables by skill and by capability.

        `capability` counts as the official script does, by substring: "diagram and ocr" is in both lines.
        """
        tables = {
            name: as_dicts(accuracy_by(problems, graded, _values(name)))
            for name in ("skill", "capability", "broad_capability", "specific_capability")
        }
        return {**super().aggregate(problems, graded), "overall": overall(problems, graded).as_dict(), **tables}

    def answer_key(self, extracted: str) -> str:
        """Return one key for equal label sets."""
        return ",".join(sorted(_as_list(extracted)))


def _official_list(response: str, question: str) -> list[str]:
    """The official steps that need no judge, then our reader in the judge's place."""
    text = assistant_part(response).strip()
    if not text:
        return [""]
    if len(text) == 1 and not text.isdigit():
        return [text.lower()] if text.lower() in "abcde" else [NONE_FOUND]
    return sorted(label.lower() for label in read_labels(text, question)) or [NONE_FOUND]


def _as_list(extracted: str) -> list[str]:
    """The labels of a stored extraction: a JSON list, or labels joined by commas; lower case."""
    text = extracted.strip()
    if text.startswith("["):
        try:
            return [str(label).strip().lower() for label in json.loads(text)]
        except (ValueError, RecursionError):
            return [text.lower()]
    return [label.strip().lower() for label in text.split(",")]


def _problem(row: Mapping[str, Any], folder: Path) -> BenchmarkProblem:
    labels = [label.strip() for label in row["answer"].split(",") if label.strip()]
    extra = {name: tuple(row[name]) for name in ("skill", "broad_capability", "specific_capability")}
    extra["capability"] = tuple(name for name in ("diagram", "ocr") if name in str(row["broad_capability"]))
    image = BenchmarkImage(folder, f"images/{row['imagename']}")
    return BenchmarkProblem(str(row["id"]), row["question"], ", ".join(sorted(labels)), row["answer"], (image,), extra)


def _values(name: str) -> Any:
    return lambda problem: problem.extra[name]


LOGICVISTA = LogicVista()
