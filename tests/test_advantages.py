"""Advantages of one group: hand-computed numbers, and groups that carry no signal."""

from __future__ import annotations

import math

import pytest

from luspo_cli.advantages import ADVANTAGES, advantages_of, group_mean, group_mean_std, has_signal, leave_one_out


def test_by_hand() -> None:
    rewards = [1.0, 0.0, 0.0, 1.0]
    # Bessel: squared deviations 4 · 1/4, divided by 3.
    std = math.sqrt(1 / 3)
    assert group_mean_std(rewards) == pytest.approx([s * 0.5 / (std + 1e-6) for s in (1, -1, -1, 1)], rel=1e-14)
    assert group_mean(rewards) == [0.5, -0.5, -0.5, 0.5]
    assert leave_one_out(rewards) == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])


def test_leave_one_out_is_reward_minus_the_mean_of_the_others() -> None:
    rewards = [0.3, 1.7, -2.0, 0.0, 4.5]
    expected = [r - sum(rewards[:i] + rewards[i + 1 :]) / 4 for i, r in enumerate(rewards)]
    assert leave_one_out(rewards) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ADVANTAGES)
@pytest.mark.parametrize(
    "rewards",
    [
        [],
        [1.0],
        [0.0] * 8,
        [1.0] * 8,
        [1 + 1e-9, 1 - 1e-9, 1.0, 1.0],
        [0.1 + 0.2, 0.3, 0.3],
        [-1e6, -1e6 + 1e-3],
    ],
    ids=["empty", "one", "all_0", "all_1", "noise", "sum_noise", "large"],
)
def test_a_group_without_signal_gets_exact_zeros(kind: str, rewards: list[float]) -> None:
    assert not has_signal(rewards)
    advantages = ADVANTAGES[kind](rewards)
    assert advantages == [0.0] * len(rewards)
    assert all(type(a) is float and math.copysign(1, a) == 1 for a in advantages)


@pytest.mark.parametrize("kind", ADVANTAGES)
@pytest.mark.parametrize("rewards", [[1.0, 0.0], [1.0, 1.0, 1.0, 0.0], [0.0, -1 / 4096], [0.5, 0.7, 0.5]])
def test_a_mixed_group_is_centred_and_keeps_its_order(kind: str, rewards: list[float]) -> None:
    assert has_signal(rewards)
    advantages = ADVANTAGES[kind](rewards)
    if kind == "max_rl" and math.fsum(rewards) <= 0:  # no success: dividing by such a mean would turn the signs around
        assert advantages == [0.0] * len(rewards)
        return
    assert math.fsum(advantages) == pytest.approx(0.0, abs=1e-12)
    order = sorted(range(len(rewards)), key=rewards.__getitem__)
    assert [advantages[i] for i in order] == sorted(advantages)
    assert max(advantages) > 0 > min(advantages)


def test_a_mean_of_half_is_signal() -> None:
    # Filtering by the mean, or after a leave-one-out transform, has confused these two elsewhere.
    assert has_signal([0.0, 1.0])
    assert not has_signal([0.5, 0.5])


def test_scaling_rewards_scales_only_what_is_not_divided_by_the_std() -> None:
    rewards = [0.2, 0.9, 0.4]
    tenfold = [10 * r for r in rewards]
    assert group_mean(tenfold) == pytest.approx([10 * a for a in group_mean(rewards)])
    assert group_mean_std(tenfold) == pytest.approx(group_mean_std(rewards), rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        group_mean_std([1.0, bad])


def test_max_rl_by_hand() -> None:
    """Rewards 1, 0, 0, 0: mean 1/4, so 3/4 and -1/4 over it; without a success, or with a negative mean, nothing."""
    assert ADVANTAGES["max_rl"]([1.0, 0.0, 0.0, 0.0]) == pytest.approx([3.0, -1.0, -1.0, -1.0])
    assert ADVANTAGES["max_rl"]([0.0, 0.0]) == [0.0, 0.0]
    assert ADVANTAGES["max_rl"]([0.5, -1.0, 0.0]) == [0.0, 0.0, 0.0]


def test_the_std_of_a_batch_is_over_all_its_groups() -> None:
    """Rewards 1, 0 and 1, 1: mean 3/4, std 1/2; the second group has no signal of its own and counts in the std."""
    found = advantages_of("group_mean_batch_std", [[1.0, 0.0], [1.0, 1.0]])
    assert found[0] == pytest.approx([0.5 / (0.5 + 1e-6), -0.5 / (0.5 + 1e-6)], rel=1e-12)
    assert found[1] == [0.0, 0.0]
    assert advantages_of("group_mean_batch_std", [[2.0]]) == [[0.0]]
    for kind, one in ADVANTAGES.items():
        assert advantages_of(kind, [[1.0, 0.0], [0.0, 1.0, 1.0]]) == [one([1.0, 0.0]), one([0.0, 1.0, 1.0])]
