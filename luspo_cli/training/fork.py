"""What a fork does beside training: it measures how far its policy has moved from its parent, on held-out draws of the parent.

The parent's responses to the held-out problems are drawn once, before the first update, and stored with their log-probs; forks of
one replicate are handed the same file. Each evaluation draws responses of the policy's own to the same problems with the same
seeds (length and accuracy), and computes the policy's log-probs of the parent's responses (entropy, KL, and length and accuracy
once more, by weighting): the same tokens for every fork, so that what two forks differ in there is their weights alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from luspo_cli.config.run import TrainRun
from luspo_cli.errors import UsageError
from luspo_cli.objectives.kl import kl_k3
from luspo_cli.policy.packing import Row, policy_batch, split_micro_batches
from luspo_cli.processes.ranks import ALONE, Ranks
from luspo_cli.records import Problem, Prompt, Rollout
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.rollout.given import GivenRollouts
from luspo_cli.rollout.sampler import PromptsOnRequest, Sampler
from luspo_cli.runs.draws import (
    FIRST_STEP,
    HELD_OUT,
    Groups,
    ParentDraws,
    read_parent_draws,
    read_rollouts,
    store_parent_draws,
)
from luspo_cli.runs.folder import RunFolder
from luspo_cli.runs.rollouts import HeldOutAnswer
from luspo_cli.training.held_out import HeldOut
from luspo_cli.training.problems import RunProblems
from luspo_cli.training.sampling import held_out_draws

HELD_OUT_PARTS = 4
"""Times `rollout.max_rows`: responses in one part of the held-out slice, so that few rows decode alone at its end."""
PROBLEMS_A_PART = 32
"""Held-out problems whose images are in memory together while log-probs are computed."""


class ForkHeldOut(HeldOut):
    """The held-out check of a fork, with what the parent's responses say beside the policy's own."""

    def __init__(
        self, *arguments: Any, policy: Any, tokens_per_micro_batch: int, folder: RunFolder, **options: Any
    ) -> None:
        """`policy` computes log-probs as in training; `folder` keeps the parent's draws."""
        super().__init__(*arguments, **options)
        self._policy, self._budget, self._folder = policy, tokens_per_micro_batch, folder
        self._file = folder.path / HELD_OUT
        self._draws: ParentDraws | None = None

    def evaluate(self, sampler: Sampler, ranks: Ranks = ALONE) -> tuple[dict[str, Any], list[HeldOutAnswer]]:
        """As `HeldOut.evaluate`, with what the parent's draws say; the first evaluation is of the parent itself."""
        of_parent = ranks.broadcast(ranks.is_first and not self._folder.evaluated_steps())
        if self._draws is None:
            self._draws = self._parent_draws(sampler, ranks, of_parent)
        drawn = GivenRollouts(self._draws.groups, self._file) if of_parent else sampler
        result, answers = super().evaluate(drawn, ranks)
        return result | self._on_parent_draws(self._draws), answers

    def _parent_draws(self, sampler: Sampler, ranks: Ranks, of_parent: bool) -> ParentDraws:
        """The parent's responses: those that are stored, or drawn now from the parent's weights."""
        stored: ParentDraws | None = None
        with ranks.phase():
            if ranks.is_first:
                stored = read_parent_draws(self._file, self.options.group_size)
                if stored is None and not of_parent:
                    raise UsageError(
                        f"{self._file} is missing, and the weights that it was drawn from are gone: start this fork again with"
                        " --if-exists replace"
                    )
        stored = ranks.broadcast(stored)
        if stored is not None:
            return stored
        groups = self._draw(sampler, ranks)
        logprobs = [row.tolist() for row, _ in self._logprobs(groups)]
        with ranks.phase():
            if ranks.is_first:
                rewards = self.rubric.score_groups(self.problems, [list(group) for group in groups])
                stored = ParentDraws(groups, [reward.accuracy for group in rewards for reward in group], logprobs)
                store_parent_draws(self._file, stored)
        found = ranks.broadcast(stored)
        assert found is not None  # the phase before would have ended every process
        return found

    def _draw(self, sampler: Sampler, ranks: Ranks) -> Groups:
        share = ranks.share(len(self.problems))
        own = PromptsOnRequest([self.problems[place] for place in share], self.to_prompt)
        with ranks.phase():
            groups = sampler.sample_groups(own, replace(self.options, first_row=share.start * self.options.group_size))
        return [tuple(group) for part in ranks.gather(groups) for group in part]

    def _on_parent_draws(self, draws: ParentDraws) -> dict[str, float]:
        """The policy as the parent's responses show it.

        Entropy and KL divergence from the parent are means over all tokens. Length and accuracy weigh each response by its
        probability under the policy over that under the parent, the weights divided by their sum: no draw of the policy's own
        adds noise, as long as the weights are alike (`evaluation/reweighted_sample_size`).
        """
        found = self._logprobs(draws.groups)
        moved = [
            own.double() - torch.tensor(before, dtype=torch.float64)
            for (own, _), before in zip(found, draws.logprobs, strict=True)
        ]
        tokens = max(1, sum(len(row) for row in moved))
        weights = torch.stack([row.sum() for row in moved]).softmax(0)
        lengths = torch.tensor([len(row) for row in moved], dtype=torch.float64)
        correct = torch.tensor(draws.correct, dtype=torch.float64)
        return {
            "evaluation/entropy": sum(float(row.double().sum()) for _, row in found) / tokens,
            "evaluation/kl_parent": sum(float(kl_k3(-row).sum()) for row in moved) / tokens,
            "evaluation/reweighted_length": float(weights @ lengths),
            "evaluation/reweighted_accuracy": float(weights @ correct),
            "evaluation/reweighted_sample_size": float(1 / (len(weights) * weights.square().sum())),
        }

    @torch.no_grad()
    def _logprobs(self, draws: Groups) -> list[tuple[Tensor, Tensor]]:
        """The policy's log-probs and entropies [R] of every response, in order; every process makes each pass."""
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for start in range(0, len(draws), PROBLEMS_A_PART):
            part = slice(start, start + PROBLEMS_A_PART)
            rows = [
                row
                for problem, group in zip(self.problems[part], draws[part], strict=True)
                for row in _rows(problem, group, self.to_prompt)
            ]
            for batch in split_micro_batches(rows, self._budget):
                tensors = policy_batch(batch, next(self._policy.parameters()).device)
                logprobs, entropy = self._policy(tensors, with_entropy=True)
                for row, own, spread in zip(batch, logprobs.cpu(), entropy.cpu(), strict=True):
                    length = row.rollout.response_length
                    found[id(row.rollout)] = own[:length], spread[:length]
        return [found[id(rollout)] for group in draws for rollout in group]


def make_held_out(
    config: TrainRun,
    problems: RunProblems,
    to_prompt: Callable[[Problem], Prompt],
    rubric: Rubric,
    policy: Any,
    folder: RunFolder,
) -> HeldOut | None:
    """The held-out check of a run, or of a fork; None where there is none."""
    if not config.evaluation.every:
        return None
    slice_of = (problems.held_out, to_prompt, held_out_draws(config), rubric, problems.blind)
    rows = HELD_OUT_PARTS * config.rollout.max_rows
    if not config.fork.checkpoint:
        return HeldOut(*slice_of, rows=rows)
    budget = config.update.tokens_per_micro_batch
    return ForkHeldOut(*slice_of, rows=rows, policy=policy, tokens_per_micro_batch=budget, folder=folder)


def handed_rollouts(config: TrainRun, folder: RunFolder, ranks: Ranks) -> Groups:
    """The rollouts of the first step that a fork was handed; none where it draws its own, as every other run."""
    found: Groups | None = None
    with ranks.phase():
        if ranks.is_first and config.fork.checkpoint:
            found = read_rollouts(folder.path / FIRST_STEP, config.rollout.group_size)
    return ranks.broadcast(found) or []


def _rows(problem: Problem, group: Sequence[Rollout], to_prompt: Callable[[Problem], Prompt]) -> list[Row]:
    images = to_prompt(problem).image_inputs if problem.images else None
    return [Row(rollout, 0.0, images, problem.id if problem.images else "") for rollout in group]
