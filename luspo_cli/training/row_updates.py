"""What an update did with each rollout, collected pass by pass: one small tensor a micro-batch, brought from the device together.

Only numbers of a row and its token log-ratios are kept. Every process collects the rows that it computed; `gathered` puts them
together in the order of the batch, so that the number of processes changes nothing but the last bits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.objectives import Counts, counts_of, row_outcomes
from luspo_cli.objectives.row_values import RowValues
from luspo_cli.policy.packing import Row
from luspo_cli.processes.ranks import Ranks
from luspo_cli.records import RowUpdate, ScoredGroup

Array = NDArray[np.float64]
ELEMENTS = 2**20
"""Padded tokens whose outcomes under other objectives are computed at once."""
_Pass = tuple[int, list[int], Tensor, Tensor, Tensor]
"""Mini-batch, places of the rows in the batch, [B, 6 + T] numbers and token log-ratios, [B] advantages, [B, T] log-probs."""
_OF_ROW = len(RowValues._fields)
_OUTCOMES = 4


@dataclass(frozen=True, slots=True)
class GatheredRows:
    """The batch's rollouts in order, group after group; NaN where no process computed one."""

    numbers: Array
    """[1 + 5 + 1, N]: mini-batch; ratio, clip_low, clip_high, dual_clip, weight as in `RowValues`; squared gradient norm."""
    under: Mapping[str, Array]
    """Objective -> [4, N]: clip_low, clip_high, kept and weight had it met the same log-ratios."""
    tokens: Mapping[int, list[float]]
    """Place in the batch -> token log-ratios; empty where they were not asked for."""
    experts_changed: Mapping[int, list[int]]
    """Place in the batch -> of each token the layers whose experts changed; empty likewise, and in a dense model."""

    def updates(self) -> list[RowUpdate | None]:
        """One record for each rollout, None where it was not computed."""
        return [
            None if np.isnan(number) else RowUpdate(int(number), *numbers, *self._of_tokens(place))  # type: ignore[call-arg]
            for place, (number, *numbers, _) in enumerate(self.numbers.T.tolist())
        ]

    def _of_tokens(self, place: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
        return tuple(self.tokens.get(place, ())), tuple(self.experts_changed.get(place, ()))


class RowUpdates:
    """Collects over one update of `groups`."""

    def __init__(self, groups: Sequence[ScoredGroup]) -> None:
        self._rollouts = [rollout for group in groups for rollout in group.rollouts]
        self._groups = [number for number, group in enumerate(groups) for _ in group.rollouts]
        self._advantages = [advantage for group in groups for advantage in group.advantages]
        self._places = {id(rollout): place for place, rollout in enumerate(self._rollouts)}
        self._passes: list[_Pass] = []
        self._changed: list[tuple[list[int], Tensor]] = []
        self.class_norms: dict[str, list[float]] = {}
        """Exact gradient norm of each class of rows in each mini-batch, where it was measured."""
        self.seconds = 0.0
        """What the collecting took."""

    def add(
        self,
        mini_batch: int,
        rows: Sequence[Row],
        advantages: Tensor,
        values: RowValues,
        squared_norms: Tensor,
        logprobs: Tensor,
        experts_changed: Tensor | None = None,
    ) -> None:
        """Take in one pass: its `rows`, their advantages, values, squared gradient norms at the logits and log-probs [B, T].

        `experts_changed` [B, T]: of each token the layers whose experts changed, in a model of experts.
        """
        began = time.perf_counter()
        # A row without a token is no sequence.
        present = [i for i, row in enumerate(rows) if row.rollout.response_length]
        numbers = torch.stack([*values[:-1], squared_norms.to(values.log_ratio.dtype)], dim=-1)
        numbers = torch.cat([numbers, values.log_ratio], dim=-1)
        logprobs = logprobs.detach().to(numbers.dtype)
        if len(present) < len(rows):
            numbers, advantages, logprobs = numbers[present], advantages[present], logprobs[present]
        places = [self._places[id(rows[i].rollout)] for i in present]
        self._passes.append((mini_batch, places, numbers, advantages, logprobs))
        if experts_changed is not None:
            self._changed.append((places, experts_changed[present]))
        self.seconds += time.perf_counter() - began

    def gathered(
        self, ranks: Ranks, with_tokens: bool, others: Mapping[str, ObjectiveConfig] | None = None, limit: int = 1
    ) -> GatheredRows:
        """Put the rows of all processes together, which call this together.

        `with_tokens`: bring the token log-ratios along. `others`: objectives whose outcomes on the same log-ratios are wanted,
        with `limit` the longest response.
        """
        began = time.perf_counter()
        others = others or {}
        places = [place for _, places, *_ in self._passes for place in places]
        numbers = np.full((len(places), 1 + _OF_ROW), np.nan)
        tokens: dict[int, list[float]] = {}
        row = 0
        for mini_batch, of_pass, tensor, *_ in self._passes:
            found = (tensor if with_tokens else tensor[:, :_OF_ROW]).double().cpu().numpy()
            numbers[row : row + len(found), 0] = mini_batch
            numbers[row : row + len(found), 1:] = found[:, :_OF_ROW]
            row += len(found)
            if with_tokens:
                lengths = (self._rollouts[place].response_length for place in of_pass)
                tokens |= {
                    place: own[_OF_ROW : _OF_ROW + length].tolist()
                    for place, own, length in zip(of_pass, found, lengths, strict=True)
                }
        outcomes = self._outcomes(others, limit)
        changed = {
            place: row[: self._rollouts[place].response_length]
            for of_pass, tensor in self._changed
            for place, row in zip(of_pass, tensor.tolist() if with_tokens else (), strict=False)
        }
        self._passes, self._changed = [], []  # lets go of what is on the device
        whole = np.full((1 + _OF_ROW, len(self._rollouts)), np.nan)
        under = np.full((len(others), _OUTCOMES, len(self._rollouts)), np.nan)
        everywhere: dict[int, list[float]] = {}
        changed_everywhere: dict[int, list[int]] = {}
        mine = places, numbers, outcomes, tokens, changed
        for of_process, own_numbers, own_outcomes, own_tokens, own_changed in ranks.gather(mine):
            whole[:, of_process], under[..., of_process] = own_numbers.T, own_outcomes
            everywhere |= own_tokens
            changed_everywhere |= own_changed
        self.seconds += time.perf_counter() - began
        return GatheredRows(whole, dict(zip(others, under, strict=True)), everywhere, changed_everywhere)

    def _outcomes(self, others: Mapping[str, ObjectiveConfig], limit: int) -> Array:
        """[objectives, 4, rows] of this process; small passes are joined, since each operation has a price of its own."""
        if not others:
            return np.zeros((0, _OUTCOMES, sum(len(places) for _, places, *_ in self._passes)))
        lengths = [rollout.response_length for rollout in self._rollouts]
        # Objectives whose weights read the same numbers are counted once.
        by_kind: dict[tuple[float | None, bool], Counts] = {}
        counts = {}
        for name, other in others.items():
            kind = other.length_power_sum, other.needs_group_ids
            if kind not in by_kind:
                by_kind[kind] = counts_of(other, lengths, self._advantages, self._groups)
            counts[name] = by_kind[kind]
        parts: list[Any] = [np.zeros((len(others), _OUTCOMES, 0))]
        for passes in self._together():
            log_ratio = _joined([tensor[:, _OF_ROW:] for _, _, tensor, *_ in passes])
            logprobs, advantages = _joined([one[4] for one in passes]), torch.cat([one[3] for one in passes])
            places = [place for _, places, *_ in passes for place in places]
            own = torch.tensor([lengths[place] for place in places], device=log_ratio.device)
            ids = torch.tensor([self._groups[place] for place in places], device=log_ratio.device)
            mask = torch.arange(log_ratio.shape[1], device=log_ratio.device) < own[:, None]
            rows = row_outcomes(others, logprobs, log_ratio, advantages, mask, counts, limit, ids)
            found = [torch.stack([row.clip_low, row.clip_high, row.kept, row.weight]) for row in rows.values()]
            parts.append(torch.stack(found).double().cpu().numpy())
        return np.concatenate(parts, axis=-1)

    def _together(self) -> list[list[_Pass]]:
        runs: list[list[_Pass]] = []
        size = width = 0
        for one in self._passes:
            size, width = size + len(one[1]), max(width, one[2].shape[1])
            if not runs or size * width > ELEMENTS:
                runs.append([])
                size, width = len(one[1]), one[2].shape[1]
            runs[-1].append(one)
        return runs


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Rows [B, T] of all parts, as wide as the widest."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, width - part.shape[1])) for part in parts])
