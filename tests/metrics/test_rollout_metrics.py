"""Numbers of one step's rollouts, from groups made by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from doubles.runs import rollout
from luspo_cli.grading.verdict import Reason, Verdict
from luspo_cli.metrics.rollout_metrics import length_metrics, reward_metrics
from luspo_cli.records import ScoredGroup


def group_of(made: ScoredGroup, right: int) -> ScoredGroup:
    """The same group with its first `right` rollouts correct."""
    rewards = tuple(
        dataclasses.replace(reward, verdict=Verdict("0", n < right, Reason.EXACT if n < right else Reason.DIFFERENT))
        for n, reward in enumerate(made.rewards)
    )
    return dataclasses.replace(made, rewards=rewards)


@pytest.mark.parametrize(
    ("right", "shares"),
    [
        # In floats 1 - 2/3 - 1/3 is above 0, and 1 - 9/10 - 1/10 below it.
        ([2, 2, 0], (2 / 3, 1 / 3, 0.0)),
        ([2] * 9 + [0], (0.9, 0.1, 0.0)),
        ([0, 1, 2, 1], (0.25, 0.25, 0.5)),
    ],
)
def test_groups_are_counted_by_outcome(
    make_groups: Callable[..., list[ScoredGroup]], right: list[int], shares: tuple[float, float, float]
) -> None:
    made = make_groups([[3, 4]] * len(right), [[0.0, 0.0]] * len(right))
    found = reward_metrics([group_of(group, number) for group, number in zip(made, right, strict=True)])
    names = ("all_correct", "all_wrong", "mixed")
    assert tuple(found[f"group/{name}_fraction"] for name in names) == shares


@pytest.mark.parametrize(
    ("lengths", "median", "ninety"),
    [
        ([7], 7, 7),
        ([4, 1], 2.5, 4),  # half of two is not 90 %
        ([9, 1, 5], 5, 9),
        ([10, 20, 30, 40, 50, 60, 70, 80, 90, 100], 55, 90),  # nine of ten do not exceed 90
        ([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110], 60, 100),  # 10 of 11 are 91 %, 9 of 11 are 82 %
        ([3] * 18 + [50, 60], 3, 3),  # 18 of 20 do not exceed 3
        ([3] * 17 + [50, 60, 70], 3, 50),
        ([5, 5, 5, 5], 5, 5),
    ],
)
def test_lengths_by_hand(lengths: list[int], median: float, ninety: int) -> None:
    """p90 is the length that 90 % of the rollouts do not exceed: a length that occurs, never one between two."""
    cut = max(lengths)
    rollouts = [rollout(length=length, truncated=length == cut) for length in lengths]
    assert length_metrics(rollouts) == {
        "response_length/mean": pytest.approx(sum(lengths) / len(lengths)),
        "response_length/p50": median,
        "response_length/p90": ninety,
        "response_length/max": cut,
        "response/truncated_fraction": pytest.approx(lengths.count(cut) / len(lengths)),
    }
