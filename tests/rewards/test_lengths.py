"""The length terms by hand numbers, alone and inside a reward."""

from __future__ import annotations

import math

import pytest

from luspo_cli.config.layers import resolve_train
from luspo_cli.config.reward import LENGTH_KEYS, LENGTH_TERMS, TAKEN_NAMES, RewardConfig
from luspo_cli.metrics.names import METRICS
from luspo_cli.metrics.rollout_metrics import reward_metrics
from luspo_cli.records import Message, Problem, Rollout, ScoredGroup, StopReason
from luspo_cli.rewards.lengths import cosine_length, gr3_factors, kimi_length, lazy_length
from luspo_cli.rewards.rubric import Rubric

PROBLEM = Problem("p/0", (Message("user", "?"),), "7", "p")


def group(*responses: tuple[str, int]) -> list[Rollout]:
    """Rollouts of `PROBLEM`; a text that ends in … was cut."""
    return [
        Rollout("p/0", (1,), (2,) * length, text.rstrip("…"), StopReason.LENGTH if "…" in text else StopReason.END)
        for text, length in responses
    ]


def test_kimi_length_by_hand() -> None:
    right = (True, True, False, False, True)
    # 100 to 300 tokens: 0.5 - 0, 0.5 - 50/200, 0.5 - 0 and not above 0, 0.5 - 150/200, 0.5 - 1
    assert kimi_length((100, 150, 100, 250, 300), right) == [0.5, 0.25, 0.0, -0.25, -0.5]
    assert kimi_length((80, 80, 80), (True, False, True)) == [0.0, 0.0, 0.0]


def test_lazy_length_by_hand() -> None:
    lengths, right = (40, 100, 140, 200, 300), (False, True, True, True, False)
    # the wrong ones of 40 and 300 tokens neither pay nor set the range, which is 100 to 200
    assert lazy_length(lengths, right, 40) == [0.0, 0.5, 0.5, -0.5, 0.0]
    assert lazy_length(lengths, right, 0) == pytest.approx([0.0, 0.5, 0.1, -0.5, 0.0])
    assert lazy_length((5, 9), (False, False), 0) == [0.0, 0.0]
    assert lazy_length((5, 9), (False, True), 0) == [0.0, 0.5]


def test_cosine_length_by_hand() -> None:
    right, wrong = (2.0, 1.0), (-10.0, 0.0)
    assert [cosine_length(length, 300, right, -10.0) for length in (0, 100, 150, 200)] == pytest.approx(
        [2.0, 1.75, 1.5, 1.25]
    )
    assert [cosine_length(length, 300, wrong, -10.0) for length in (0, 100, 150, 200)] == pytest.approx(
        [-10.0, -7.5, -5.0, -2.5]
    )
    assert cosine_length(299, 300, right, -10.0) == pytest.approx(1.0, abs=1e-4)
    assert cosine_length(300, 300, right, -10.0) == -10.0
    assert cosine_length(7, 300, right, -3.0, truncated=True) == -3.0
    # a whole term between the two ends, whatever their order
    assert cosine_length(75, 300, right, 0.0) == pytest.approx(1.5 + 0.5 * math.cos(math.pi / 4))


def test_gr3_factors_by_hand() -> None:
    # mean 200: 1 / (1 + 0.5 * 0.5), 1 / (1 + 0.5 * 1), 1 / (1 + 0.5 * 1.5)
    assert gr3_factors((100, 200, 300), 0.5) == pytest.approx([0.8, 2 / 3, 4 / 7])
    assert gr3_factors((10, 20, 10), 0.33) == pytest.approx([1 / 1.2475, 1 / 1.495, 1 / 1.2475])
    assert gr3_factors((0, 0), 0.5) == [1.0, 1.0]


def test_the_reward_is_the_weighted_sum_and_gr3_scales_what_the_task_pays() -> None:
    config = RewardConfig(
        verifier="exact",
        accuracy_weight=2.0,
        overlong_buffer=200,
        overlong_weight=3.0,
        kimi_length_weight=0.5,
        lazy_length_weight=0.25,
        lazy_length_tolerance=10,
        cosine_length_weight=0.1,
        gr3_alpha=0.5,
    )
    rollouts = group(("#7", 100), ("#8", 200), ("#7", 300))
    with Rubric(config, 400) as rubric:
        ((short, wrong, long),) = rubric.score_groups([PROBLEM], [rollouts])
    assert short.lengths == pytest.approx(
        {"kimi_length": 0.5, "lazy_length": 0.5, "cosine_length": 1 + (1 + math.sqrt(0.5)) / 2, "gr3": 0.8}
    )
    assert wrong.lengths == pytest.approx({"kimi_length": 0.0, "lazy_length": 0.0, "cosine_length": -5.0, "gr3": 2 / 3})
    assert short.total == pytest.approx(0.8 * 2 + 0.25 + 0.125 + 0.1 * (1.5 + math.sqrt(0.5) / 2))
    assert wrong.total == pytest.approx(0.0 - 0.5)
    # overlong: (400 - 200 - 300) / 200 = -0.5, which the factor does not touch
    assert long.total == pytest.approx(
        2 * 4 / 7 + 3 * -0.5 + 0.5 * -0.5 + 0.25 * -0.5 + 0.1 * (1.5 - math.sqrt(0.5) / 2)
    )

    scored = ScoredGroup(PROBLEM, tuple(rollouts), (short, wrong, long), (0.0, 0.0, 0.0))
    metrics = reward_metrics([scored])
    assert metrics["reward/kimi_length/mean"] == pytest.approx(0.0)
    assert metrics["reward/lazy_length/mean"] == pytest.approx(0.0)
    assert metrics["reward/gr3/mean"] == pytest.approx((0.8 + 2 / 3 + 4 / 7) / 3)
    assert metrics["reward/cosine_length/mean"] == pytest.approx((1.5 + 1.5 - 5.0) / 3)


def test_groups_are_compared_within_themselves() -> None:
    other = Problem("p/1", (Message("user", "?"),), "7", "p")
    far = [Rollout("p/1", (1,), (2,) * length, "#7", StopReason.END) for length in (1000, 2000)]
    with Rubric(RewardConfig(verifier="exact", kimi_length_weight=1.0), 4000) as rubric:
        near, away = rubric.score_groups([PROBLEM, other], [group(("#7", 10), ("#7", 20)), far])
    assert [one.lengths["kimi_length"] for one in (*near, *away)] == [0.5, -0.5, 0.5, -0.5]


def test_a_cut_response_is_at_the_limit() -> None:
    with Rubric(RewardConfig(accuracy_weight=0.0, cosine_length_weight=1.0, workers=1), 400) as rubric:
        ((cut, ended),) = rubric.score_groups([PROBLEM], [group((r"\boxed{7} and on…", 200), (r"\boxed{7}", 200))])
    assert (cut.accuracy, cut.total) == (1.0, -10.0)
    assert ended.total == pytest.approx(1.5)


def test_terms_that_are_off_leave_no_trace() -> None:
    with Rubric(RewardConfig(verifier="exact"), 400) as rubric:
        ((one,),) = rubric.score_groups([PROBLEM], [group(("#7", 10))])
    assert one.lengths == {}
    metrics = reward_metrics([ScoredGroup(PROBLEM, tuple(group(("#7", 10))), (one,), (0.0,))])
    assert not [name for name in LENGTH_TERMS if f"reward/{name}/mean" in metrics]


@pytest.mark.parametrize("key", LENGTH_KEYS)
def test_one_response_alone_has_no_length_terms(key: str) -> None:
    with (
        Rubric(RewardConfig(verifier="exact", **{key: 0.5}), 400) as rubric,
        pytest.raises(ValueError, match="score_groups"),
    ):
        rubric.score_text("#7", "7")


def test_every_term_has_a_metric_and_a_taken_name() -> None:
    assert set(LENGTH_TERMS) <= set(TAKEN_NAMES)
    assert all(f"reward/{name}/mean" in METRICS for name in LENGTH_TERMS)
    assert [key.removesuffix("_weight").removesuffix("_alpha") for key in LENGTH_KEYS] == list(LENGTH_TERMS)


def test_pairs_are_written_as_lists() -> None:
    config = resolve_train(
        preset="tiny", sets=["reward.cosine_length_weight=1", "reward.cosine_length_correct=[3, 0.5]"]
    )
    assert config.reward.cosine_length_correct == (3.0, 0.5)
