"""Answers against golds: one table of cases, the bombs, and the published hand-adjudicated MATH-500 verdicts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from luspo_cli.grading.answers import AnswerMark
from luspo_cli.grading.grader import Grader, Response, compare
from luspo_cli.grading.verdict import DecidedBy, ReadFrom, Reason

REPO = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("LUSPO_DATA", REPO / "../shared/data"))


RIGHT, WRONG = True, False


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=2, timeout_s=10) as opened:
        yield opened


def right(grader: Grader, pairs: list[tuple[str, str]]) -> list[bool]:
    return [decision.reason.is_right for decision in grader.decide(pairs)]


# (gold, answer, expected)
TABLE = [
    ("25", "025", RIGHT),
    ("025", "25", RIGHT),
    ("25", "25.0", RIGHT),
    ("27.0", "27", RIGHT),
    ("25", "25.", RIGHT),
    ("25", "2500", WRONG),
    ("25", "0.25", WRONG),
    ("104", "104.005", WRONG),
    (r"336^\circ", "336", RIGHT),
    ("27", r"\textbf{(B) } 27", RIGHT),
    ("25", "x = 25", RIGHT),
    ("18", "$18", RIGHT),
    ("18", r"\$18.00", RIGHT),
    ("18", "18 dollars", RIGHT),
    ("18", "18 square feet", RIGHT),
    ("18", r"18 \text{ cm}^2", RIGHT),
    ("2", "2 and 3", WRONG),
    ("2", "2 or 3", WRONG),
    ("3", "3 sin x", WRONG),
    ("2", "2 million", WRONG),
    ("3", "3 pi", WRONG),
    ("3", r"3\sqrt{2}", WRONG),
    ("1080", "1,080", RIGHT),
    (r"10,\!080", "10080", RIGHT),
    ("1080", "1,08", WRONG),
    ("-4", "−4", RIGHT),
    ("4", "-4", WRONG),
    ("0", "-0", RIGHT),
    (r"\frac43", "4/3", RIGHT),
    (r"\frac 59", r"\dfrac{5}{9}", RIGHT),
    (r"\frac{1}{2}", "2/4", RIGHT),
    (r"\frac{1}{2}", "1/3", WRONG),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", RIGHT),
    (r"\frac14", "0.25", RIGHT),
    (r"\sqrt{13}", "sqrt(13)", RIGHT),
    (r"7\pi", "7pi", RIGHT),
    (r"18+2\pi", r"2\pi + 18", RIGHT),
    ("x^2-1", "(x-1)(x+1)", RIGHT),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", RIGHT),
    ("[1,2]", "(1,2)", WRONG),
    (r"\text{east}", "east", RIGHT),
    (r"\text{east}", "East", RIGHT),
    ("east", "seat", WRONG),
    ("listen", "silent", WRONG),
    (r"\text{(C)}", "C", RIGHT),
    ("3", "", WRONG),
]


@pytest.mark.parametrize(("gold", "answer", "expected"), TABLE)
def test_table(grader: Grader, gold: str, answer: str, expected: bool) -> None:
    assert right(grader, [(gold, answer)]) == [expected]


def test_no_pair_of_the_table_needs_a_worker() -> None:
    assert all(compare(gold, answer) is not None for gold, answer, _ in TABLE)


# What our own grammar leaves to math-verify: (gold, answer, expected).
BEYOND = [
    ("55", r"\sum_{k=1}^{10} k", RIGHT),
    ("54", r"\sum_{k=1}^{10} k", WRONG),
    (r"\frac{1}{3}", r"\int_0^1 x^2\,dx", RIGHT),
    (r"\int_0^1 x^2 dx", "1/3", RIGHT),
    (r"\frac{1}{2}", r"\int_0^1 x^2\,dx", WRONG),
    ("120", r"\prod_{k=1}^{5} k", RIGHT),
    ("1", r"\lim_{x\to 0}\frac{\sin x}{x}", RIGHT),
    ("-2", r"\det\begin{pmatrix}1&2\\3&4\end{pmatrix}", RIGHT),
    (r"(0,9)\cup(9,36)", r"(0,36)\setminus\{9\}", RIGHT),
    (r"(0,36)\setminus\{9\}", r"(0,9)\cup(9,36)", RIGHT),
    (r"(0,36)\setminus\{9\}", r"(0,8)\cup(8,36)", WRONG),
    (r"(0,36)\setminus\{9\}", r"(0,36)", WRONG),
    (r"(-\infty,1)\cup(1,\infty)", r"\mathbb{R}\setminus\{1\}", RIGHT),
    (r"\sum_{k=1}^{\infty}\frac{1}{2^{k}}", r"\sum_{k=1}^{\infty}\frac{1}{2^{k}}+10^{-9}", WRONG),
    ("0", r"\int_0^{10^{-6}} x\,dx", WRONG),
    ("3", r"\sum_{k=1}^{2} k = 4", WRONG),
]


@pytest.mark.parametrize(("gold", "answer", "expected"), BEYOND)
def test_what_only_math_verify_knows(grader: Grader, gold: str, answer: str, expected: bool) -> None:
    (decision,) = grader.decide([(gold, answer)])
    assert decision.reason.is_right == expected


def test_it_is_said_who_decided(grader: Grader) -> None:
    pairs = [("5", "5"), ("55", r"\sum_{k=1}^{10} k"), ("54", r"\sum_{k=1}^{10} k")]
    assert [decision.decided_by for decision in grader.decide(pairs)] == [
        DecidedBy.COMPARISON,
        DecidedBy.MATH_VERIFY,
        DecidedBy.MATH_VERIFY,
    ]


HANG = r"\sum_{n=1}^{2}\dfrac{5^{(5^{(5^{(5^5)})}-4)}-5}{16}"
TOWER = r"\sum_{n=1}^{2}9^{(9^{(9^{9})})}"


def test_bombs_cost_their_own_answers_only() -> None:
    pairs = [(rf"{n * (n + 1) // 2}", rf"\sum_{{k=1}}^{{{n}}} k") for n in range(2, 34)]
    bombs = {3: HANG, 30: TOWER, 31: HANG}
    for index, bomb in bombs.items():
        pairs[index] = (r"\frac{1}{3}", bomb)
    with Grader(workers=2, timeout_s=3) as bounded:
        started = time.monotonic()
        reasons = [decision.reason for decision in bounded.decide(pairs)]
        took = time.monotonic() - started
    assert all(reasons[index] in (Reason.TIMEOUT, Reason.CRASHED) for index in bombs)
    assert all(reason.is_right for index, reason in enumerate(reasons) if index not in bombs)
    assert took < 4 * 3 + 30


def test_our_own_comparison_needs_no_time_limit_for_towers() -> None:
    for bomb in (r"\dfrac{5^{(5^{(5^{(5^5)})}-4)}-5}{16}", r"9^{9^{9^{9}}}", r"\frac{1}{9^{9^{9^{9}}}}"):
        decision = compare(r"\frac{1}{3}", bomb)
        assert decision is not None
        assert decision.reason is Reason.DIFFERENT


def test_a_memory_bomb_stays_below_the_limit_of_its_worker() -> None:
    with Grader(workers=1, timeout_s=2, memory_bytes=700 << 20) as bounded:
        reasons = [d.reason for d in bounded.decide([(r"\frac{1}{3}", TOWER), ("3", r"\sum_{k=1}^{2} k")])]
    assert not reasons[0].is_right
    assert reasons[1].is_right


def test_equal_pairs_are_compared_once(grader: Grader, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = grader._started_pool()
    sent: list[int] = []
    original = pool.map
    monkeypatch.setattr(pool, "map", lambda tasks, **options: (sent.append(len(tasks)), original(tasks, **options))[1])
    pair = ("36", r"\sum_{k=1}^{8} k")
    assert right(grader, [pair] * 50) == [True] * 50
    assert right(grader, [pair] * 50) == [True] * 50
    assert sent == [1]


def test_a_timeout_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    with Grader(workers=1, timeout_s=0.3) as bounded:
        pool = bounded._started_pool()
        sent: list[int] = []
        original = pool.map
        monkeypatch.setattr(pool, "map", lambda tasks, **o: (sent.append(len(tasks)), original(tasks, **o))[1])
        for _ in range(2):
            (decision,) = bounded.decide([("1/3", HANG)])
            assert decision.reason is Reason.TIMEOUT
        assert sent == [1, 1]


def test_an_answer_that_breaks_the_comparison_is_wrong_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(gold: str, answer: str) -> None:
        raise RecursionError

    monkeypatch.setattr("luspo_cli.grading.grader.compare", broken)
    with Grader() as one:
        assert [decision.reason for decision in one.decide([("5", "5")])] == [Reason.CRASHED]


def test_progress_reaches_the_number_of_pairs_that_workers_decide(grader: Grader) -> None:
    counts: list[tuple[int, int]] = []
    pairs = [("5", "5"), ("10", r"\sum_{k=1}^{4} k"), ("11", r"\sum_{k=1}^{4} k")]
    grader.decide(pairs, on_done=lambda done, total: counts.append((done, total)))
    assert counts == sorted(counts)
    assert counts[-1] == (2, 2)


def test_unreadable_golds(grader: Grader) -> None:
    golds = ["5", "", r"\frac{1}{", "???", "east", "x+1", "(1,2)", "3/4", "-1.5", r"\sum_{k=1}^{n} k", " "]
    expected = [False, True, True, True, False, False, False, False, False, False, True]
    assert grader.unreadable(golds) == expected


def test_judging_reads_and_compares() -> None:
    responses = [
        Response(r"So it is \boxed{0.5}.", "1/2"),
        Response("#### 7\nor \\boxed{8}", "7", AnswerMark.HASHES),
        Response("who knows", "7"),
        Response(r"so \boxed{7}", "7", thought_open=True),
    ]
    with Grader() as one:
        verdicts = one.judge(responses)
        assert one._pool is None
    assert [(v.correct, v.reason, v.read_from, v.decided_by) for v in verdicts] == [
        (True, Reason.NUMERIC, ReadFrom.BOX, DecidedBy.COMPARISON),
        (True, Reason.EXACT, ReadFrom.OWN_MARK, DecidedBy.COMPARISON),
        (False, Reason.NO_ANSWER, ReadFrom.NONE, DecidedBy.NOBODY),
        (False, Reason.NO_ANSWER, ReadFrom.NONE, DecidedBy.NOBODY),
    ]


def test_hand_adjudicated_math500_answers(grader: Grader) -> None:
    folder = DATA / "math500"
    if not (folder / "published/gpt.jsonl").is_file():
        pytest.skip(f"needs the MATH-500 files in {folder} (set LUSPO_DATA)")
    problems = json.loads((folder / "math500_test.json").read_text(encoding="utf-8"))
    lines = (folder / "published/gpt.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [row for line in lines if line and (row := json.loads(line))["equal"] is not None]
    found = right(grader, [(problems[row["index"]]["answer"], row["extracted"]) for row in rows])
    wrong = [row["index"] for row, equal in zip(rows, found, strict=True) if equal != row["equal"]]
    assert len(rows) == 482
    assert wrong == []
