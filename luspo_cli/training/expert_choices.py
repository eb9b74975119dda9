"""The experts of one update of a model of experts: what its passes chose, what is given to them again, what changed meanwhile.

A response token belongs to the experts of the token before it, whose hidden state its log-prob is read from. All shares and
spreads are over response tokens of the rows that are trained, so neither micro-batches nor processes change them. Between old
log-probs and update nothing can change in the first mini-batch, which has no update before it: what is said of changes leaves
it out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from luspo_cli.config.update import UpdateConfig
from luspo_cli.errors import RunError
from luspo_cli.objectives.objective import PolicyLoss
from luspo_cli.policy.packing import PolicyBatch, Row
from luspo_cli.policy.routing import Routed, RoutingAsked, changed_experts, load, routers, sampled_experts
from luspo_cli.processes.ranks import Ranks

Place = tuple[int, int]
"""A pass of this process: its mini-batch and its number there."""


@dataclass(slots=True)
class Counted:
    """Sums of one process; those of all processes are added up."""

    load: Tensor
    """[L, E] choices of the update's passes."""
    compared: int = 0
    """Response tokens of the mini-batches after the first."""
    changed: int = 0
    """Of these, with other experts than for the old log-probs in one layer at least."""
    choices_changed: int = 0
    """Experts of these tokens that are other ones, in all layers."""
    sampled: int = 0
    """Response tokens whose experts the sampler gave."""
    sampled_changed: int = 0
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Σ of squared token log-ratios, of tokens whose experts stayed and of those whose did not."""
    rows: list[tuple[float, float]] = field(default_factory=list)
    """Of each response: share of its tokens whose experts changed, and its mean token log-ratio."""

    def add(self, other: Counted) -> None:
        """Take in another process's."""
        self.load = self.load + other.load
        for name in ("compared", "changed", "choices_changed", "sampled", "sampled_changed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.squares = [one + more for one, more in zip(self.squares, other.squares, strict=True)]
        self.rows = self.rows + other.rows


class ExpertChoices:
    """Collects over one update of a policy around `model`."""

    def __init__(self, model: Any, settings: UpdateConfig) -> None:
        found = routers(model)
        self.experts, self.per_token = int(found[0].num_experts), int(found[0].top_k)
        self._layers, self._settings = len(found), settings
        self._old: dict[Place, Routed] = {}
        self._counted = Counted(torch.zeros(self._layers, self.experts, dtype=torch.float64))

    def asked(self, place: Place, rows: Sequence[Row], batch: PolicyBatch) -> RoutingAsked:
        """What the routers of a pass are told; RunError where a replay lacks what was sampled."""
        return RoutingAsked(self._given(place, rows, batch), self._settings.router_aux_coefficient > 0)

    def _given(self, place: Place, rows: Sequence[Row], batch: PolicyBatch) -> Tensor | None:
        if self._settings.router_replay == "old":
            return self._old[place].chosen if place in self._old else None
        if self._settings.router_replay == "none":
            return None
        sampled = self._sampled(rows, batch)
        if sampled is None:
            raise RunError(
                "update.router_replay = 'rollout' needs the experts that the sampler met and some rollouts came without them:"
                " set update.router_replay = 'old', which needs none"
            )
        return sampled

    def _sampled(self, rows: Sequence[Row], batch: PolicyBatch) -> Tensor | None:
        rollouts = [row.rollout for row in rows]
        if batch.joined is None or not any(rollout.experts for rollout in rollouts):
            return None
        shape = (self._layers, self.per_token)
        return sampled_experts(rollouts, batch.joined, batch.tokens.shape[1], shape, batch.tokens.device)

    def add_old(self, place: Place, rows: Sequence[Row], batch: PolicyBatch, routed: Routed, filler: bool) -> None:
        """Take in a pass for old log-probs; a `filler` is another process's to count."""
        self._old[place] = routed
        if not filler:
            self._compare_sampled(rows, batch, routed)

    def add(self, place: Place, rows: Sequence[Row], batch: PolicyBatch, routed: Routed, log_ratio: Tensor) -> Tensor:
        """Take in a pass of the update with its token log-ratios [B, T]; [B, T] layers whose experts changed, 0 where masked."""
        read, mask = routed.chosen[:, routed.read], batch.response_mask
        self._counted.load = self._counted.load + load(read, self.experts).cpu()
        changed = torch.zeros(mask.shape, dtype=torch.int16, device=mask.device)
        old = self._old.get(place)
        if old is None:
            self._compare_sampled(rows, batch, routed)
            return changed
        layers, choices = changed_experts(old.chosen[:, old.read], read)
        changed = changed.masked_scatter(mask, layers.to(torch.int16))
        self._counted.choices_changed += int(choices.sum())
        moved, ratios = changed > 0, log_ratio.double()
        self._counted.compared += int(mask.sum())
        self._counted.changed += int(moved.sum())
        for place_of, tokens in enumerate((mask & ~moved, moved)):
            self._counted.squares[place_of] += float(ratios[tokens].square().sum())
        lengths = mask.sum(-1)
        present = lengths > 0
        shares, means = ((values * mask).sum(-1)[present] / lengths[present] for values in (moved.double(), ratios))
        self._counted.rows += list(zip(shares.tolist(), means.tolist(), strict=True))
        return changed

    def balanced(self, result: PolicyLoss, routed: Routed, loads: Tensor, tokens: int) -> PolicyLoss:
        """The loss of a pass with its part of the balancing loss; `loads` and `tokens` as in `balancing_loss`."""
        coefficient, part = self._settings.router_aux_coefficient, balancing_loss(routed, loads, tokens)
        value = float(part.detach())
        told = result.diagnostics | {"router/aux_loss": value}
        told["objective/loss"] += coefficient * value
        return replace(result, loss=result.loss + coefficient * part, diagnostics=told)

    def _compare_sampled(self, rows: Sequence[Row], batch: PolicyBatch, routed: Routed) -> None:
        """Before any update: the policy's choices against the sampler's."""
        sampled = self._sampled(rows, batch)
        if sampled is not None:
            layers, _ = changed_experts(sampled[:, routed.read].long(), routed.chosen[:, routed.read].long())
            self._counted.sampled += len(layers)
            self._counted.sampled_changed += int((layers > 0).sum())

    def metrics(self, ranks: Ranks) -> dict[str, float]:
        """The step's numbers of all processes, which call this together; those over nothing are left out."""
        first, *others = ranks.gather(self._counted)
        for other in others:
            first.add(other)
        found = load_balance(first.load)
        if first.sampled:
            found["router/sampler_changed_fraction"] = first.sampled_changed / first.sampled
        if not first.compared:
            return found
        found["router/changed_fraction"] = first.changed / first.compared
        of_token = self._layers * self.per_token
        found["router/changed_choice_fraction"] = first.choices_changed / first.compared / of_token
        for name, squares, number in zip(
            ("unchanged", "changed"), first.squares, (first.compared - first.changed, first.changed), strict=True
        ):
            if number:
                found[f"router/token_log_ratio/{name}"] = math.sqrt(squares / number)
        return {key: value for key, value in (found | _of_rows(first.rows)).items() if math.isfinite(value)}


def load_balance(counts: Tensor) -> dict[str, float]:
    """How evenly the experts of a layer are chosen, mean over layers."""
    total = counts.sum(-1, keepdim=True)
    if not bool((total > 0).all()):
        return {}
    shares = counts / total
    entropy = torch.special.entr(shares).sum(-1) / math.log(max(2, counts.shape[1]))
    return {
        "router/load_max_over_mean": float((shares.amax(-1) * counts.shape[1]).mean()),
        "router/load_entropy": float(entropy.mean()),
    }


def _of_rows(rows: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Spread of the sequence log-ratios of responses above the median share of changed tokens, and of the others."""
    middle = median(share for share, _ in rows)
    parts = {
        "few": [ratio for share, ratio in rows if share <= middle],
        "many": [ratio for share, ratio in rows if share > middle],
    }
    return {
        f"router/sequence_log_ratio/{name}": math.sqrt(sum(ratio**2 for ratio in ratios) / len(ratios))
        for name, ratios in parts.items()
        if ratios
    }


def balancing_loss(routed: Routed, loads: Tensor, tokens: int) -> Tensor:
    """This pass's part of the load-balancing loss (arXiv 2101.03961, equations 4 to 6), mean over layers; 1 where all is even.

    `loads` [L, E]: share of choices that each expert has in the whole mini-batch; `tokens`: its response tokens, all of which a
    pass of some process holds. The parts of all passes add up to E Σ_e f_e P_e.
    """
    assert routed.probabilities is not None
    means = routed.probabilities / max(tokens, 1)
    return loads.shape[1] * (loads.to(means) * means).sum(-1).mean()


def shares_of(counts: Sequence[Tensor]) -> Tensor:
    """[L, E]: each expert's share of the choices of several passes, as `load` counts them."""
    total = torch.stack([own.double().cpu() for own in counts]).sum(0)
    return total / total.sum(-1, keepdim=True).clamp(min=1)
