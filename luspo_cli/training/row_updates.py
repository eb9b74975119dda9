"""What an update did with each rollout, collected pass by pass: one small tensor a micro-batch, brought from the device together.

Only numbers of a row and its token log-ratios are kept. Every process collects the rows that it computed; `gathered` puts them
together in the order of the batch, so that the number of processes changes nothing but the last bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luspo_cli.objectives.row_values import RowValues
from luspo_cli.policy.packing import Row
from luspo_cli.processes.ranks import Ranks
from luspo_cli.records import RowUpdate, ScoredGroup


class RowUpdates:
    """Collects over one update of `groups`."""

    def __init__(self, groups: Sequence[ScoredGroup]) -> None:
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        self._number = len(rollouts)
        self._places = {id(rollout): place for place, rollout in enumerate(rollouts)}
        self._passes: list[tuple[int, list[int], list[int], Tensor]] = []

    def add(self, mini_batch: int, rows: Sequence[Row], values: RowValues) -> None:
        """Take in one pass, whose `rows` the `values` are of."""
        numbers = torch.stack(values[:-1], dim=-1)
        places, lengths = [self._places[id(row.rollout)] for row in rows], [row.rollout.response_length for row in rows]
        self._passes.append((mini_batch, places, lengths, torch.cat([numbers, values.log_ratio], dim=-1)))

    def gathered(self, ranks: Ranks, with_tokens: bool) -> list[RowUpdate | None]:
        """One record for each rollout of the batch, group after group; None where no process computed it.

        All processes call this together. `with_tokens`: bring the token log-ratios along.
        """
        of_rows = len(RowValues._fields) - 1
        own: dict[int, RowUpdate] = {}
        for mini_batch, places, lengths, tensor in self._passes:
            found = (tensor if with_tokens else tensor[:, :of_rows]).tolist()
            for place, length, numbers in zip(places, lengths, found, strict=True):
                if length:  # a row without a token is no sequence
                    tokens = tuple(numbers[of_rows : of_rows + length]) if with_tokens else ()
                    ratio, low, high, dual, weight = numbers[:of_rows]
                    own[place] = RowUpdate(mini_batch, ratio, low, high, dual, weight, tokens)
        everywhere = {place: row for part in ranks.gather(own) for place, row in part.items()}
        return [everywhere.get(place) for place in range(self._number)]
