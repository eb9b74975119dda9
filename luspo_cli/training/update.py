"""One batch of scored groups → a few optimizer steps.

Decisions, each with a test: a mini-batch's counts are known before its first micro-batch, so the sum of the micro-batch losses
is the mini-batch's loss however it was split; old log-probs come from the same weights through the same micro-batches as the
new ones, so that before the first step every ratio is exactly 1, and the first mini-batch needs none (a batch that waited brings
its own); rows without advantage take part in the counts and nowhere else; a step whose loss or gradient is not finite moves
nothing and is counted. Several processes compute a share of every mini-batch's rows each (policy/packing.py) under the same
counts; what decides about a step is put together first, so all of them move or none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from luspo_cli.config.run import TrainRun
from luspo_cli.errors import RunError
from luspo_cli.objectives import policy_loss
from luspo_cli.objectives.aggregation import batch_size
from luspo_cli.objectives.balance import CutPoints, balanced_shift, cut_points, shifted
from luspo_cli.objectives.diagnostics import combine_diagnostics
from luspo_cli.objectives.ratio import token_log_ratio
from luspo_cli.objectives.sampler_mismatch import SamplerMismatch, correction_weights, sampler_mismatch
from luspo_cli.policy.lora import BasePolicy
from luspo_cli.policy.packing import (
    MiniBatch,
    Piece,
    PolicyBatch,
    Row,
    known_old_logprobs,
    own_pieces,
    policy_batch,
    split_mini_batches,
)
from luspo_cli.policy.policy import Policy
from luspo_cli.policy.routing import load
from luspo_cli.processes.ranks import ALONE, Ranks
from luspo_cli.processes.sharding import whole_weight
from luspo_cli.records import ScoredGroup
from luspo_cli.training.expert_choices import ExpertChoices, Place, shares_of
from luspo_cli.training.gradient_shares import row_classes, squared_norms
from luspo_cli.training.row_updates import RowUpdates

_SUMMED_OVER_TRAINED_ROWS = (
    "objective/clip_low_fraction",
    "objective/clip_high_fraction",
    "objective/dual_clip_fraction",
    "ratio/mean",
)


class Updater:
    """Moves the policy's weights; holds what outlives one batch (the optimizer, the reference, the count of bad steps)."""

    def __init__(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        accelerator: Any,
        config: TrainRun,
        reference: Policy | BasePolicy | None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.policy, self.optimizer, self.accelerator = policy, optimizer, accelerator
        self.config, self.reference, self.ranks = config, reference, ranks
        self._bad_in_a_row = 0
        self.rows = RowUpdates(())
        """What became of each rollout of the last update."""
        self._mismatch = SamplerMismatch()
        self._choices: ExpertChoices | None = None
        """Of a model of experts: those of the last update."""
        self._optimizer_s = 0.0

    def update(
        self, groups: Sequence[ScoredGroup], learning_rate: float, exact_shares: bool = False
    ) -> dict[str, float]:
        """Run the batch's mini-batches; returns the step's objective, ratio, policy, update and time metrics.

        `exact_shares`: measure the gradient of each class of rows too, before each mini-batch's own (`rows.class_norms`).
        All processes of a run call this together, with the same groups, of whose images each needs those of its `passes`
        alone. RunError after `update.stop_after_bad_steps` steps in a row that were not finite, or where a correction lacks the
        sampler's log-probs.
        """
        settings = self.config.update
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate
        mini_batches = split_mini_batches(groups, settings.mini_batches, settings.tokens_per_micro_batch)
        self._mismatch, self._optimizer_s, self.rows = SamplerMismatch(), 0.0, RowUpdates(groups)
        inner = getattr(self.policy, "module", self.policy)  # inside DDP's wrapper
        self._choices = ExpertChoices(inner.model, settings) if inner.routers else None
        start = time.perf_counter()
        # Before any step moves the weights. Of the first mini-batch its own are the old ones, unless the batch waited.
        known = any(group.old_logprobs is not None for group in groups)
        old_logprobs = [self._old_logprobs(i, batch) if i or known else None for i, batch in enumerate(mini_batches)]
        between = time.perf_counter()
        objective, classes, steps = self.config.objective, self._classes(groups) if exact_shares else {}, []
        for number, (batch, old_of_batch) in enumerate(zip(mini_batches, old_logprobs, strict=True)):
            counts, loads = batch.counts(objective), self._loads(number, batch)
            shift = self._clip_shift(number, batch, old_of_batch)
            pieces, diagnostics = self._pieces(batch), []
            # Classes come first: what the last round leaves in the weights is the gradient of every row.
            for class_name, only in (*classes.items(), (None, None)):
                began = time.perf_counter()
                self._zero_gradients()
                for i, piece in enumerate(pieces):
                    tensors = policy_batch(piece.rows, self.accelerator.device)
                    # A filler's rows are measured by the process that trains on them.
                    recorded = not piece.filler and only is None
                    with self._reduced(last=i + 1 == len(pieces)):
                        logprobs, entropy, collision, routed = self._pass(
                            (number, i), piece, tensors, with_entropy=True, with_collision=True
                        )
                        if logprobs.requires_grad:
                            logprobs.retain_grad()
                        old = logprobs.detach() if old_of_batch is None else old_of_batch[i]
                        measured = self._mismatch if recorded else SamplerMismatch()
                        result = policy_loss(
                            objective,
                            logprobs,
                            old,
                            tensors.advantages,
                            tensors.response_mask,
                            max_response_length=self.config.rollout.max_response_tokens,
                            counts=counts,
                            ref_logprobs=self._reference_logprobs(tensors),
                            entropy=entropy if objective.entropy_coefficient > 0 else entropy.detach(),
                            rollout_weights=self._rollout_weights(tensors, old, measured),
                            row_counts=None if only is None else _marks(piece.rows, only, logprobs),
                            clip_shift=shift,
                            group_ids=tensors.group_ids,
                        )
                        if loads is not None and only is None:
                            assert self._choices is not None
                            result = self._choices.balanced(result, routed, loads, batch.response_tokens)
                        finite = math.isfinite(result.diagnostics["objective/loss"])
                        # The other processes wait for this one's backward pass, whatever its loss; the step is refused below.
                        if result.loss.requires_grad and (finite or self.ranks.size > 1):
                            # Gradients are averaged over processes, and the loss is a sum: times their number.
                            self.accelerator.backward(result.loss * (0.0 if piece.filler else self.ranks.size))
                    if recorded:
                        diagnostics.append(result.diagnostics)
                        norms = squared_norms(logprobs, collision)
                        changed = None
                        if self._choices:
                            ratios = result.rows.log_ratio
                            changed = self._choices.add((number, i), piece.rows, tensors, routed, ratios)
                        self.rows.add(number, piece.rows, tensors.advantages, result.rows, norms, logprobs, changed)
                if class_name is not None:
                    self._keep_class_norm(class_name, began)
            steps.append(self._finish_step(batch, diagnostics) | self._balanced_bounds(shift))
        metrics = _mean_over_steps(steps) | self._sampler_metrics()
        metrics |= self._choices.metrics(self.ranks) if self._choices else {}
        trained = sum(len(rows) for batch in mini_batches for rows in self._micro_batches(batch))
        return metrics | {
            "update/learning_rate": learning_rate,
            "update/rows_trained": trained,
            "update/rows_skipped": sum(len(group.rollouts) for group in groups) - trained,
            "time/logprobs": between - start,
            "time/update": time.perf_counter() - between,
            "time/optimizer": self._optimizer_s,
        }

    def _classes(self, groups: Sequence[ScoredGroup]) -> dict[str, set[int]]:
        """The rollouts (their ids) of each class whose part of the gradient is measured."""
        ids = [id(rollout) for group in groups for rollout in group.rollouts]
        return {
            name: {rollout for rollout, is_in in zip(ids, chosen, strict=True) if is_in}
            for name, chosen in row_classes(groups).items()
        }

    def _keep_class_norm(self, name: str, began: float) -> None:
        """Record the norm of the gradient that a class alone has left; nothing is clipped and no weight moves."""
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), math.inf)
        self.rows.class_norms.setdefault(name, []).append(float(whole_weight(norm)))
        self.rows.seconds += time.perf_counter() - began

    def _micro_batches(self, batch: MiniBatch) -> tuple[tuple[Row, ...], ...]:
        """What has to be computed: everything, if a term beside the policy's needs it or skipping is off."""
        return batch.with_advantage + (batch.without_advantage if needs_every_row(self.config) else ())

    def passes(self, groups: Sequence[ScoredGroup], rank: int) -> list[Piece]:
        """What process `rank` computes in an update with these groups, pass by pass."""
        settings = self.config.update
        batches = split_mini_batches(groups, settings.mini_batches, settings.tokens_per_micro_batch)
        return [piece for batch in batches for piece in self._pieces(batch, rank)]

    def _pieces(self, batch: MiniBatch, rank: int | None = None) -> list[Piece]:
        """What a process, by default this one, computes of it, in as many passes as every other process."""
        parts = [batch.with_advantage, *([batch.without_advantage] if needs_every_row(self.config) else [])]
        budget = self.config.update.tokens_per_micro_batch
        rank = self.ranks.rank if rank is None else rank
        return [piece for part in parts for piece in own_pieces(part, rank, self.ranks.size, budget)]

    def _reduced(self, last: bool) -> AbstractContextManager[Any]:
        """Whether the gradients of this pass are summed over the processes: with DDP only in the last pass of a mini-batch.

        FSDP has no such switch and sums in every pass; one process has nothing to sum.
        """
        no_sync = getattr(self.policy, "no_sync", None)
        return nullcontext() if last or no_sync is None else no_sync()

    def _pass(self, place: Place, piece: Piece, tensors: PolicyBatch, **asked: bool) -> tuple[Any, ...]:
        """What the policy makes of a piece, and last what its routers did; None in a dense model."""
        if self._choices is None:
            return *self.policy(tensors, **asked), None
        found: tuple[Any, ...] = self.policy(tensors, **asked, routing=self._choices.asked(place, piece.rows, tensors))
        return found

    @torch.no_grad()
    def _old_logprobs(self, number: int, batch: MiniBatch) -> list[Tensor]:
        found = []
        for i, piece in enumerate(self._pieces(batch)):
            if (known := known_old_logprobs(piece.rows, self.accelerator.device)) is not None:
                found.append(known)
                continue
            tensors = policy_batch(piece.rows, self.accelerator.device)
            logprobs, _, routed = self._pass((number, i), piece, tensors)
            found.append(logprobs)
            if self._choices:
                self._choices.add_old((number, i), piece.rows, tensors, routed, piece.filler)
        return found

    @torch.no_grad()
    def _loads(self, number: int, batch: MiniBatch) -> Tensor | None:
        """[L, E]: the experts' shares of the whole mini-batch's choices, in one more pass; None without a balancing loss."""
        if self._choices is None or not self.config.update.router_aux_coefficient:
            return None
        own = []
        for i, piece in enumerate(self._pieces(batch)):
            routed = self._pass((number, i), piece, policy_batch(piece.rows, self.accelerator.device))[-1]
            if not piece.filler:
                own.append(load(routed.chosen[:, routed.read], self._choices.experts))
        return shares_of([part for parts in self.ranks.gather(own) for part in parts])

    @torch.no_grad()
    def _clip_shift(self, number: int, batch: MiniBatch, old_of_batch: Sequence[Tensor] | None) -> float | None:
        """b of a balanced clip range from the whole mini-batch, before its first backward pass; None where the range is fixed.

        It takes one more pass, without gradients; the first mini-batch, whose ratios are all 1, needs none.
        """
        objective, own = self.config.objective, []
        if objective.clip_band != "balanced":
            return None
        counts = batch.counts(objective)
        pieces = zip(self._pieces(batch), old_of_batch, strict=True) if old_of_batch is not None else ()
        for i, (piece, old) in enumerate(pieces):
            tensors = policy_batch(piece.rows, self.accelerator.device)
            logprobs = self._pass((number, i), piece, tensors)[0]
            if not piece.filler:
                mask = tensors.response_mask
                size = batch_size(objective, mask, None, tensors.advantages, tensors.group_ids, 1, counts)
                log_ratio = token_log_ratio(logprobs, old, mask)
                points = cut_points(objective, log_ratio, mask, tensors.advantages, divisors=size.divisors)
                own.append(torch.stack([part.double() for part in points]).cpu())
        found = [part for parts in self.ranks.gather(own) for part in parts]
        if not found:
            return 0.0
        point, mass, below = torch.cat(found, dim=-1)
        return float(balanced_shift(CutPoints(point, mass, below > 0)))

    def _balanced_bounds(self, shift: float | None) -> dict[str, float]:
        """The clip distances that a balanced range took."""
        objective = self.config.objective
        if shift is None or objective.clip_low is None or objective.clip_high is None:
            return {}
        low, high = shifted(objective.clip_low, objective.clip_high, shift)
        return {"objective/balanced_clip_low": float(low), "objective/balanced_clip_high": float(high)}

    @torch.no_grad()
    def _reference_logprobs(self, batch: PolicyBatch) -> Tensor | None:
        """[B, R] under the weights that a KL term refers to; None where there is no such term."""
        if self.reference is None:
            return None
        with self.accelerator.autocast():
            logprobs, _ = self.reference(batch)
        return logprobs

    def _finish_step(self, batch: MiniBatch, diagnostics: Sequence[dict[str, float]]) -> dict[str, float]:
        """Put the diagnostics of all processes together, then move the weights or refuse to; the numbers of this step."""
        metrics = combine_diagnostics(self.ranks.gather(combine_diagnostics(diagnostics)))
        metrics = _per_trained_row(metrics, batch, self._micro_batches(batch), self.config.objective.by_sequence)
        began = time.perf_counter()
        moved = self._move(metrics.get("objective/loss", 0.0))
        self._optimizer_s += time.perf_counter() - began
        return metrics | moved

    def _zero_gradients(self) -> None:
        """Set every gradient to zeros, the missing ones of a new or resumed process too.

        The optimizer passes over a weight without a gradient, but counts a step and lets its moments decay where the gradient
        is zero: a mini-batch without signal must do the latter wherever in the run it comes.
        """
        self.optimizer.zero_grad(set_to_none=False)
        for weight in self.policy.parameters():
            if weight.requires_grad and weight.grad is None:
                weight.grad = torch.zeros_like(weight)

    def _sampler_metrics(self) -> dict[str, float]:
        """The sampler's distance from the policy, over the rows of all processes; left out where it is not finite."""
        mismatch = SamplerMismatch()
        for other in self.ranks.gather(self._mismatch):
            mismatch.add(other)
        found = mismatch.metrics()
        # All or none: the largest of 0 and NaN may be 0.
        return found if all(map(math.isfinite, found.values())) else {}

    @torch.no_grad()
    def _rollout_weights(self, batch: PolicyBatch, old: Tensor, measured: SamplerMismatch) -> Tensor | None:
        """Measure the sampler against the policy before the step's first update; weights [B, R] where they are asked for."""
        settings, mask, found = self.config.update, batch.response_mask, batch.rollout_logprobs
        known = mask if found is None else mask & ~found.isnan()
        if found is not None:
            measured.add(sampler_mismatch(old, found, known))
        if settings.sampler_correction == "none":
            return None
        if found is None or bool((mask & ~known).any()):
            raise RunError(
                "update.sampler_correction needs the sampler's log-probs and some rollouts came without them:"
                " set update.sampler_correction=none, or rollout.temperature=1"
            )
        weights, counts = correction_weights(
            old, found, mask, settings.sampler_correction, settings.sampler_correction_cap
        )
        measured.add(counts)
        return weights

    def _move(self, loss: float) -> dict[str, float]:
        """Clip and step, or refuse a step that is not finite."""
        limit = self.config.update.gradient_clip
        norm = float(whole_weight(self.accelerator.clip_grad_norm_(self.policy.parameters(), limit or math.inf)))
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimizer.step()
            self._bad_in_a_row = 0
            clipped = float(bool(limit) and norm > limit)
            return {"update/grad_norm": norm, "update/clipped_gradient": clipped, "update/skipped_steps": 0.0}
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= self.config.update.stop_after_bad_steps:
            what, objective = "gradient norm" if math.isfinite(loss) else "loss", self.config.objective
            own = f" the first suspect is your objective {objective.name}; otherwise" if objective.own_parts else ""
            raise RunError(
                f"the {what} was not finite in {self._bad_in_a_row} updates in a row, none of which moved a weight;{own}"
                " start a new run with a lower update.learning_rate, from weights that are whole (an earlier checkpoint's"
                " model folder can be model.path)"
            )
        return {"update/skipped_steps": 1.0}


def needs_every_row(config: TrainRun) -> bool:
    """Whether an update computes rows without advantage too: another term of the loss needs them, or none is skipped."""
    terms = config.objective.kl_coefficient, config.objective.entropy_coefficient, config.update.router_aux_coefficient
    return any(terms) or not config.update.skip_rows_without_advantage


def _marks(rows: Sequence[Row], only: AbstractSet[int], like: Tensor) -> Tensor:
    return torch.tensor([float(id(row.rollout) in only) for row in rows], device=like.device)


def _per_trained_row(
    metrics: dict[str, float], batch: MiniBatch, computed: Sequence[Sequence[Row]], by_sequence: bool
) -> dict[str, float]:
    """Turn shares of the whole mini-batch into means over the rows that were computed."""
    rows = [row for rows in computed for row in rows]
    tokens = sum(row.rollout.response_length for row in rows)
    sequences = sum(row.rollout.response_length > 0 for row in rows)
    if not tokens:
        return {"objective/loss": metrics.get("objective/loss", 0.0)}
    scaled = dict(metrics)
    unit_scale = batch.sequences / sequences if by_sequence else batch.response_tokens / tokens
    for key in _SUMMED_OVER_TRAINED_ROWS:
        if key in scaled:
            scaled[key] *= unit_scale
    for key in ("policy/kl_old", "policy/kl_ref", "policy/entropy"):
        if key in scaled:
            scaled[key] *= batch.response_tokens / tokens
    return scaled


def _mean_over_steps(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean over the optimizer steps that have a number; minima, maxima and the count of skipped steps as such."""
    combined: dict[str, float] = {}
    for key in {key for part in parts for key in part}:
        values = [part[key] for part in parts if key in part and math.isfinite(part[key])]
        if not values:
            continue
        if key == "ratio/min":
            combined[key] = min(values)
        elif key == "ratio/max":
            combined[key] = max(values)
        elif key == "update/skipped_steps":
            combined[key] = sum(values)
        else:
            combined[key] = sum(values) / len(values)
    return dict(sorted(combined.items()))
