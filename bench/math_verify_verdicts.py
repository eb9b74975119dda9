r"""What math-verify says of an answer where TRL and verl call it, beside luspo's verdict: the table of docs/grading.md.

    python -m bench.math_verify_verdicts                 every row
    python -m bench.math_verify_verdicts '1 1/4' ...     GOLD ANSWER, a row of your own

TRL's `accuracy_reward` parses the solution in dollars and the response with a LaTeX configuration that takes boxes first,
and verifies the two; verl's `math_verify` scorer is math-verify's metric with the gold in a box. Both are called
here with the same arguments, without TRL and verl.
"""

from __future__ import annotations

import logging
import sys

from luspo_cli.grading.grader import Grader, Response

ROWS: tuple[tuple[str, str, bool], ...] = (
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}", False),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}", False),
    (r"1.6\times10^{-19}", r"1.7\times10^{-19}", False),
    ("1,2", "(1,2)", False),
    ("5", "5, 5", False),
    ("R^2", "r^2", False),
    ("52", "52_8", False),
    (r"5\text{ cm}", r"5\text{ m}", False),
    (r"90^\circ", r"90\text{ radians}", False),
    ("0", "2x-3=0", False),
    (r"\infty", r"\infty+1", False),
    (r"\sqrt{2}", "1.41421356237309504880", False),
    ("5/4", "1 1/4", True),
    (r"[\sqrt{2},\infty)", r"m\geq\sqrt{2}", True),
    ("-50", r"-50\%", True),
    (r"\frac13", r"0.\overline{3}", True),
    (r"6.02\times10^{23}", "6.02e23", True),
    (r"\frac12", "½", True),
)
"""Gold, answer, and whether the answer is right."""


def as_trl(gold: str, answer: str) -> bool:
    """TRL's `accuracy_reward` for a response that boxes the answer."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    units = NormalizationConfig(units=True)
    config = LatexExtractionConfig(normalization_config=units, boxed_match_priority=0, try_extract_without_anchor=False)
    return bool(
        verify(
            parse(f"${gold}$", parsing_timeout=None),
            parse(
                rf"\boxed{{{answer}}}", extraction_config=[config], extraction_mode="first_match", parsing_timeout=None
            ),
            timeout_seconds=None,
        )
    )


def as_verl(gold: str, answer: str) -> bool:
    """verl's `math_verify` scorer for a response that boxes the answer."""
    from math_verify.errors import TimeoutException
    from math_verify.metric import math_metric
    from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

    score = math_metric((LatexExtractionConfig(),), (ExprExtractionConfig(), LatexExtractionConfig()))
    try:
        return bool(score([rf"\boxed{{{gold}}}"], [rf"\boxed{{{answer}}}"])[0])
    except (TimeoutException, ValueError):
        return False


def main() -> None:
    """Print the table, or the row of the command line."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    given = sys.argv[1:]
    rows = [(given[0], given[1], None)] if len(given) == 2 else list(ROWS)
    words = {True: "right", False: "wrong", None: ""}
    print("| gold | answer | is | as TRL calls it | as verl calls it | luspo |\n|---|---|---|---|---|---|")
    with Grader() as grader:
        for gold, answer, right in rows:
            (ours,) = grader.judge([Response(rf"\boxed{{{answer}}}", gold)])
            found = [words[one] for one in (right, as_trl(gold, answer), as_verl(gold, answer), ours.correct)]
            print(f"| `{gold}` | `{answer}` | {' | '.join(found)} |")


if __name__ == "__main__":
    main()
