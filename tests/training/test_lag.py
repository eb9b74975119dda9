"""`rollout.lag`: batches wait, are trained against the policy that sampled them, and survive a kill bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from doubles.runs import records, train, weight_bytes, without_times
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import RunError, UsageError
from luspo_cli.grading.verdict import DecidedBy, ReadFrom, Reason, Verdict
from luspo_cli.records import FunctionScore, Message, Problem, Prompt, Reward, Rollout, ScoredGroup, StopReason
from luspo_cli.runs.waiting import WaitingBatch, read_waiting, store_waiting
from luspo_cli.training.lag import LagQueue, with_old_logprobs

LENGTHS = [[3, 9, 1], [5, 5, 12], [2, 7, 4], [6, 1, 8]]
ADVANTAGES = [[1.0, -0.5, -0.5], [0.0, 0.0, 0.0], [0.0, 1.0, -1.0], [0.5, 0.2, -0.7]]
MakeGroups = Callable[..., list[ScoredGroup]]
WIDE = ("objective.clip_low=0.99", "objective.clip_high=99", "update.gradient_clip=0")
"""Nothing is cut."""


def test_a_batch_is_due_lag_steps_later() -> None:
    queue = LagQueue(2)
    due = [queue.exchange(step, [], []) for step in range(1, 6)]
    assert [one and one.step for one in due] == [None, None, 1, 2, 3]
    assert [one.step for one in queue.waiting] == [4, 5]
    again = LagQueue(2, queue.waiting)
    found = again.exchange(6, [], [])
    assert found is not None
    assert found.step == 4
    at_once = LagQueue(0)
    assert [at_once.exchange(step, [], []).step for step in (1, 2, 7)] == [1, 2, 7]  # type: ignore[union-attr]
    assert at_once.waiting == []
    with pytest.raises(RunError, match=r"should train the batch of step 5.*rollout\.lag = 1"):
        LagQueue(1, queue.waiting).exchange(6, [], [])


def logprobs_of(model: Any, rollout: Rollout) -> Any:
    import torch

    ids = torch.tensor([rollout.prompt_tokens + rollout.response_tokens])
    start = len(rollout.prompt_tokens)
    log_softmax = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    return log_softmax[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0]


def test_the_ratio_is_to_the_policy_that_sampled(make_updater: Callable[..., Any], make_groups: MakeGroups) -> None:
    """LUSPO: the loss is -(1/N) sum_i |y_i| A_i exp(mean_t(log p - log p_old)), with log p_old of weights two updates back."""
    import torch

    groups, others = make_groups(LENGTHS, ADVANTAGES), make_groups(LENGTHS, ADVANTAGES[::-1], seed=1)
    updater, model = make_updater(*WIDE, "update.tokens_per_micro_batch=40")
    with torch.no_grad():
        old = {id(one): logprobs_of(model, one) for group in groups for one in group.rollouts}
    waiting = with_old_logprobs(updater, groups)
    for _ in range(2):
        updater.update(others, 1e-3)
    metrics = updater.update(waiting, 0.0)
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    loss, ratios = torch.zeros((), dtype=torch.float64), []
    for group in groups:
        for one, advantage in zip(group.rollouts, group.advantages, strict=True):
            ratio = (logprobs_of(model, one) - old[id(one)]).mean().exp()
            loss = loss - one.response_length * advantage * ratio / 12
            ratios += [float(ratio.detach())] if advantage else []
    loss.backward()
    assert max(abs(ratio - 1) for ratio in ratios) > 1e-3
    assert metrics["ratio/max"] == pytest.approx(max(ratios), rel=1e-5)
    assert metrics["ratio/min"] == pytest.approx(min(ratios), rel=1e-5)
    for name, weight in model.named_parameters():
        assert torch.allclose(found[name], weight.grad, atol=2e-5 * float(weight.grad.norm()) + 1e-7), name
    # rows that the update leaves out are not computed before either
    assert [len(row) for row in waiting[1].old_logprobs or ()] == [0, 0, 0]


@pytest.mark.parametrize("mini_batches", [1, 2])
def test_waiting_alone_changes_no_bit(
    make_updater: Callable[..., Any], make_groups: MakeGroups, mini_batches: int
) -> None:
    """Where no weight moved meanwhile the update is that of a batch which did not wait."""
    results = []
    for waits in (False, True):
        updater, model = make_updater(
            f"update.mini_batches={mini_batches}", "update.tokens_per_micro_batch=40", dtype="float32"
        )
        groups = make_groups(LENGTHS, ADVANTAGES)
        metrics = updater.update(with_old_logprobs(updater, groups) if waits else groups, 1e-3)
        results.append((metrics, {name: weight.detach().clone() for name, weight in model.named_parameters()}))
    (plain, weights), (waited, same) = results
    assert all(weights[name].equal(same[name]) for name in weights)
    timeless = [{k: v for k, v in one.items() if not k.startswith("time/")} for one in (plain, waited)]
    assert timeless[0] == timeless[1]


def scored(name: str, cut: tuple[bool, ...]) -> ScoredGroup:
    problem = Problem(
        name, (Message("system", "be brief"), Message("user", "½?")), "1/2", "test", (), {"level": object()}
    )
    rollouts = tuple(
        Rollout(
            name, (5, 6), (7, 8, 9)[: place + 1], f"r{place}…", StopReason.LENGTH if one else StopReason.END,
            (-0.1, -1 / 3, -2e-17)[: place + 1], True,
        )
        for place, one in enumerate(cut)
    )  # fmt: skip
    verdict = Verdict("0.5", True, Reason.NUMERIC, ReadFrom.BOX, DecidedBy.COMPARISON)
    functions = {"own": FunctionScore(0.25, {"part": 1 / 7}, {"text": "a"}, "")}
    rewards = tuple(Reward(1 / (3 + i), 1.0, 0.0, -0.5, verdict, functions, {"gr3": 0.7}) for i in range(len(cut)))
    advantages = tuple(0.1 * i - 0.1 for i in range(len(cut)))
    return ScoredGroup(problem, rollouts, rewards, advantages, Prompt(name, (5, 6), None, True))


def test_what_waits_is_read_as_it_was_written(tmp_path: Path) -> None:
    sampled = [scored("a", (False, True, False)), scored("b", (True, True, True)), scored("c", (False, False, False))]
    batch = [
        replace(group, old_logprobs=tuple(tuple(-0.5 for _ in one.response_tokens) for one in group.rollouts))
        for group in (sampled[0].without_truncated(), sampled[1].without_truncated())
    ]
    batch[0] = replace(batch[0], old_logprobs=((-0.25,), ()))
    waiting = [WaitingBatch(4, sampled, batch), WaitingBatch(5, sampled[2:], sampled[2:])]
    store_waiting(tmp_path, waiting)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".safetensors"}
    first, second = read_waiting(tmp_path)
    assert (first.step, second.step) == (4, 5)

    def plain(group: ScoredGroup, **changes: Any) -> ScoredGroup:
        return replace(group, problem=replace(group.problem, extra={}), prompt=None, **changes)

    assert first.sampled == [plain(group) for group in sampled]
    assert first.batch == [plain(group) for group in batch]
    assert second.batch == [plain(sampled[2], old_logprobs=())]
    # what is stored of a step finds its rollouts by identity
    assert first.batch[0].rollouts[1] is first.sampled[0].rollouts[2]
    store_waiting(tmp_path / "none", [])
    assert read_waiting(tmp_path / "none") == []
    (tmp_path / "waiting.json").write_text("[{}]")
    with pytest.raises(RunError, match="cannot be read"):
        read_waiting(tmp_path)


FORK = ("fork.checkpoint=a", "fork.sha256=b", "fork.step=1", "fork.schedule_steps=60")


@pytest.mark.parametrize(
    ("preset", "sets", "message"),
    [
        ("tiny", ["rollout.lag=60"], r"rollout\.lag \(60\) must be smaller than run\.steps \(60\)"),
        ("tiny", ["rollout.lag=-1"], r"rollout\.lag"),
        ("tiny-moe", ["rollout.lag=1", "update.router_replay=old"], r"router_replay = 'old' needs the experts"),
        ("tiny-vl", ["rollout.lag=1"], r"images are not kept there"),
        # With fewer steps than batches wait too: no number of steps would help a fork.
        (
            "tiny",
            [*FORK, "run.steps=2", "rollout.lag=2"],
            r"^[^;]*a fork trains its parent's rollouts at once.*set rollout\.lag = 0",
        ),
    ],
)
def test_what_cannot_wait_is_refused(preset: str, sets: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve_train(preset=preset, objective="luspo", sets=sets)
    assert "\n" not in str(caught.value)


def test_a_killed_run_goes_on_bit_for_bit(small_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    import pandas as pd

    config = small_run("rollout.lag=2", "reward.truncated=mask")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    said = train(config, whole)
    assert "rollout.lag = 2: a batch trains 2 steps after it was sampled, steps 1 to 2 train nothing" in said

    found = records(whole)
    assert [record["update/lag"] for record in found] == [None, None, 2, 2, 2]
    assert [record["update/rows_trained"] > 0 for record in found] == [False, False, True, True, True]
    for record in found:
        assert ("objective/loss" in record) is (record["update/lag"] is not None)
        assert record["response_length/mean"] > 0
    # Of the batches of steps 1, 2 and 3 the first two are stored; what they met when they were trained stands there.
    assert sorted(os.listdir(whole / "rollouts")) == ["step-000001.parquet", "step-000002.parquet"]
    first, second = (pd.read_parquet(whole / f"rollouts/step-00000{step}.parquet") for step in (1, 2))
    for table, record in ((first, found[0]), (second, found[1])):
        assert table.response_length.mean() == pytest.approx(record["response_length/mean"])
        assert table.reward.mean() == pytest.approx(record["reward/total/mean"])
    # Step 3 trains what step 1 sampled under the very weights that it moves; step 4 is an update later.
    assert (first[first.mini_batch == 0].sequence_ratio == 1).all()
    assert (second[second.mini_batch == 0].sequence_ratio != 1).any()

    with pytest.raises(ZeroDivisionError):
        train(config, resumed, crash_after=3)
    assert (resumed / "checkpoints/step-000002/trainer/waiting.safetensors").is_file()
    with pytest.raises(ZeroDivisionError):
        train(config, resumed, "resume", crash_after=4)
    train(config, resumed, "resume")
    assert weight_bytes(whole, 5) == weight_bytes(resumed, 5)
    assert without_times(whole) == without_times(resumed)
    again = pd.read_parquet(resumed / "rollouts/step-000002.parquet")
    pd.testing.assert_frame_equal(second, again)


def test_a_lag_of_0_is_the_run_without_one(small_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    short = ("run.steps=2", "evaluation.every=0", "run.rollouts_every=0")
    train(small_run(*short), tmp_path / "run")
    assert all("update/lag" not in record for record in records(tmp_path / "run"))
    assert not list(tmp_path.rglob("waiting*"))
