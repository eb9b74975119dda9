"""One recipe in the lab: every step of every seed, driven by the loss that trains models.

A step is that of training: responses from the current policy, advantages within groups, then mini-batches of whole groups through
`policy_loss`, gradient limit and optimizer. All seeds are one tensor and know nothing of each other. Each seed draws from a
generator of its own, so its numbers do not depend on how many run beside it, and two recipes share their first responses: their
difference is paired.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from luspo_cli.advantages import BATCH_STD, STD_EPSILON, advantages_of
from luspo_cli.analysis.axis import windows_of
from luspo_cli.config.lab import LabRun
from luspo_cli.experiments.lab.responses import DTYPE, Logits, ResponseModel, Responses
from luspo_cli.metrics.by_length import TrainedRows, kept_length_pressure, length_grid, length_profile
from luspo_cli.objectives import policy_loss
from luspo_cli.objectives.own import advantage_of
from luspo_cli.objectives.ratio import masked_mean
from luspo_cli.objectives.row_values import RowValues
from luspo_cli.training.objective_check import refuse_in_lab

CLIP_LOW, CLIP_HIGH, KL_OLD = "objective/clip_low_fraction", "objective/clip_high_fraction", "policy/kl_old"


@dataclass(frozen=True, slots=True)
class LabHistory:
    """What happened in each step of each of S seeds, [S, steps]."""

    config: LabRun
    length: Tensor
    """Expected tokens of a response under the policy at the beginning of a step: exact, no sampling noise."""
    accuracy: Tensor
    """Share of the step's responses that are right."""
    truncated: Tensor
    clip_low: Tensor
    """Share of units (sequences or tokens) whose gradient the lower bound removed, mean over mini-batches; so `clip_high`."""
    clip_high: Tensor
    kept_advantage: Tensor
    """Mean over responses of the advantage times its share that no bound removed."""
    kl_old: Tensor
    """Estimated KL divergence a token from the policy before the step's first update, mean over mini-batches."""
    squared_log_ratio: Tensor
    """Mean square of the sequences' log-ratio (the mean over their tokens), mean over mini-batches."""
    squared_wrong: Tensor
    """The same of a wrong answer's first token."""
    expected_pressure: Tensor
    """`kept_length_pressure` of the batch, as in training."""
    clip_pressure: Tensor
    """The part of it that the clip makes."""
    bin_rollouts: Tensor
    """Responses in each bin of `length_grid` up to the limit, [S, bins, steps]."""
    bin_kept: Tensor
    """Sum of their kept advantages, [S, bins, steps]."""
    gradient_norm: Tensor
    """Before the limit, mean over mini-batches."""
    update_norm: Tensor
    """Length of an optimizer step over all logits, mean over mini-batches."""

    @property
    def seeds(self) -> int:
        return self.length.shape[0]

    def final(self, values: Tensor) -> Tensor:
        """Mean of `values` [S, steps] over the last tenth of the steps, as `luspo compare` has it, [S]."""
        first, last = windows_of(range(1, self.config.run.steps + 1)).final
        return values[:, first - 1 : last].mean(-1)

    def kept_by_length(self) -> tuple[list[int], Tensor, Tensor]:
        """Starts of the bins, share of all responses in each [bins], mean kept advantage [S, bins]; NaN where there was none."""
        rollouts = self.bin_rollouts.sum(-1)
        starts = length_grid(self.config.rollout.max_response_tokens).tolist()
        return starts, rollouts.sum(0) / rollouts.sum(), self.bin_kept.sum(-1) / rollouts


def run_experiment(config: LabRun, seeds: int) -> LabHistory:
    """Run `config` with `seeds` seeds from `config.run.seed` on; UsageError for an objective of one's own that the lab cannot."""
    refuse_in_lab(config.objective)
    with one_thread():
        return _run(config, seeds)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within this block torch uses one thread: the tensors are small, and threads would wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(config: LabRun, seeds: int) -> LabHistory:
    generators = [torch.Generator().manual_seed(config.run.seed + seed) for seed in range(seeds)]
    model = ResponseModel(config)
    learner = Learner(model, model.start(generators))
    table = advantage_table(config)
    lengths, steps = [], []
    for _ in range(config.run.steps):
        lengths.append(model.mean_length(learner.logits))
        responses = draw(model, learner.logits, generators)
        advantages = group_advantages(responses.right, table)
        if config.objective.advantage == BATCH_STD:
            advantages = advantages / (responses.right.to(DTYPE).std(dim=1, keepdim=True) + STD_EPSILON)
        updated = learner.update(responses, advantages, generators)
        steps.append(measured(responses) | updated | learner.by_length(responses, advantages))
    columns = {key: torch.stack([step[key] for step in steps], -1) for key in steps[0]}
    return LabHistory(config, torch.stack(lengths, -1), **columns)


def draw(model: ResponseModel, logits: Logits, generators: list[torch.Generator]) -> Responses:
    """One batch for every seed, group after group; each group's prompt is of a type drawn at random."""
    rollout, types = model.config.rollout, model.config.model.prompt_types
    rows = rollout.problems * rollout.group_size
    size = rows * model.uniforms_a_row
    drawn = torch.stack([torch.rand(size + rollout.problems, generator=own, dtype=DTYPE) for own in generators])
    of_types = (drawn[:, size:] * types).long().repeat_interleave(rollout.group_size, dim=1)
    return model.sample(logits, of_types, drawn[:, :size].reshape(len(generators), rows, model.uniforms_a_row))


def advantage_table(config: LabRun) -> Tensor:
    """Advantage by number of right responses in the group (0 to G) and by whether the response is right: [G + 1, 2].

    Rewards are 0 or 1, so the training's own function of one group's rewards gives every case there can be.
    """
    size, kind = config.rollout.group_size, advantage_of(config.objective)
    # What a batch's std divides by is the batch's own, and comes after.
    kind = "group_mean" if kind == BATCH_STD else kind
    table = torch.zeros(size + 1, 2, dtype=DTYPE)
    for right in range(size + 1):
        values = advantages_of(kind, [[1.0] * right + [0.0] * (size - right)])[0]
        table[right, 0] = values[-1] if right < size else 0.0
        table[right, 1] = values[0] if right else 0.0
    return table


def group_advantages(right: Tensor, table: Tensor) -> Tensor:
    """Advantages [S, B] of rows that lie group after group."""
    seeds, rows = right.shape
    groups = right.reshape(seeds, -1, len(table) - 1).long()
    return table[groups.sum(-1, keepdim=True), groups].reshape(seeds, rows)


def measured(responses: Responses) -> dict[str, Tensor]:
    """Numbers [S] of one batch before its update."""
    return {
        "accuracy": responses.right.to(DTYPE).mean(-1),
        "truncated": 1 - responses.mask[..., -1].to(DTYPE).mean(-1),
    }


class Learner:
    """The logits of all seeds and what moves them."""

    def __init__(self, model: ResponseModel, start: Logits) -> None:
        self.model, self.config = model, model.config
        self.reference = start.detached() if self.config.objective.kl_coefficient > 0 else None
        self.logits = start.detached()
        self.updates = 0
        self.rows: list[RowValues] = []
        """What became of the rows of the last update, a mini-batch each."""
        self.bin_starts = length_grid(model.limit)
        self.parameters = [tensor.requires_grad_(True) for tensor in self.logits.tensors() if tensor.numel()]
        update = self.config.update
        rates = [
            update.learning_rate * (update.answer_rate if own is self.logits.answer else 1) for own in self.parameters
        ]
        groups = [{"params": [own], "lr": rate} for own, rate in zip(self.parameters, rates, strict=True)]
        if update.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(groups)
        else:
            self.optimizer = torch.optim.AdamW(groups, betas=update.betas, weight_decay=0.0)

    def update(self, responses: Responses, advantages: Tensor, generators: list[torch.Generator]) -> dict[str, Tensor]:
        """One optimizer step a mini-batch of whole groups; numbers [S], means over mini-batches."""
        with torch.no_grad():
            old = self.model.log_probs(self.logits, responses)
            reference = None if self.reference is None else self.model.log_probs(self.reference, responses)
        noise = self._noise(advantages.shape[1], generators)
        size = advantages.shape[1] // self.config.update.mini_batches
        self.rows = []
        parts: list[dict[str, Tensor]] = []
        for start in range(0, advantages.shape[1], size):
            rows = slice(start, start + size)
            own = responses.rows(start, start + size)
            of_reference = None if reference is None else reference[:, rows]
            # Independent moves of the step's earlier updates add up.
            earlier = [self.updates - place for place in range(len(parts))]
            reach = math.sqrt(sum(move_of_noise(update, self.config.update.betas[0]) ** 2 for update in earlier))
            of_noise = None if noise is None else reach * noise[:, rows]
            parts.append(self._step(own, advantages[:, rows], old[:, rows], of_reference, of_noise))
        return {key: torch.stack([part[key] for part in parts]).mean(0) for key in parts[0]}

    def by_length(self, responses: Responses, advantages: Tensor) -> dict[str, Tensor]:
        """What the last update kept of its batch's advantages, [S] or [S, bins], by the functions that training calls."""
        of_rows = [torch.cat(parts, dim=1).numpy() for parts in zip(*(rows[1:-1] for rows in self.rows), strict=True)]
        low, high, dual, weights = of_rows
        lengths = (responses.token_counts * responses.mask).sum(-1).numpy()
        rows = TrainedRows(lengths, advantages.numpy(), low, high, 1 - low - high - dual, weights)
        pressure = kept_length_pressure(rows)
        profile = length_profile(rows, self.bin_starts)
        found = {
            "expected_pressure": pressure,
            "clip_pressure": pressure - kept_length_pressure(replace(rows, kept=np.ones_like(low))),
            "bin_rollouts": profile.rollouts,
            "bin_kept": np.nan_to_num(profile.kept) * profile.rollouts,
        }
        return {name: torch.from_numpy(values) for name, values in found.items()}

    def _noise(self, rows: int, generators: list[torch.Generator]) -> Tensor | None:
        """What the first update does to the wrong answers of each row's prompt, [S, B, M, V - 1]; None without noise."""
        model, problems = self.config.model, self.config.rollout.problems
        if not model.answer_noise:
            return None
        size = (problems, model.answer_tokens, model.answers - 1)
        drawn = torch.stack([torch.randn(size, generator=own, dtype=DTYPE) for own in generators])
        return model.answer_noise * drawn.repeat_interleave(rows // problems, dim=1)

    def _step(
        self, own: Responses, advantages: Tensor, old: Tensor, reference: Tensor | None, noise: Tensor | None
    ) -> dict[str, Tensor]:
        counts = own.token_counts
        logprobs = self.model.log_probs(self.logits, own, noise)
        result = policy_loss(
            self.config.objective,
            logprobs,
            old,
            advantages,
            own.mask,
            max_response_length=self.config.rollout.max_response_tokens,
            ref_logprobs=reference,
            token_counts=counts,
            group_ids=self._group_ids(advantages),
        )
        self.rows.append(result.rows)
        self.optimizer.zero_grad()
        # Seeds share no parameter: the gradient of the sum is each seed's own.
        result.loss.sum().backward()
        norm = self._limit_gradients()
        before = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer.step()
        self.updates += 1
        moved = [now.detach() - then for now, then in zip(self.parameters, before, strict=True)]
        amounts = counts * own.mask
        kept = (~result.clipped * amounts).sum(-1) / amounts.sum(-1)
        # What stands at masked columns has no meaning, and may be infinite.
        log_ratio = torch.where(own.mask, logprobs.detach() - old, 0)
        return {
            "clip_low": result.by_batch[CLIP_LOW],
            "clip_high": result.by_batch[CLIP_HIGH],
            "kept_advantage": (advantages * kept).mean(-1),
            "kl_old": result.by_batch[KL_OLD],
            "squared_log_ratio": masked_mean(log_ratio, amounts)[..., 0].square().mean(-1),
            "squared_wrong": self._squared_wrong(own, log_ratio),
            "gradient_norm": norm,
            "update_norm": _norms(moved),
        }

    def _group_ids(self, advantages: Tensor) -> Tensor:
        """[S, B]: rows lie group after group."""
        groups = torch.arange(advantages.shape[1]) // self.config.rollout.group_size
        return groups.expand(advantages.shape)

    def _squared_wrong(self, own: Responses, log_ratio: Tensor) -> Tensor:
        """Mean square of the log-ratio of the first answer token over the responses that end with another answer, [S]."""
        wrong = own.mask[..., -1] & ~own.right
        return (log_ratio[..., self.config.model.bins].square() * wrong).sum(-1) / wrong.sum(-1).clamp(min=1)

    def _limit_gradients(self) -> Tensor:
        """Scale each seed's gradient down to the limit; its norm before, [S]."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm, limit = _norms(gradients), self.config.update.gradient_clip
        if limit:
            # As torch.nn.utils.clip_grad_norm_ does for one model.
            scale = (limit / (norm + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(scale.reshape(-1, *[1] * (gradient.dim() - 1)))
        return norm


def move_of_noise(update: int, decay: float) -> float:
    """How far AdamW's step number `update`, from 1, moves a weight whose gradients are noise: rms in learning rates.

    The bias-corrected mean of so many independent gradients under `decay`, beside their root mean square.
    """
    return math.sqrt((1 - decay) / (1 + decay) * (1 - decay ** (2 * update))) / (1 - decay**update)


def _norms(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm over all tensors of each seed, [S]."""
    return torch.stack([tensor.flatten(1).square().sum(-1) for tensor in tensors]).sum(0).sqrt()
