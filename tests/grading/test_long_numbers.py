"""Numbers beyond what Python reads as an integer are compared and never end the run."""

from __future__ import annotations

import pytest

from luspo_cli.config.reward import RewardConfig
from luspo_cli.grading.maths.decide import decide
from luspo_cli.grading.verdict import Reason
from luspo_cli.rewards.rubric import Rubric


@pytest.mark.parametrize("answer", ["9" * 5000, rf"\frac{{{'7' * 4301}}}{{2}}", f"{'1' * 6000}/3", f"-{'8' * 4400}.5"])
def test_a_long_number_is_wrong_and_nothing_else(answer: str) -> None:
    with Rubric(RewardConfig(timeout_s=20.0), 10**5) as rubric:
        status = rubric.score_text(rf"\boxed{{{answer}}}", "14").verdict.reason
    assert status in (Reason.DIFFERENT, Reason.CRASHED, Reason.TIMEOUT)
    assert decide(answer, answer) is Reason.EXACT
