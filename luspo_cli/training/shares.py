"""The rows of a mini-batch, split over processes: alike by tokens, and with the same number of passes on each.

Every process knows all rows, so each works out the whole plan and takes its part; nothing is negotiated. Sharded weights are
gathered in every forward and backward pass, by all processes at once, so one that has fewer micro-batches than another adds
fillers: the shortest row, with its loss times 0. Rows without advantage are split by themselves: leaving them out changes no
other micro-batch, as on one process (luspo_cli/policy/packing.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luspo_cli.policy.packing import Row, split_micro_batches


@dataclass(frozen=True, slots=True)
class Piece:
    """One forward and backward pass of one process."""

    rows: tuple[Row, ...]
    filler: bool = False
    """Whether it only keeps step with the other processes."""


def balanced_shares(rows: Sequence[Row], processes: int) -> list[list[Row]]:
    """Rows, longest first, each to the process with the fewest tokens so far, of equal ones the first; [processes][rows]."""
    shares: list[list[Row]] = [[] for _ in range(processes)]
    tokens = [0] * processes
    for row in sorted(rows, key=lambda row: -row.width):
        least = tokens.index(min(tokens))
        shares[least].append(row)
        tokens[least] += row.width
    return shares


def own_pieces(micro_batches: Sequence[Sequence[Row]], rank: int, processes: int, budget: int) -> list[Piece]:
    """The passes of process `rank` over the rows of these micro-batches; as many on every process.

    One process keeps the micro-batches as they are. `budget`: padded tokens of a micro-batch.
    """
    if processes == 1:
        return [Piece(tuple(rows)) for rows in micro_batches]
    rows = [row for rows in micro_batches for row in rows]
    if not rows:
        return []
    split = [split_micro_batches(share, budget) for share in balanced_shares(rows, processes)]
    shortest = min(rows, key=lambda row: row.width)
    fillers = max(map(len, split)) - len(split[rank])
    return [*(Piece(own) for own in split[rank]), *[Piece((shortest,), filler=True)] * fillers]
