"""Parts of a session that whole runs do not reach: the noise warning, weight decay, a disk full of rollouts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doubles.messages import heard
from luspo_cli.config.layers import resolve_train
from luspo_cli.errors import RunError
from luspo_cli.policy.policy import Policy
from luspo_cli.records import Prompt, ScoredGroup
from luspo_cli.runs.rollouts import store_rollouts
from luspo_cli.training.dynamic_sampling import StepGroups
from luspo_cli.training.loop import in_order
from luspo_cli.training.noise_floor import NoiseWatch
from luspo_cli.training.optimizer import make_optimizer
from luspo_cli.training.sampling import Scored, settled, with_advantages


@pytest.mark.parametrize(
    ("objective", "noise", "warned"),
    [
        ("luspo", 3.9e-4, False),  # a fifth of clip_low = 2e-3 is 4e-4
        ("luspo", 4.1e-4, True),
        ("gspo", 5.9e-5, False),
        ("gspo", 6.1e-5, True),
        ("grpo", 0.1, False),  # token ratios: the floor of sequence ratios says nothing about their clip
        ("luspo", None, False),
    ],
)
def test_noise_above_a_fifth_of_the_clip_range_is_warned_about_once(
    objective: str, noise: float | None, warned: bool
) -> None:
    watch = NoiseWatch(resolve_train(preset="qwen2.5-0.5b", objective=objective))
    with heard() as said:
        for _ in range(2):
            watch({"ratio/noise_floor": noise})
            watch({})
    assert len(said) == warned
    assert all("part of the clipping is arithmetic" in text for text in said)


def test_the_noise_is_compared_on_the_scale_of_the_clip_range() -> None:
    # Sums over 100 tokens: a mean noise of 1e-4 is 1e-2, above a fifth of 0.042 and below a fifth of 0.1.
    for low, warned in ((0.042, True), (0.1, False)):
        sets = ["objective.clip_on=sum", f"objective.clip_low={low}", "objective.clip_high=0.2"]
        watch = NoiseWatch(resolve_train(preset="qwen2.5-0.5b", objective="luspo", sets=sets))
        with heard() as said:
            watch({"ratio/noise_floor": 1e-4, "response_length/mean": 100.0})
        assert len(said) == warned


def test_weight_decay_is_for_matrices_only(make_model: Callable[..., Any]) -> None:
    policy = Policy(make_model(), 1.0)
    names, optimizer = make_optimizer(policy, resolve_train(preset="tiny", sets=["update.weight_decay=0.25"]).update)
    decays = [group["weight_decay"] for group in optimizer.param_groups for _ in group["params"]]
    weights = dict(policy.named_parameters())
    assert sorted(names) == sorted(weights)
    for name, decay in zip(names, decays, strict=True):
        assert decay == (0.25 if weights[name].dim() == 2 else 0.0), name
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.99)}


def test_a_metric_without_a_name_is_a_defect_and_not_a_line() -> None:
    assert list(in_order({"time/total": 1.0, "step": 3})) == ["step", "time/total"]
    with pytest.raises(AssertionError, match="made/up"):
        in_order({"step": 3, "made/up": 1.0})


def test_rewards_become_advantages_group_by_group(make_groups: Callable[..., list[ScoredGroup]]) -> None:
    """Rewards 1, 0, 0 and 1, 1, 1: (2/3, -1/3, -1/3) / 0.57735 and nothing."""
    groups = make_groups([[2, 3, 4], [1, 1, 1]], [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    config = resolve_train(preset="tiny")
    prompts = [Prompt(g.problem.id, g.rollouts[0].prompt_tokens) for g in groups]
    sampled = Scored(prompts, [list(g.rollouts) for g in groups], [g.rewards for g in groups], 0.0, 0.0)
    scored = with_advantages([g.problem for g in groups], sampled, config)
    assert [group.prompt for group in scored] == prompts
    assert scored[0].advantages == pytest.approx((1.154701, -0.57735, -0.57735), abs=1e-4)
    assert scored[1].advantages == (0.0, 0.0, 0.0)


def test_rollouts_that_do_not_fit_on_the_disk(
    make_groups: Callable[..., list[ScoredGroup]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet

    def full(table: Any, where: Any) -> None:
        where.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyarrow.parquet, "write_table", full)
    groups = make_groups([[2, 3]], [[1.0, -1.0]])
    with pytest.raises(
        RunError, match=r"cannot write .*step-000003\.parquet: No space left on device; free some space"
    ):
        store_rollouts(tmp_path, 3, groups, groups)
    assert os.listdir(tmp_path) == []


def test_the_std_of_a_batch_is_that_of_the_groups_that_are_trained(
    make_groups: Callable[..., list[ScoredGroup]],
) -> None:
    """Of three sampled groups the last two are the batch: rewards 1, 0, 0 and 1, 1, 0, whose std is 0.5477."""
    groups = make_groups([[2, 3, 4], [1, 1, 1], [2, 2, 2]], [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    parts = {"advantage": "group_mean_batch_std", "ratio": "token", "surrogate": "clip", "aggregation": "token-mean"}
    sets = [f"objective.{key}={value}" for key, value in (parts | {"clip_low": 0.2, "clip_high": 0.2}).items()]
    config = resolve_train(preset="tiny", objective="custom", sets=sets)
    found = settled(StepGroups(groups, groups[1:], 2), config)
    assert found.batch[0].advantages == pytest.approx(
        [2 / 3 / 0.547723, -1 / 3 / 0.547723, -1 / 3 / 0.547723], rel=1e-4
    )
    assert [group.advantages for group in found.sampled] == [
        groups[0].advantages,
        found.batch[0].advantages,
        found.batch[1].advantages,
    ]
    assert settled(StepGroups(groups, groups[1:], 1), config).batch[0].advantages == groups[1].advantages
