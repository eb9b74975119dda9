"""Shares of the gradient: at the logits against autograd through the logits, in the weights against the equation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from doubles.runs import records, train, weight_bytes, without_times
from luspo_cli.config.objective import NAMED_OBJECTIVES
from luspo_cli.config.run import TrainRun
from luspo_cli.objectives import policy_loss
from luspo_cli.policy.logprobs import token_logprobs
from luspo_cli.processes.ranks import ALONE
from luspo_cli.records import ScoredGroup
from luspo_cli.training.gradient_shares import estimated_norms, row_classes, shares, squared_norms
from luspo_cli.training.length_diagnostics import diagnose

LENGTHS = [[3, 9, 1], [5, 5, 12], [2, 7, 4], [6, 1, 8]]
ADVANTAGES = [[1.0, -0.5, -0.5], [0.0, 0.0, 0.0], [0.0, 1.0, -1.0], [0.5, 0.2, -0.7]]


@pytest.fixture
def groups(make_groups: Callable[..., list[ScoredGroup]]) -> list[ScoredGroup]:
    """Right is what has an advantage above 0."""
    return [
        replace(
            group,
            rewards=tuple(
                replace(reward, verdict=replace(reward.verdict, correct=advantage > 0))
                for reward, advantage in zip(group.rewards, group.advantages, strict=True)
            ),
        )
        for group in make_groups(LENGTHS, ADVANTAGES)
    ]


def test_the_chance_that_two_draws_are_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(size, 4, generator=generator) for size in (7, 11))
    targets = torch.arange(7)
    for temperature in (1.0, 0.7):
        logprobs, entropy, collision = token_logprobs(hidden, head, targets, temperature, True, True)
        chances = (hidden.double() @ head.double().T / temperature).softmax(-1)
        torch.testing.assert_close(collision.double(), chances.square().sum(-1), rtol=1e-5, atol=1e-7)
        assert not collision.requires_grad
        plain = token_logprobs(hidden, head, targets, temperature, True)
        assert torch.equal(plain[0], logprobs)
        assert torch.equal(plain[1], entropy)
        assert len(plain) == 2


@pytest.mark.parametrize("name", list(NAMED_OBJECTIVES))
def test_a_rows_norm_at_the_logits_is_autograds(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 6, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(9, (4, 6, 1), generator=generator)
    mask = torch.arange(6) < torch.tensor([6, 2, 4, 1])[:, None]
    logprobs = logits.log_softmax(-1).gather(-1, tokens)[..., 0]
    old = (logprobs + 2e-3 * torch.randn(4, 6, generator=generator)).detach()
    logprobs.retain_grad()
    advantages = torch.tensor([1.0, -0.5, 0.3, -2.0])
    ids = torch.tensor([0, 0, 1, 1])
    policy_loss(name, logprobs, old, advantages, mask, max_response_length=6, group_ids=ids).loss.backward()
    found = squared_norms(logprobs, logits.detach().softmax(-1).square().sum(-1))
    assert logits.grad is not None
    torch.testing.assert_close(found, logits.grad.square().sum((-2, -1)), rtol=1e-10, atol=1e-18)
    assert found.max() > 0


def test_shares_by_hand() -> None:
    """Two mini-batches: norms 3 and 4 of right rows are 5 together against 5 wrong; in the second all is right."""
    classes = {
        "right": np.array([True, True, False, True, False]),
        "wrong": np.array([False, False, True, False, True]),
    }
    classes |= {"short": classes["wrong"], "long": classes["right"]}
    norms = estimated_norms(classes, np.array([0, 0, 0, 1, np.nan]), np.array([9.0, 16.0, 25.0, 4.0, 0.0]))
    assert norms == {"right": [5, 2], "wrong": [5, 0], "short": [5, 0], "long": [5, 2]}
    assert shares(norms, "s") == {"s/right": 0.75, "s/wrong": 0.25, "s/short": 0.25, "s/long": 0.75}
    assert shares({name: [0.0] for name in norms}, "s") == {}


def test_classes(groups: list[ScoredGroup]) -> None:
    """Lengths in order: 1 1 2 3 4 5 5 6 7 8 9 12, so the median is 5."""
    classes = row_classes(groups)
    assert classes["short"].reshape(4, 3).tolist() == [[n <= 5 for n in of_group] for of_group in LENGTHS]
    assert classes["right"].reshape(4, 3).tolist() == [[a > 0 for a in of_group] for of_group in ADVANTAGES]


def test_exact_norms_are_those_of_the_equation(make_updater: Callable[..., Any], groups: list[ScoredGroup]) -> None:
    """LUSPO before its first step: of each class the gradient of -(1/N) sum_i A_i sum_t log p over its rows."""
    updater, model = make_updater("update.gradient_clip=0", "update.tokens_per_micro_batch=40")
    updater.update(groups, 0.0, exact_shares=True)
    for name, chosen in row_classes(groups).items():
        model.zero_grad()
        loss = torch.zeros((), dtype=torch.float64)
        pairs = [pair for g in groups for pair in zip(g.rollouts, g.advantages, strict=True)]
        for (rollout, advantage), is_in in zip(pairs, chosen, strict=True):
            if is_in:
                ids = torch.tensor([rollout.prompt_tokens + rollout.response_tokens])
                log_softmax = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
                start = len(rollout.prompt_tokens)
                loss = loss - advantage * log_softmax[start - 1 : -1].gather(1, ids[0, start:, None]).sum() / 12
        loss.backward()
        norm = sum(float(weight.grad.square().sum()) for weight in model.parameters() if weight.grad is not None) ** 0.5
        assert norm > 1e-3
        assert updater.rows.class_norms[name] == pytest.approx([norm], rel=1e-5), name


def test_measuring_changes_no_bit_of_the_update(make_updater: Callable[..., Any], groups: list[ScoredGroup]) -> None:
    found = []
    for exact in (False, True):
        updater, model = make_updater("update.mini_batches=2", "update.tokens_per_micro_batch=40", dtype="float32")
        metrics = [updater.update(groups, 1e-3, exact) for _ in range(3)][-1]
        state = [
            value for of_weight in updater.optimizer.state_dict()["state"].values() for value in of_weight.values()
        ]
        rows = diagnose(updater.rows, ALONE, groups, updater.config, with_tokens=True)
        found.append((metrics, [*model.state_dict().values(), *state], rows))
    (plain, before, rows), (measured, after, more_rows) = found
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert {k: v for k, v in plain.items() if "time/" not in k} == {
        k: v for k, v in measured.items() if "time/" not in k
    }
    assert rows[1] == more_rows[1]
    extra = more_rows[0].keys() - rows[0].keys()
    assert extra == {f"exact_gradient_share/{name}" for name in ("right", "wrong", "short", "long")}
    for name in ("right", "short"):
        # One is an estimate of the other: same side of the even split, no more is promised.
        assert 0 < more_rows[0][f"gradient_share/{name}"] < 1
        assert 0 < more_rows[0][f"exact_gradient_share/{name}"] < 1


def test_a_resumed_run_measures_the_same_and_ends_alike(small_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    measuring = small_run("update.exact_gradient_shares_every=2", "run.steps=4")
    train(measuring, tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        train(measuring, tmp_path / "part", crash_after=3)
    train(measuring, tmp_path / "part", "resume")
    train(small_run("run.steps=4"), tmp_path / "without")
    assert without_times(tmp_path / "whole") == without_times(tmp_path / "part")
    assert (
        weight_bytes(tmp_path / "whole", 4)
        == weight_bytes(tmp_path / "part", 4)
        == weight_bytes(tmp_path / "without", 4)
    )
    measured = [any(key.startswith("exact_") for key in record) for record in records(tmp_path / "whole")]
    assert measured == [True, False, True, False]
