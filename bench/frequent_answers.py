"""What prepared problems give away without their images: `python -m bench.frequent_answers FOLDER [HELD_OUT_PROBLEMS]`.

Prints how many of the held-out problems (the first so many, as `evaluation.problems` takes them; left out: all) are answered
right by the most frequent answer of the training problems, and by the most frequent one that the very same question has there.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence

from luspo_cli.data.problems import load_problems
from luspo_cli.records import Problem


def rows(train: Sequence[Problem], held_out: Sequence[Problem]) -> list[tuple[str, int, float, float]]:
    """For all held-out problems and for each category: their number, and the shares that the two guesses get right."""
    answers = Counter(problem.answer for problem in train)
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    for problem in train:
        by_question[problem.prompt[-1].content][problem.answer] += 1
    most = answers.most_common(1)[0][0]
    found = []
    for category in [None, *sorted({str(problem.extra.get("category")) for problem in held_out})]:
        asked = [problem for problem in held_out if category in (None, str(problem.extra.get("category")))]
        guesses = [by_question[problem.prompt[-1].content] or answers for problem in asked]
        one = sum(problem.answer == most for problem in asked)
        each = sum(p.answer == guess.most_common(1)[0][0] for p, guess in zip(asked, guesses, strict=True))
        found.append((category or "all", len(asked), one / len(asked), each / len(asked)))
    return found


def main(folder: str, number: str = "") -> None:
    held_out = load_problems(folder, split="test")[: int(number) if number else None]
    print(f"{'category':12}{'problems':>10}{'one answer':>12}{'each question its own':>24}")
    for category, problems, one, each in rows(load_problems(folder, split="train"), held_out):
        print(f"{category:12}{problems:10}{one:12.3f}{each:24.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
