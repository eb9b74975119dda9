"""Answers against golds: one table of cases, the bombs, and the published hand-adjudicated MATH-500 verdicts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from luspo_cli.grading.math_verifier import MathVerifier, decide_cheaply, normalise_answer
from luspo_cli.records import VerificationStatus as Status

REPO = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("LUSPO_DATA", REPO / "../shared/data"))

HANG = r"\dfrac{5^{(5^{(5^{(5^5)})}-4)}-5}{16}"
TOWER = r"9^{9^{9^{9}}}"

RIGHT, WRONG = Status.CORRECT, Status.INCORRECT


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(workers=2, timeout_s=10) as opened:
        yield opened


# (gold, answer, expected); the last column tells whether text alone must settle it
TABLE = [
    ("25", "025", RIGHT, True),
    ("025", "25", RIGHT, True),
    ("25", "25.0", RIGHT, True),
    ("27.0", "27", RIGHT, True),
    ("25", "25.", RIGHT, True),
    ("25", "2500", WRONG, True),
    ("25", "0.25", WRONG, False),
    ("104", "104.005", WRONG, False),
    (r"336^\circ", "336", RIGHT, True),
    ("27", r"\textbf{(B) } 27", RIGHT, True),
    ("25", "x = 25", RIGHT, True),
    ("18", "$18", RIGHT, True),
    ("18", r"\$18.00", RIGHT, True),
    ("18", "18 dollars", RIGHT, True),
    ("18", "18 square feet", RIGHT, True),
    ("18", r"18 \text{ cm}^2", RIGHT, True),
    ("2", "2 and 3", WRONG, False),
    ("2", "2 or 3", WRONG, False),
    ("3", "3 sin x", WRONG, False),
    ("2", "2 million", WRONG, False),
    ("3", "3 pi", WRONG, False),
    ("3", r"3\sqrt{2}", WRONG, False),
    ("1080", "1,080", RIGHT, True),
    (r"10,\!080", "10080", RIGHT, True),
    ("1080", "1,08", WRONG, False),
    ("-4", "−4", RIGHT, True),
    ("4", "-4", WRONG, True),
    ("0", "-0", RIGHT, True),
    (r"\frac43", "4/3", RIGHT, True),
    (r"\frac 59", r"\dfrac{5}{9}", RIGHT, True),
    (r"\frac{1}{2}", "2/4", RIGHT, True),
    (r"\frac{1}{2}", "1/3", WRONG, True),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", RIGHT, True),
    (r"\frac14", "0.25", RIGHT, False),
    (r"\sqrt{13}", "sqrt(13)", RIGHT, False),
    (r"7\pi", "7pi", RIGHT, False),
    (r"18+2\pi", r"2\pi + 18", RIGHT, False),
    ("x^2-1", "(x-1)(x+1)", RIGHT, False),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", RIGHT, True),
    ("[1,2]", "(1,2)", WRONG, False),
    (r"\text{east}", "east", RIGHT, True),
    (r"\text{east}", "East", RIGHT, True),
    ("east", "seat", WRONG, True),
    ("listen", "silent", WRONG, True),
    (r"\text{(C)}", "C", RIGHT, False),
    ("3", "", WRONG, True),
]


@pytest.mark.parametrize(("gold", "answer", "expected", "cheap"), TABLE)
def test_table(verifier: MathVerifier, gold: str, answer: str, expected: Status, cheap: bool) -> None:
    assert verifier.verify([(gold, answer)]) == [expected]
    assert (decide_cheaply(gold, answer) is not None) == cheap


def test_no_answer_is_its_own_status(verifier: MathVerifier) -> None:
    assert verifier.verify([("5", None), ("5", "5")]) == [Status.NO_ANSWER, RIGHT]


def test_normalisation_is_idempotent() -> None:
    for gold, answer, _, _ in TABLE:
        for text in (gold, answer):
            assert normalise_answer(normalise_answer(text)) == normalise_answer(text)


def test_letters_after_a_command_stay_apart() -> None:
    assert normalise_answer(r"3 \pi r") == r"3\pi r"


def test_bombs_cost_their_own_answers_only() -> None:
    pairs = [(rf"\sqrt{{{n + 2}}}", rf"\frac{{\sqrt{{{4 * (n + 2)}}}}}{{2}}") for n in range(64)]
    bombs = {3: HANG, 30: TOWER, 31: HANG, 60: rf"\frac{{1}}{{{TOWER}}}"}
    for index, bomb in bombs.items():
        pairs[index] = (r"\frac{1}{3}", bomb)
    with MathVerifier(workers=2, timeout_s=1.5) as bounded:
        started = time.monotonic()
        statuses = bounded.verify(pairs)
        took = time.monotonic() - started
    assert {index for index, status in enumerate(statuses) if status is Status.TIMEOUT} <= set(bombs)
    assert all(statuses[index] in (Status.TIMEOUT, Status.CRASHED) for index in bombs)
    assert all(status is RIGHT for index, status in enumerate(statuses) if index not in bombs)
    assert took < 4 * 1.5 + 15


def test_a_memory_bomb_stays_below_the_limit_of_its_worker() -> None:
    with MathVerifier(workers=1, timeout_s=2, memory_bytes=700 << 20) as bounded:
        statuses = bounded.verify([(r"\frac{1}{3}", TOWER), (r"\frac{2}{4}", "0.5")])
    assert statuses[0] is not RIGHT
    assert statuses[1] is RIGHT


def test_equal_pairs_are_compared_once(verifier: MathVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = verifier._started_pool()
    sent: list[int] = []
    original = pool.map
    monkeypatch.setattr(pool, "map", lambda tasks, **options: (sent.append(len(tasks)), original(tasks, **options))[1])
    pair = ("y^2-4", "(y-2)(y+2)")
    assert verifier.verify([pair] * 50) == [RIGHT] * 50
    assert verifier.verify([pair] * 50) == [RIGHT] * 50
    assert sent == [1]


def test_a_timeout_is_tried_again_later() -> None:
    with MathVerifier(workers=1, timeout_s=0.3) as bounded:
        assert bounded.verify([("1/3", HANG)]) == [Status.TIMEOUT]
        assert ("1/3", HANG) not in bounded._verdicts


def test_progress_reaches_the_number_of_pairs(verifier: MathVerifier) -> None:
    counts: list[int] = []
    verifier.verify([("5", "5"), ("5", None), (r"\sqrt{8}", r"2\sqrt{2}")], on_done=counts.append)
    assert counts == sorted(counts)
    assert counts[-1] == 3


def test_unparsable_golds(verifier: MathVerifier) -> None:
    golds = ["5", "", r"\frac{1}{", "???", "east", "x+1", "(1,2)", "3/4", "-1.5"]
    assert verifier.unparsable(golds) == [False, True, True, True, False, False, False, False, False]


def test_hand_adjudicated_math500_answers(verifier: MathVerifier) -> None:
    folder = DATA / "math500"
    if not (folder / "published/gpt.jsonl").is_file():
        pytest.skip(f"needs the MATH-500 files in {folder} (set LUSPO_DATA)")
    problems = json.loads((folder / "math500_test.json").read_text(encoding="utf-8"))
    lines = (folder / "published/gpt.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [row for line in lines if line and (row := json.loads(line))["equal"] is not None]
    statuses = verifier.verify([(problems[row["index"]]["answer"], row["extracted"]) for row in rows])
    wrong = [row["index"] for row, status in zip(rows, statuses, strict=True) if (status is RIGHT) != row["equal"]]
    assert len(rows) == 482
    assert wrong == []
