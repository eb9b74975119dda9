"""We-Math (testmini).

Name: We-Math, split testmini, 1,740 multiple-choice problems in 525 groups (360 of two steps, 165 of three).
Dataset: We-Math/We-Math on the Hub; testmini.json and knowledge_structure_nodes.json of the repository We-Math/We-Math.
Abstract: each composed problem comes with the one-step problems it is made of, so that a right answer can be told from
    understanding. `official` is the benchmark's string rule for the letter; `rule` reads every stated letter.
Paper: We-Math: Does Your Large Multimodal Model Achieve Human-like Mathematical Reasoning?, arXiv 2407.01284.
Licence: CC BY-NC 4.0, non-commercial.

The four-dimensional metrics say what a model knows of a problem's parts against what it makes of the whole.
Per group of n one-step problems and the problem composed of them, with s one-step problems right and m whether the
composed one is: IK (insufficient knowledge) m = 0, s < n; IG (inadequate generalisation) m = 0, s = n; CM (complete
mastery) m = 1 and s = n, or s >= 1 in the loose setting; RM (rote memorisation) the rest of m = 1. The rate of RM
is RM / (CM + RM), all others are over the groups; Score = (CM + 0.5 IG) / groups.

Groups come from the benchmark, never from the responses: in the official script a missing row removes its group
from the counts and is credited in the score. Where no composed problem is right the RM rate is 0 (the script stops).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from luspo_cli.data.prompts import IMAGE_MARK, PromptTemplate
from luspo_cli.data.reading import read_rows
from luspo_cli.errors import UsageError
from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem, Mode
from luspo_cli.evaluation.problems import BenchmarkImage, whole_table
from luspo_cli.evaluation.scores import Cell, accuracy_by, as_dicts, overall
from luspo_cli.grading.answers import AnswerMark
from luspo_cli.grading.free_text.letters import official_letter, read_letter, short_letter
from luspo_cli.grading.free_text.options import split_options
from luspo_cli.grading.verdict import DecidedBy, Reason, Verdict
from luspo_cli.records import Message

_QUESTION = "<image>Now, we require you to solve a multiple-choice math question. "
_OFFICIAL_BEFORE = _QUESTION + "Please briefly describe your thought process and provide the final answer(option).\n"
_OFFICIAL_AFTER = (
    "\nRegarding the format, please answer following the template below, and be sure to include two <> symbols:\n"
    "<Thought process>: <<your thought process>> <Answer>: <<your option>>"
)
_BOXED = "\n\nReason step by step, and put the letter of the right option within \\boxed{}."


class WeMath(Benchmark):
    """We-Math testmini with its four-dimensional metrics."""

    name = "We-Math"
    version = 2
    modality = "vision"
    size = 1740
    licence = "CC BY-NC 4.0 (non-commercial)"
    hub_ids = ("We-Math/We-Math:default:testmini",)
    modes = ("rule", "official")
    tables = ("steps", "domains")
    default_prompt = "boxed"
    prompts = {  # noqa: RUF012 - read-only by contract
        "official": PromptTemplate("official", None, before=_OFFICIAL_BEFORE, after=_OFFICIAL_AFTER),
        "boxed": PromptTemplate("boxed", AnswerMark.BOX, before=IMAGE_MARK, after=_BOXED),
    }

    def problems(self, source: Path) -> list[BenchmarkProblem]:
        """Read testmini.json and, beside it, the concept tree that gives the domains."""
        columns = ("ID", "key", "question", "option", "answer", "image_path", "knowledge concept", "question number")
        files = ("testmini.json", "testmini.jsonl", "testmini.parquet")
        path, rows = whole_table(source, files, columns, self.size, self.name, ids=2)
        domains = _domains(path.with_name("knowledge_structure_nodes.json"))
        return [_problem(row, domains, path.parent) for row in rows]

    def prompt(self, problem: BenchmarkProblem, variant: str | None = None) -> tuple[Message, ...]:
        """Return the prompt with the question and the option string as the file prints it."""
        question = f"Question: {problem.question}\nOption: {problem.extra['option']}"
        return self.template(variant).render(question)

    def extract(
        self, problem: BenchmarkProblem, response: str, *, mode: Mode = "rule", variant: str | None = None
    ) -> str | None:
        """Return the option's letter: the official string rule, or every clearly stated letter."""
        if mode == "official":
            return official_letter(response)
        return read_letter(response, problem.extra["options"], problem.question)

    def compare(self, problem: BenchmarkProblem, extracted: str, *, mode: Mode = "rule") -> Verdict:
        """Compare letters."""
        official = mode == "official"
        letter = official_letter(extracted) if official else short_letter(extracted, problem.extra["options"])
        if letter is None:
            return Verdict(extracted, False, Reason.NO_ANSWER)
        right = letter == problem.gold
        decider = DecidedBy.OFFICIAL if official else DecidedBy.EXACT
        return Verdict(letter, right, Reason.EXACT if right else Reason.DIFFERENT, decided_by=decider)

    def aggregate(
        self, problems: Sequence[BenchmarkProblem], graded: Mapping[str, Sequence[Verdict]]
    ) -> dict[str, Any]:
        """Return the common metrics, `strict` and `loose`, accuracy by `steps`, by `domains` and by `concepts`.

        With several samples a problem the four-dimensional metrics are computed per sample and averaged.
        """
        one_step = [problem for problem in problems if not problem.extra["composed"]]
        concepts = accuracy_by(one_step, graded, lambda problem: (problem.extra["concept"],))
        domain_of = {problem.extra["concept"]: problem.extra["domain"] for problem in one_step}
        members: dict[str, list[Cell]] = {}
        for concept, cell in concepts.items():
            members.setdefault(domain_of[concept], []).append(cell)
        # The unweighted mean over a domain's concepts, as the benchmark defines it.
        domains = {
            domain: fmean(cell.correct / cell.total for cell in cells) for domain, cells in sorted(members.items())
        }
        return {
            **super().aggregate(problems, graded),
            **four_dimensions(problems, graded),
            "steps": as_dicts(_steps(problems, graded)),
            "domains": domains,
            "concepts": as_dicts(concepts),
        }

    def row_id(self, row: Mapping[str, Any]) -> str | None:
        """Return `id`, or `ID/key` as the upstream files call it."""
        if "id" in row:
            return super().row_id(row)
        return f"{row['ID']}/{row['key']}" if "ID" in row and "key" in row else None


@dataclass(frozen=True, slots=True)
class FourCounts:
    """Groups in each category, for one setting."""

    ik: int
    ig: int
    cm: int
    rm: int

    @property
    def groups(self) -> int:
        return self.ik + self.ig + self.cm + self.rm

    @property
    def score(self) -> float:
        """(CM + 0.5 IG) / groups."""
        return (self.cm + 0.5 * self.ig) / self.groups if self.groups else 0.0

    @property
    def rm_rate(self) -> float:
        """RM / (CM + RM), 0 where no composed problem is right."""
        mastered = self.cm + self.rm
        return self.rm / mastered if mastered else 0.0

    def as_dict(self) -> dict[str, float]:
        """Score, the four rates in [0, 1] and the four counts, for a result file."""
        groups = self.groups or 1
        rates = {"ik_rate": self.ik / groups, "ig_rate": self.ig / groups, "cm_rate": self.cm / groups}
        counts = {"ik": self.ik, "ig": self.ig, "cm": self.cm, "rm": self.rm}
        return {"score": self.score, **rates, "rm_rate": self.rm_rate, **counts}


def count_groups(groups: Iterable[tuple[tuple[bool, ...], bool]]) -> Mapping[str, FourCounts]:
    """Count (one-step verdicts, composed verdict) pairs into the `strict` and the `loose` setting."""
    ik = ig = 0
    strict_cm = loose_cm = right = 0
    for steps, composed in groups:
        if not composed:
            ik, ig = (ik, ig + 1) if all(steps) else (ik + 1, ig)
            continue
        right += 1
        strict_cm += all(steps)
        loose_cm += any(steps)
    return {
        "strict": FourCounts(ik, ig, strict_cm, right - strict_cm),
        "loose": FourCounts(ik, ig, loose_cm, right - loose_cm),
    }


def four_dimensions(
    problems: Sequence[BenchmarkProblem], graded: Mapping[str, Sequence[Verdict]]
) -> dict[str, dict[str, float]]:
    """The `strict` and `loose` categories over the groups of `problems`; a problem without a verdict is wrong."""
    groups: dict[str, tuple[list[str], list[str]]] = {}
    for problem in problems:
        groups.setdefault(problem.extra["group"], ([], []))[bool(problem.extra["composed"])].append(problem.id)
    samples = max((len(graded.get(problem.id, ())) for problem in problems), default=0) or 1

    def right(identifier: str, sample: int) -> bool:
        verdicts = graded.get(identifier, ())
        return sample < len(verdicts) and verdicts[sample].correct

    counts = [
        count_groups(
            (tuple(right(step, sample) for step in steps), bool(composed) and all(right(c, sample) for c in composed))
            for steps, composed in groups.values()
        )
        for sample in range(samples)
    ]
    settings = {}
    for setting in ("strict", "loose"):
        tables = [count[setting].as_dict() for count in counts]
        settings[setting] = {key: _mean([table[key] for table in tables]) for key in tables[0]}
    return settings


def _steps(problems: Sequence[BenchmarkProblem], graded: Mapping[str, Sequence[Verdict]]) -> dict[str, Cell]:
    two = [problem for problem in problems if problem.extra["composed"] and problem.extra["steps"] == 2]
    three = [problem for problem in problems if problem.extra["composed"] and problem.extra["steps"] == 3]
    one = [problem for problem in problems if not problem.extra["composed"]]
    return {"one": overall(one, graded), "two": overall(two, graded), "three": overall(three, graded)}


def _mean(values: Sequence[float]) -> float:
    return values[0] if len(values) == 1 else fmean(values)


def _domains(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise UsageError(f"{path} is missing and gives the domains of We-Math; put it beside testmini.json.")
    return {node["full node"].rpartition("_")[2]: node["root2"] for node in read_rows(path, id_column="full node")}


def _problem(row: Mapping[str, Any], domains: Mapping[str, str], folder: Path) -> BenchmarkProblem:
    composed = row["key"].endswith("multi")
    concept = row["knowledge concept"]
    if not composed and concept not in domains:
        raise UsageError(f"The concept '{concept}' of {row['ID']} is in no domain; the two We-Math files do not match.")
    extra = {
        "group": row["ID"],
        "key": row["key"],
        "composed": composed,
        "steps": int(row["key"][0]),
        "concept": concept,
        "domain": None if composed else domains[concept],
        "option": row["option"],
        "options": split_options(row["option"]),
    }
    identifier = f"{row['ID']}/{row['key']}"
    answer = row["answer"].strip()
    aliases = (str(row["question number"]), f"{row['ID']}_{row['key']}", f"{row['ID']}:{row['key']}")
    image = BenchmarkImage(folder, row["image_path"])
    return BenchmarkProblem(identifier, row["question"], answer, row["answer"], (image,), extra, aliases)


WEMATH = WeMath()
