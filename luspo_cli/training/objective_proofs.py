"""The proofs that a loss is the same however its batch was padded, split, shared out and ordered, run on any objective.

Decided here: rows go the way of training, through the engine's own micro-batches, shares of processes and padding, with log-probs
from a table in float64, so that the gradient of the whole table can be compared. Each proof is tried where the policy has not
moved, a little, and far, and says how far value and gradient are apart, as a share of the largest gradient. What does not decide
about the loss is a note: whether its gradient is the derivative of its value (not so where a gradient is stopped on purpose, as
in cispo), and whether `luspo lab` can run it, which gives equal tokens once with their number and many batches at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from luspo_cli.advantages import advantages_of
from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.errors import RunError
from luspo_cli.objectives import Counts, GroupCounts, PolicyLoss, counts_of, policy_loss
from luspo_cli.objectives.own import advantage_of
from luspo_cli.policy.packing import Row, own_pieces, policy_batch, split_micro_batches
from luspo_cli.records import Rollout, StopReason

TOLERANCE = 1e-6
"""A difference in float64 that is no rounding, nor that of a number that was made in float32."""
DERIVATIVE_TOLERANCE = 1e-4
RESPONSE_LIMIT = 16
CALLS = 5
"""With the same inputs, before it is asked what a loss reads; a loss may draw random numbers that seldom matter."""
LENGTHS = ((5, 1, 9, 3), (2, 8, 0, 4), (7, 7, 1, 2), (3, 6, 2, 5), (9, 1, 4, 8))
REWARDS = ((1.0, 0.0, 0.0, 1.0), (1.0, 1.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0), (0.5, 1.0, 0.0, 1.0))
"""Of five groups; one response is empty, and one group's rewards are all equal."""
WITHOUT_SIGNAL = 3
MOVES = ("on-policy", "near", "far")
RUNS, FINITE, GRADIENT, WITHOUT_ADVANTAGE = "it runs", "finite", "gradient", "rows without advantage"
"""Proofs without which an objective does not train."""
_FAULTS = (RunError, ValueError, TypeError, RuntimeError, IndexError)
"""What a loss raises that is wrong, in its function or where its result is taken on."""
LAB = ("equal tokens once", "many batches")
"""Notes without which it does not run in the lab."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What came out of one."""

    name: str
    what: str
    """What was changed, in words."""
    difference: float
    """Largest difference of value or gradient, as a share of the largest gradient; infinite where one is not finite."""
    where: str = ""
    """How far the policy had moved where it was largest."""
    note: bool = False
    """Whether it says something about the loss and decides nothing."""
    limit: float = TOLERANCE
    error: str = ""
    """Why it could not be tried."""

    @property
    def holds(self) -> bool:
        return not self.error and self.difference <= self.limit


@dataclass(frozen=True, slots=True)
class Proven:
    """An objective with its proofs."""

    name: str
    proofs: tuple[Proof, ...]
    reads: tuple[str, ...]
    """What it reads beside log-probs, advantages and lengths: sizes of the mini-batch, the response limit, the groups."""
    reads_unknown: str = ""
    """Why that cannot be found out, as a clause; empty where it can."""

    @property
    def invariant(self) -> bool:
        """Whether every proof that decides holds."""
        return all(proof.holds for proof in self.proofs if not proof.note)

    def failed(self) -> list[Proof]:
        """The proofs that decide and do not hold."""
        return [proof for proof in self.proofs if not proof.note and not proof.holds]


@dataclass(frozen=True)
class _Measured:
    value: float
    gradient: Tensor  # [N, T] of every row's log-probs

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value) and bool(self.gradient.isfinite().all())


class _Trial:
    """The rows of one mini-batch and log-probs for them."""

    def __init__(self, config: ObjectiveConfig, move: str, dtype: torch.dtype = torch.float64) -> None:
        self.config, self.move = config, move
        generator = torch.Generator().manual_seed(20)
        shape = (sum(map(len, LENGTHS)), max(map(max, LENGTHS)))

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float64)

        self.old = (-normal(*shape).abs() - 0.05).to(dtype)
        width = {"on-policy": 0.0, "near": 1.5 * (config.clip_high or 0.2), "far": 0.5, "extreme": 10.0}[move]
        # Rows move as a whole, and their tokens a little against each other: sequence and token ratios pass their bounds.
        moved = normal(shape[0], 1) + 0.3 * normal(*shape)
        if move == "extreme":
            moved = moved.sign()
        self.new = (self.old + width * moved.to(dtype)).requires_grad_()
        advantages = advantages_of(advantage_of(config), REWARDS)
        advantages[WITHOUT_SIGNAL] = [0.0] * len(advantages[WITHOUT_SIGNAL])
        self.rows = [
            Row(Rollout("", (1,), (1,) * length, "", StopReason.END), advantage, group=group)
            for group, (lengths, own) in enumerate(zip(LENGTHS, advantages, strict=True))
            for length, advantage in zip(lengths, own, strict=True)
        ]
        self.place = {id(row.rollout): place for place, row in enumerate(self.rows)}

    def counts(self) -> Counts:
        lengths = [row.rollout.response_length for row in self.rows]
        return counts_of(self.config, lengths, [row.advantage for row in self.rows], [row.group for row in self.rows])

    def loss(
        self,
        rows: Sequence[Row],
        counts: Counts | None = None,
        *,
        right: int = 0,
        left: int = 0,
        limit: int = RESPONSE_LIMIT,
        one_group: bool = False,
    ) -> Tensor:
        """Of a micro-batch with so many columns more on either side, which hold NaN."""
        batch = policy_batch(rows)
        mask, places = batch.response_mask, [self.place[id(row.rollout)] for row in rows]
        columns = [(values[places][:, : mask.shape[1]]).masked_fill(~mask, math.nan) for values in (self.new, self.old)]
        new, old = (pad(values, (left, right), value=math.nan) for values in columns)
        ids = torch.zeros_like(batch.group_ids) if one_group else batch.group_ids
        wide = pad(mask, (left, right))
        return self._policy_loss(
            new, old, batch.advantages, wide, max_response_length=limit, counts=counts, group_ids=ids
        ).loss

    def _policy_loss(self, *tensors: Tensor, **options: object) -> PolicyLoss:
        return policy_loss(self.config, *tensors, **options)  # type: ignore[arg-type]

    def measured(self, loss: Tensor) -> _Measured:
        if not loss.requires_grad:
            return _Measured(float(loss), torch.zeros_like(self.new))
        (gradient,) = torch.autograd.grad(loss, self.new, allow_unused=True)
        return _Measured(float(loss.detach()), torch.zeros_like(self.new) if gradient is None else gradient)

    @cached_property
    def whole(self) -> _Measured:
        """All rows at once."""
        return self.measured(self.loss(self.rows))

    @property
    def unit(self) -> float:
        """What differences are a share of; 1 where there is no gradient."""
        return float(self.whole.gradient.abs().max()) or 1.0

    def apart(self, other: _Measured, whole: _Measured | None = None) -> float:
        whole = whole or self.whole
        if not (whole.finite and other.finite):
            return math.inf
        value, tokens = abs(whole.value - other.value), whole.gradient.count_nonzero().clamp(min=1)
        gradient = float((whole.gradient - other.gradient).abs().max())
        # A value adds up over the tokens, as its rounding does.
        return max(value / float(tokens), gradient) / self.unit


@cache
def prove(config: ObjectiveConfig) -> Proven:
    """Run every proof on an objective; what its functions raise stands in the proof that met it."""
    name = config.name
    trials: list[_Trial] = []
    try:
        trials = [_Trial(config, move) for move in MOVES]
        for trial in trials:
            _ = trial.whole
    except _FAULTS as error:
        return does_not_run(name, " ".join(str(error).split()))
    proofs = [
        _worst("padding", "further columns on either side, with NaN in them", trials, _padded),
        _worst("micro-batches", "the mini-batch in parts, down to single rows", trials, _split),
        _worst(
            "processes", "rows shared out over 2 and 3 processes, whose gradients are averaged", trials, _shared_out
        ),
        _worst("order of rows", "rows, and rewards within a group, in another order", trials, _reordered),
        _worst("empty rows", "a row without a token is left out", trials, _without_empty),
        _worst(WITHOUT_ADVANTAGE, "left out of the pass, as in training", trials, _without_advantage),
        _worst(FINITE, "value and gradient, in float32 too, and of empty rows alone", trials, _finite),
        _worst("finite far out", "the same where token log-ratios are ±10", trials[:1], _finite_far_out),
        Proof(GRADIENT, "some token has one", 0.0 if any(_moves(trial) for trial in trials) else math.inf),
    ]
    notes = [
        _worst("direction", "a likelier response with a positive advantage lowers the loss", trials[:1], _lowers),
        replace(
            _worst("derivative", "of the value, beside the gradient", trials, _against_value),
            limit=DERIVATIVE_TOLERANCE,
        ),
        _worst(LAB[0], "for luspo lab: equal tokens given once with their number", trials, _counted_tokens),
        _worst(LAB[1], "for luspo lab: a leading axis of batches", trials, _at_once),
    ]
    proofs += [replace(note, note=True) for note in notes]
    unknown = _reads_unknown(trials[1])
    return Proven(name, tuple(proofs), () if unknown else tuple(_reads(trials[1])), unknown)


def does_not_run(name: str, error: str) -> Proven:
    """An objective of which nothing else can be said."""
    return Proven(name, (Proof(RUNS, "the loss of a small mini-batch", math.inf, error=error),), ())


def _worst(name: str, what: str, trials: Sequence[_Trial], differences: Callable[[_Trial], Iterator[float]]) -> Proof:
    largest, where = 0.0, ""
    for trial in trials:
        try:
            found = max(differences(trial))
        except _FAULTS as error:
            return Proof(name, what, math.inf, trial.move, error=" ".join(str(error).split()))
        if found > largest:
            largest, where = found, trial.move
    return Proof(name, what, largest, where)


def _padded(trial: _Trial) -> Iterator[float]:
    for left, right in ((0, 5), (5, 0), (2, 3)):
        yield trial.apart(trial.measured(trial.loss(trial.rows, left=left, right=right)))


def _split(trial: _Trial) -> Iterator[float]:
    for budget in (1, 12, 24, 60):
        parts = split_micro_batches(trial.rows, budget)
        yield trial.apart(trial.measured(_sum(trial.loss(rows, trial.counts()) for rows in parts)))


def _shared_out(trial: _Trial) -> Iterator[float]:
    for processes in (2, 3):
        losses = [
            trial.loss(piece.rows, trial.counts()) * (0.0 if piece.filler else processes)
            for rank in range(processes)
            for piece in own_pieces(split_micro_batches(trial.rows, 24), rank, processes, 24)
        ]
        yield trial.apart(trial.measured(_sum(losses) / processes))


def _reordered(trial: _Trial) -> Iterator[float]:
    yield trial.apart(trial.measured(trial.loss(trial.rows[::-1])))
    advantage = advantage_of(trial.config)
    for rewards in REWARDS:
        straight, turned = advantages_of(advantage, [rewards])[0], advantages_of(advantage, [rewards[::-1]])[0]
        yield max(abs(one - other) for one, other in zip(straight, turned[::-1], strict=True))


def _without_empty(trial: _Trial) -> Iterator[float]:
    yield trial.apart(trial.measured(trial.loss([row for row in trial.rows if row.rollout.response_length])))


def _without_advantage(trial: _Trial) -> Iterator[float]:
    kept = [row for row in trial.rows if row.advantage]
    yield trial.apart(trial.measured(trial.loss(kept, trial.counts()) if kept else torch.zeros(())))


def _finite(trial: _Trial) -> Iterator[float]:
    empty = [row for row in trial.rows if not row.rollout.response_length]
    found = (trial.whole, _Trial(trial.config, trial.move, torch.float32).whole)
    yield 0.0 if all(one.finite for one in found) else math.inf
    yield 0.0 if trial.measured(trial.loss(empty, trial.counts())).finite else math.inf


def _finite_far_out(trial: _Trial) -> Iterator[float]:
    yield 0.0 if _Trial(trial.config, "extreme", torch.float32).whole.finite else math.inf


def _moves(trial: _Trial) -> bool:
    return bool(trial.whole.gradient.count_nonzero())


def _lowers(trial: _Trial) -> Iterator[float]:
    better = torch.tensor([row.advantage > 0 for row in trial.rows])
    yield 0.0 if float(trial.whole.gradient[better].sum()) <= 0 else math.inf


def _against_value(trial: _Trial) -> Iterator[float]:
    """Central differences along a few directions against the gradient's part along them."""
    generator, step = torch.Generator().manual_seed(21), 1e-8
    start = trial.new.detach()
    for _ in range(3):
        direction = torch.randn(start.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            trial.new = (start + sign * step * direction).requires_grad_()
            values.append(float(trial.loss(trial.rows).detach()))
        trial.new = start.clone().requires_grad_()
        along = float((trial.whole.gradient * direction).sum())
        yield abs((values[0] - values[1]) / (2 * step) - along) / trial.unit


def _counted_tokens(trial: _Trial) -> Iterator[float]:
    batch = policy_batch(trial.rows)
    mask = batch.response_mask
    twice = mask.repeat_interleave(2, dim=1)
    found = []
    for new, old, own_mask, counted in (
        (trial.new, trial.old, mask, {"token_counts": 2 * mask.double()}),
        (trial.new.repeat_interleave(2, dim=1), trial.old.repeat_interleave(2, dim=1), twice, {}),
    ):
        options = {"max_response_length": RESPONSE_LIMIT, "group_ids": batch.group_ids, **counted}
        found.append(trial.measured(trial._policy_loss(new, old, batch.advantages, own_mask, **options).loss))
    yield trial.apart(*found)


def _at_once(trial: _Trial) -> Iterator[float]:
    batch = policy_batch(trial.rows)
    both = [torch.stack([one, one]) for one in (trial.new, trial.old, batch.advantages, batch.response_mask)]
    ids = torch.stack([batch.group_ids, batch.group_ids])
    losses = trial._policy_loss(*both, max_response_length=RESPONSE_LIMIT, group_ids=ids).loss
    if losses.shape != (2,):
        raise ValueError(f"the loss of two batches has shape {list(losses.shape)}")
    yield trial.apart(trial.measured(losses.mean()))


def _reads_unknown(trial: _Trial) -> str:
    first, *others = (trial.measured(trial.loss(trial.rows, trial.counts())) for _ in range(CALLS))
    if not first.finite:
        return "value or gradient is not finite"
    # What differs by itself differs under every change, and would seem to read all that is changed.
    differ = any(trial.apart(other, first) > TOLERANCE for other in others)
    return "two calls with the same inputs differ" if differ else ""


def _reads(trial: _Trial) -> Iterator[str]:
    counts = trial.counts()
    whole = trial.measured(trial.loss(trial.rows, counts))
    changed = {
        "N, sequences of the mini-batch": {"counts": replace(counts, sequences=2 * counts.sequences)},
        "M, tokens of the mini-batch": {"counts": replace(counts, tokens=2 * counts.tokens)},
        "L, the response limit": {"counts": counts, "limit": 2 * RESPONSE_LIMIT},
    }
    if counts.length_power_sum is not None:
        more = replace(counts, length_power_sum=2 * counts.length_power_sum)
        changed["the sum of powers of the lengths"] = {"counts": more}
    if counts.groups is not None:
        more = replace(counts, groups=GroupCounts(counts.groups.sequences, 2 * counts.groups.tokens))
        changed["the sizes of the groups"] = {"counts": more}
    changed["which rows answer one prompt"] = {"counts": counts, "one_group": True}
    for what, options in changed.items():
        if trial.apart(trial.measured(trial.loss(trial.rows, **options)), whole) > TOLERANCE:  # type: ignore[arg-type]
            yield what


def _sum(losses: Iterator[Tensor] | Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).sum()
