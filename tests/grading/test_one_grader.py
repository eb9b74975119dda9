"""Training and `luspo eval` judge the same responses alike, row by row, through the command line alone.

A made model writes given responses; the rewards that its training stores are compared with what an evaluation of the same
responses says, and both with the verdicts that are known.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from doubles.models import writing_model
from luspo_cli.grading.answers import AnswerMark

REPO = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("LUSPO_DATA", REPO / "../shared/data"))
Luspo = Callable[..., tuple[int, str, str]]
MATH500_SIZE = 500
SETTINGS = """
model.path = "model"
model.compute_dtype = "float32"
data.train = "data"
rollout.group_size = 2
rollout.max_response_tokens = 16
update.mini_batches = 1
evaluation.every = 0
run.steps = 1
run.threads = 1
"""
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


class Case(NamedTuple):
    """A response to a problem with this gold answer, and what is known of it: right, wrong or nothing."""

    gold: str
    response: str
    right: bool | None = None


class Judged(NamedTuple):
    """What is stored of one verdict."""

    right: bool
    extracted: str | None
    reason: str
    read_from: str
    decided_by: str


def rewarded(luspo: Luspo, cases: Sequence[Case], system: str | None, opens: str = "") -> list[Judged]:
    """What one training step stores for each response."""
    import pandas as pd

    follows = {f"<case{n}>{opens}": case.response for n, case in enumerate(cases)}
    # A template loses the line feed at its end, but not one that it writes as a value.
    writing_model(Path("model"), follows, TEMPLATE + f"{{{{ {opens!r} }}}}", context=512)
    turns = [{"role": "system", "content": system}] if system else []
    rows = [
        {
            "data_source": "made",
            "prompt": [*turns, {"role": "user", "content": f"This is <case{n}>"}],
            "reward_model": {"style": "rule", "ground_truth": case.gold},
            "extra_info": {"split": "train", "index": n},
        }
        for n, case in enumerate(cases)
    ]
    Path("data").mkdir()
    pd.DataFrame(rows).to_parquet("data/train.parquet")
    Path("settings.toml").write_text(SETTINGS, encoding="utf-8")
    size = f"rollout.problems={len(cases)}"
    code, _, error = luspo("train", "--config", "settings.toml", "--objective", "luspo", "--run", "run", "--set", size)
    assert code == 0, error
    table = pd.read_parquet("run/rollouts/step-000001.parquet")
    found: dict[int, Judged] = {}
    for row in table.to_dict("records"):
        number = int(row["problem_id"].rpartition("/")[2])
        assert row["response"] == cases[number].response
        right = row["reward_accuracy"] == 1.0
        assert right == (row["status"] == "correct")
        extracted = row["extracted"] if isinstance(row["extracted"], str) else None
        one = Judged(right, extracted, row["reason"], row["read_from"], row["decided_by"])
        assert found.setdefault(number, one) == one
    return [found[n] for n in range(len(cases))]


def evaluated(luspo: Luspo, cases: Sequence[Case], prompt: str | None, thought_open: bool) -> list[Judged]:
    """What an evaluation of the same responses says, with these golds in the layout of MATH500."""
    golds = [case.gold for case in cases] + ["0"] * (MATH500_SIZE - len(cases))
    problems = [
        {"problem": f"Case {n}", "answer": gold, "subject": "Algebra", "level": 1, "unique_id": f"case/{n}"}
        for n, gold in enumerate(golds)
    ]
    Path("math500").mkdir()
    Path("math500/math500_test.json").write_text(json.dumps(problems), encoding="utf-8")
    lines = [
        {"id": f"case/{n}", "response": case.response, "thought_open": thought_open} for n, case in enumerate(cases)
    ]
    Path("responses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    words = ["--benchmark", "math500", "--data", "math500", "--responses", "responses.jsonl", "--out", "scores.json"]
    code, _, error = luspo("eval", *words, *(["--prompt", prompt] if prompt else []))
    assert code == 0, error
    found = {
        problem["id"]: problem["samples"][0] for problem in json.loads(Path("scores.json").read_text())["problems"]
    }
    keys = ("correct", "extracted", "reason", "read_from", "decided_by")
    return [Judged(*(found[f"case/{n}"][key] for key in keys)) for n in range(len(cases))]


def judge(
    luspo: Luspo, cases: Sequence[Case], *, system: str | None = None, prompt: str | None = None, opens: str = ""
) -> list[Judged]:
    """The verdicts, after asserting that both sides gave the same and that they are those that are known."""
    rewards = rewarded(luspo, cases, system, opens)
    scores = evaluated(luspo, cases, prompt, bool(opens))
    differing = [(case, one, other) for case, one, other in zip(cases, rewards, scores, strict=True) if one != other]
    assert differing == []
    judged_otherwise = [
        (case, one)
        for case, one in zip(cases, scores, strict=True)
        if case.right is not None and case.right != one.right
    ]
    assert judged_otherwise == []
    return scores


def boxed(gold: str, answer: str, right: bool) -> Case:
    return Case(gold, rf"So \boxed{{{answer}}}.", right)


# Kinds of answers on which graders err, in both directions.
KINDS = [
    boxed("7/4", "1 3/4", True),
    boxed("13/4", "1 3/4", False),
    boxed("45", "4 5", False),
    boxed("2500000", "2 500 000", True),
    boxed(r"\frac{1}{3^{80}}", r"\frac{1}{3^{79}}", False),
    boxed("x=4", "z=4", False),
    boxed("8 \\text{ m}", "8 \\text{ km}", False),
    boxed("-30", r"-30\%", True),
    boxed(r"\frac34", "¾", True),
    boxed(r"\sqrt{5}", "√5", True),
    boxed(r"\frac19", r"0.\overline{1}", True),
    boxed("0", "3x-6=0", False),
    boxed("2,3", "(2,3)", False),
    boxed("14", "f(2) = 14", True),
    boxed("14", "f(14) = 2", False),
    boxed("55", r"\sum_{k=1}^{10} k", True),
    boxed("56", r"\sum_{k=1}^{10} k", False),
    boxed(r"(0,4)\cup(4,25)", r"(0,25)\setminus\{4\}", True),
    boxed(r"(0,4)\cup(4,25)", r"(0,25)\setminus\{5\}", False),
    Case("12", r"I count \boxed{12", False),
    Case("12", "twelve, that is 12", False),
    Case("12", "#### 12\n\nQuestion: and then?\n#### 13", True),
    Case("13", "#### 12\n\nQuestion: and then?\n#### 13", False),
]
SPELT = {
    AnswerMark.BOX: r"\boxed{%s}",
    AnswerMark.HASHES: "#### %s",
    AnswerMark.A_LINE: "A: %s",
    AnswerMark.ANSWER_LINE: "Answer: %s",
    AnswerMark.TAGS: "<answer>%s</answer>",
    AnswerMark.CHINESE: "答案：%s",
    AnswerMark.HEADING: "**Final Answer**\n%s",
}
ASKS = {
    AnswerMark.BOX: r"Put your final answer within \boxed{}.",
    AnswerMark.HASHES: 'Output the final answer after "####".',
    AnswerMark.A_LINE: 'End with a line of the form "A: number".',
    AnswerMark.ANSWER_LINE: 'Put your answer on its own line after "Answer:".',
    AnswerMark.TAGS: "Give the answer in <answer> </answer> tags.",
    AnswerMark.CHINESE: "最后以“答案：”的形式给出结果。",
    AnswerMark.HEADING: "Write the heading **Final Answer** and the answer below.",
}


def test_kinds_of_answers_are_judged_alike_and_rightly(luspo: Luspo) -> None:
    judge(luspo, KINDS, system=ASKS[AnswerMark.BOX])


@pytest.mark.parametrize("mark", list(AnswerMark))
def test_every_mark_is_read_by_both(luspo: Luspo, mark: AnswerMark) -> None:
    """Each mark alone, which both read whatever the prompt asks for; only the place is named after the prompt."""
    cases = [Case(gold, f"We add.\n{spelt % '42'}", gold == "42") for spelt in SPELT.values() for gold in ("42", "24")]
    rewards = rewarded(luspo, cases, ASKS[mark])
    scores = evaluated(luspo, cases, None, False)
    assert [one.right for one in rewards] == [one.right for one in scores] == [case.right for case in cases]
    own = [one.read_from for one, case in zip(rewards, cases, strict=True) if SPELT[mark] % "42" in case.response]
    assert own == ["box" if mark is AnswerMark.BOX else "own_mark"] * 2


def test_the_mark_that_the_prompt_asks_for_comes_first_in_both(luspo: Luspo) -> None:
    both = "Answer: 42\n\nThe box of step one was \\boxed{24}."
    cases = [Case("42", both, True), Case("24", both, False), Case("24", r"\boxed{24}", True)]
    found = judge(luspo, cases, system=ASKS[AnswerMark.ANSWER_LINE], prompt="dapo")
    assert [one.read_from for one in found] == ["own_mark", "own_mark", "box"]


def test_a_thought_that_the_template_opened_is_part_of_the_response_in_both(luspo: Luspo) -> None:
    cases = [
        Case("42", r"perhaps \boxed{42} or not", False),
        Case("42", "perhaps 24.</think>\nIt is \\boxed{42}.", True),
        Case("24", "perhaps \\boxed{24}.</think>\nIt is \\boxed{42}.", False),
    ]
    judge(luspo, cases, opens="<think>\n")


def test_hand_judged_pairs_are_judged_alike(luspo: Luspo) -> None:
    from test_comparison_cases import DIFFERENT, EQUAL

    pairs = [(*pair, True) for pair in EQUAL] + [(*pair, False) for pair in DIFFERENT]
    # A brace that does not close cannot stand in a box, and training data without a gold answer is refused.
    judge(luspo, [boxed(*pair) for pair in pairs if pair[0].strip() and pair[1].count("{") == pair[1].count("}")])


@pytest.mark.parametrize("chunk", range(4))
def test_published_responses_are_judged_alike(luspo: Luspo, chunk: int) -> None:
    """2,000 responses of the published systems, 500 at a time."""
    questions = DATA / "gsm8k/test.jsonl"
    files = (
        "math500/published/gpt.jsonl",
        "gsm8k/published/175b_verification.jsonl",
        "gsm8k/published/6b_finetuning.jsonl",
    )
    if not all((DATA / file).is_file() for file in files):
        pytest.skip(f"needs the published responses in {DATA} (set LUSPO_DATA)")
    golds = [row["answer"].rpartition("####")[2].strip().replace(",", "") for row in _lines(questions)]
    cases: list[Case] = []
    for file in files:
        for row in _lines(DATA / file)[:770]:
            gold = golds[row["index"]] if "gsm8k" in file else row["answer"]
            cases.append(Case(gold, row["response"], row.get("equal", row.get("is_correct"))))
    part = [case for case in cases if case.response][500 * chunk : 500 * (chunk + 1)]
    assert len(part) == 500
    judge(luspo, part)


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
