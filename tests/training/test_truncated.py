"""`reward.truncated`: what becomes of responses that the limit cut, in the reward, in the loss and in its counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from doubles.runs import records, train
from luspo_cli.config.objective import NAMED_OBJECTIVES, resolve
from luspo_cli.config.reward import RewardConfig
from luspo_cli.config.run import TrainRun
from luspo_cli.objectives import counts_of
from luspo_cli.policy.packing import split_mini_batches
from luspo_cli.processes.ranks import ALONE
from luspo_cli.records import Message, Problem, Rollout, ScoredGroup, StopReason
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.training.dynamic_sampling import StepGroups
from luspo_cli.training.length_diagnostics import diagnose
from luspo_cli.training.sampling import settled

LENGTHS = [[3, 9, 1], [5, 5, 12], [2, 7, 4], [6, 1, 8]]
ADVANTAGES = [[1.0, -0.5, -0.5], [0.5, 0.25, -0.75], [0.25, 1.0, -1.25], [0.5, 0.2, -0.7]]
CUT = [[0, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]]
"""1: cut. All of the second group are; 7 rows with 3 + 1 + 2 + 7 + 4 + 1 + 8 = 26 tokens remain in 3 groups."""
LIMIT = 16


@pytest.fixture
def masked(make_groups: Callable[..., list[ScoredGroup]]) -> list[ScoredGroup]:
    return [group.without_truncated() for group in with_cuts(make_groups(LENGTHS, ADVANTAGES), CUT)]


def with_cuts(groups: list[ScoredGroup], cuts: list[list[int]]) -> list[ScoredGroup]:
    return [
        replace(
            group,
            rollouts=tuple(
                replace(one, stop_reason=StopReason.LENGTH) if cut else one
                for one, cut in zip(group.rollouts, own, strict=True)
            ),
        )
        for group, own in zip(groups, cuts, strict=True)
    ]


def token_weight(objective: str, group: int, row: int) -> float:
    """What one token of a kept row weighs in the loss on policy, written out from the counts of the seven kept rows."""
    length = LENGTHS[group][row]
    if objective == "luspo":
        return 1 / 7
    if objective in ("grpo", "gspo"):
        return 1 / 7 / length
    if objective == "dr_grpo":
        return 1 / 7 / LIMIT
    if objective == "dapo":
        return 1 / 26
    if objective == "dapo_prompt_mean":  # tokens of the group's kept rows, and three groups
        return 1 / 3 / {0: 4, 2: 13, 3: 9}[group]
    # balanced: tokens of the kept rows of its sign, over their share of the group's kept rows
    tokens, share = {
        (0, 0): (3, 1 / 2), (0, 2): (1, 1 / 2),
        (2, 0): (9, 2 / 3), (2, 1): (9, 2 / 3), (2, 2): (4, 1 / 3),
        (3, 1): (1, 1 / 2), (3, 2): (8, 1 / 2),
    }[group, row]  # fmt: skip
    return share / tokens / 3


@pytest.mark.parametrize("objective", ["luspo", "gspo", "grpo", "dr_grpo", "dapo", "dapo_prompt_mean", "balanced"])
def test_masked_rows_are_in_no_term_and_in_no_count(
    make_updater: Callable[..., Any], masked: list[ScoredGroup], objective: str
) -> None:
    """The gradient of one update, against a loop over the kept rows alone."""
    import torch

    updater, model = make_updater("update.gradient_clip=0", f"rollout.max_response_tokens={LIMIT}", objective=objective)
    metrics = updater.update(masked, 0.0)
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    loss = torch.zeros((), dtype=torch.float64)
    for number, group in enumerate(masked):
        rows = [row for row, cut in enumerate(CUT[number]) if not cut]
        for row, rollout, advantage in zip(rows, group.rollouts, group.advantages, strict=True):
            assert advantage == ADVANTAGES[number][row]
            ids = torch.tensor([rollout.prompt_tokens + rollout.response_tokens])
            log_softmax = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            start = len(rollout.prompt_tokens)
            logprobs = log_softmax[start - 1 : -1].gather(1, ids[0, start:, None])
            loss = loss - token_weight(objective, number, row) * advantage * logprobs.sum()
    loss.backward()
    for name, weight in model.named_parameters():
        assert torch.allclose(found[name], weight.grad, atol=2e-6 * float(weight.grad.norm()) + 1e-8), name
    assert (metrics["update/rows_trained"], metrics["update/rows_skipped"]) == (7, 0)


@pytest.mark.parametrize("objective", sorted(NAMED_OBJECTIVES))
def test_the_counts_are_those_of_the_rows_that_remain(masked: list[ScoredGroup], objective: str) -> None:
    (batch,) = split_mini_batches(masked, 1, 16384)
    assert (batch.sequences, batch.response_tokens) == (7, 26)
    lengths, ids = [3, 1, 2, 7, 4, 1, 8], [0, 0, 2, 2, 2, 3, 3]
    advantages = [1.0, -0.5, 0.25, 1.0, -1.25, 0.2, -0.7]
    config = resolve(objective)
    found, wanted = batch.counts(config), counts_of(config, lengths, advantages, ids)
    assert (found.sequences, found.tokens, found.length_power_sum) == (7, 26, wanted.length_power_sum)
    if wanted.groups is not None:
        assert found.groups is not None
        assert found.groups.sequences.tolist() == wanted.groups.sequences.tolist()
        assert found.groups.tokens.tolist() == wanted.groups.tokens.tolist()


def test_a_batch_of_cut_responses_alone_moves_nothing(
    make_updater: Callable[..., Any], make_groups: Callable[..., list[ScoredGroup]]
) -> None:
    groups = [group.without_truncated() for group in with_cuts(make_groups(LENGTHS, ADVANTAGES), [[1, 1, 1]] * 4)]
    for objective in ("luspo", "dapo", "balanced"):
        updater, model = make_updater("update.mini_batches=2", objective=objective)
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        metrics = updater.update(groups, 1e-2)
        assert (metrics["update/rows_trained"], metrics["update/rows_skipped"]) == (0, 0)
        assert all(weight.equal(before[name]) for name, weight in model.named_parameters())
        diagnosed, rows = diagnose(updater.rows, ALONE, groups, updater.config, with_tokens=True)
        assert rows == []
        assert diagnosed["expected_length_pressure/run"] == 0


def test_the_baseline_knows_of_what_is_masked(
    make_groups: Callable[..., list[ScoredGroup]], small_run: Callable[..., TrainRun]
) -> None:
    groups = with_cuts(make_groups(LENGTHS, ADVANTAGES), CUT)
    step = StepGroups(groups, groups, 1)
    assert settled(step, small_run()) == step
    found = settled(step, small_run("reward.truncated=mask"))
    assert found.sampled == groups
    assert [len(group.rollouts) for group in found.batch] == [2, 0, 3, 2]
    assert [group.advantages for group in found.batch] == [(1.0, -0.5), (), (0.25, 1.0, -1.25), (0.2, -0.7)]
    assert [group.masked for group in found.batch] == [(0.0,), (0.5, 0.25, 0.0), (), (0.5,)]


def test_penalise_pays_in_the_place_of_every_term() -> None:
    problem = Problem("p", (Message("user", "?"),), "5", "p")
    rollouts = [
        Rollout("p", (1,), (2,) * 90, r"\boxed{5} on", reason) for reason in (StopReason.LENGTH, StopReason.END)
    ]
    for paid in (0.0, -0.5):
        config = RewardConfig(truncated="penalise", truncated_reward=paid, overlong_buffer=20, workers=1)
        with Rubric(config, 100) as rubric:
            ((cut, ended),) = rubric.score_groups([problem], [rollouts])
        assert (cut.total, cut.accuracy, cut.overlong) == (paid, 1.0, -1.0)
        assert ended.total == 0.5  # accuracy, and (100 - 20 - 90) / 20 for its length


def test_a_run_that_masks(small_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    import pandas as pd

    config = small_run("reward.truncated=mask", "run.steps=2", "run.rollouts_every=1", "evaluation.every=0")
    train(config, tmp_path / "run")
    some = 0
    for record in records(tmp_path / "run"):
        table = pd.read_parquet(tmp_path / "run" / "rollouts" / f"step-{record['step']:06d}.parquet")
        cut = table.stop_reason == "length"
        assert (table.in_batch == ~cut).all()
        assert record["update/rows_masked"] == cut.sum() == 16 * record["response/truncated_fraction"]
        assert record["update/rows_trained"] + record["update/rows_skipped"] == (~cut).sum()
        assert table[cut].mini_batch.isna().all()
        assert table[~cut & (table.advantage != 0)].mini_batch.notna().all()
        some += int(cut.sum())
    assert some > 0
