"""Scored groups → mini-batches of whole groups → micro-batches by token budget → padded tensors; and which process takes which.

Micro-batches only spread one mini-batch over several passes. Rows are sorted by length, longest first (the largest pass comes
first, so that memory runs out at once or not at all), and rows without advantage get micro-batches of their own: leaving those
out changes nothing about the others, bit for bit.

With several processes the rows of a mini-batch are split alike by tokens, with the same number of passes on each. Every process
knows all rows, so each works out the whole plan and takes its part; nothing is negotiated. Rows of one prompt with images stay
together: one process alone needs those images. Sharded weights are gathered in every
forward and backward pass, by all processes at once, so one that has fewer micro-batches than another adds fillers: the shortest
row, with its loss times 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.objectives import Counts, counts_of
from luspo_cli.policy.images import BatchImages, batch_images
from luspo_cli.policy.joined_rows import JoinedRows, join_rows
from luspo_cli.records import Rollout, ScoredGroup

_WITHOUT_IMAGES = "problem '{}' has images and its image inputs were not handed in"


@dataclass(frozen=True, slots=True)
class Row:
    """One rollout with its advantage, as the update sees it."""

    rollout: Rollout
    advantage: float
    image_inputs: Mapping[str, Any] | None = None
    """`Prompt.image_inputs`, the same object in all rows of a group; None also where another process holds them."""
    images_of: str = ""
    """The problem whose images it needs; empty where it needs none."""
    group: int = 0
    """Which group of its mini-batch it is of, from 0."""
    old_logprobs: tuple[float, ...] | None = None
    """[R] as in `ScoredGroup.old_logprobs`."""

    @property
    def width(self) -> int:
        return len(self.rollout.prompt_tokens) + len(self.rollout.response_tokens)


@dataclass(frozen=True, slots=True)
class PolicyBatch:
    """Tensors of one micro-batch; rows padded on the right with token 0."""

    tokens: Tensor  # [B, W] prompt and response
    prompt_lengths: Tensor  # [B]
    response_mask: Tensor  # [B, R] bool, true on response tokens; column j is the response's token j
    advantages: Tensor  # [B]
    group_ids: Tensor  # [B]
    images: BatchImages | None = None
    """None where no row has an image."""
    rollout_logprobs: Tensor | None = None
    """[B, R] as the sampler saw them, NaN in rows for which it returned none; None where no row has any."""
    joined: JoinedRows | None = None
    """How these rows are computed end to end; None where a row has an image."""


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """The rows of one optimizer step, split into micro-batches, with the counts of the whole."""

    with_advantage: tuple[tuple[Row, ...], ...]
    without_advantage: tuple[tuple[Row, ...], ...]
    sequences: int
    """Rows with at least one response token."""
    response_tokens: int

    def counts(self, objective: ObjectiveConfig) -> Counts:
        """What the loss of a part is divided by: of all rows, whoever computes them, since every process knows them all."""
        rows = [row for rows in (*self.with_advantage, *self.without_advantage) for row in rows]
        lengths = [row.rollout.response_length for row in rows]
        return counts_of(objective, lengths, [row.advantage for row in rows], [row.group for row in rows])


def split_mini_batches(groups: Sequence[ScoredGroup], number: int, tokens_per_micro_batch: int) -> list[MiniBatch]:
    """Split groups, in their order, into `number` mini-batches of equally many groups."""
    if len(groups) % number:
        raise ValueError(f"{len(groups)} groups do not divide into {number} mini-batches of whole groups")
    size = len(groups) // number
    parts = [groups[i : i + size] for i in range(0, len(groups), size)]
    return [_mini_batch(part, tokens_per_micro_batch) for part in parts]


def rows_of(group: ScoredGroup, number: int = 0) -> list[Row]:
    """The rows of group `number` of a mini-batch, with the image inputs of its prompt where it has images and they are here."""
    own = group.prompt.image_inputs if group.prompt else None
    images_of = group.problem.id if group.problem.images else ""
    if images_of and group.prompt is None:
        raise ValueError(_WITHOUT_IMAGES.format(images_of))
    old = group.old_logprobs or [None] * len(group.rollouts)
    rows = zip(group.rollouts, group.advantages, old, strict=True)
    return [Row(rollout, advantage, own, images_of, number, known) for rollout, advantage, known in rows]


def _mini_batch(groups: Sequence[ScoredGroup], budget: int) -> MiniBatch:
    rows = [row for number, group in enumerate(groups) for row in rows_of(group, number)]
    return MiniBatch(
        with_advantage=split_micro_batches([row for row in rows if row.advantage != 0.0], budget),
        without_advantage=split_micro_batches([row for row in rows if row.advantage == 0.0], budget),
        sequences=sum(row.rollout.response_length > 0 for row in rows),
        response_tokens=sum(row.rollout.response_length for row in rows),
    )


def split_micro_batches(rows: Sequence[Row], budget: int) -> tuple[tuple[Row, ...], ...]:
    """Rows, longest first, in runs whose padded size (rows * longest) stays within `budget` tokens; one row always fits."""
    ordered = sorted(rows, key=lambda row: -row.width)
    batches: list[tuple[Row, ...]] = []
    start = 0
    while start < len(ordered):
        fit = max(1, budget // ordered[start].width)
        batches.append(tuple(ordered[start : start + fit]))
        start += fit
    return tuple(batches)


@dataclass(frozen=True, slots=True)
class Piece:
    """One forward and backward pass of one process."""

    rows: tuple[Row, ...]
    filler: bool = False
    """Whether it only keeps step with the other processes."""


def balance_rows(rows: Sequence[Row], processes: int) -> list[list[Row]]:
    """Rows, longest first, each to the process with the fewest tokens so far, of equal ones the first; [processes][rows].

    Rows that need the same images go to one process together, so that no other one has to hold and to compute those.
    """
    units: dict[Any, list[Row]] = {}
    for place, row in enumerate(rows):
        units.setdefault(row.images_of or place, []).append(row)
    rows_of_process: list[list[Row]] = [[] for _ in range(processes)]
    tokens = [0] * processes
    for size, unit in sorted(((_tokens(unit), unit) for unit in units.values()), key=lambda pair: -pair[0]):
        least = tokens.index(min(tokens))
        rows_of_process[least].extend(unit)
        tokens[least] += size
    return rows_of_process


def _tokens(rows: Sequence[Row]) -> int:
    return sum(row.width for row in rows)


def own_pieces(micro_batches: Sequence[Sequence[Row]], rank: int, processes: int, budget: int) -> list[Piece]:
    """The passes of process `rank` over the rows of these micro-batches; as many on every process.

    One process keeps the micro-batches as they are. `budget`: padded tokens of a micro-batch.
    """
    if processes == 1:
        return [Piece(tuple(rows)) for rows in micro_batches]
    rows = [row for rows in micro_batches for row in rows]
    if not rows:
        return []
    split = [split_micro_batches(own, budget) for own in balance_rows(rows, processes)]
    shortest = min(rows, key=lambda row: (bool(row.images_of), row.width))
    fillers = max(map(len, split)) - len(split[rank])
    return [*(Piece(own) for own in split[rank]), *[Piece((shortest,), filler=True)] * fillers]


def policy_batch(rows: Sequence[Row], device: torch.device | str = "cpu", padding: int = 0) -> PolicyBatch:
    """Pad rows into tensors; `padding` adds columns beyond the longest row (for tests and the noise floor)."""
    lacking = next((row.images_of for row in rows if row.images_of and row.image_inputs is None), None)
    if lacking is not None:
        raise ValueError(_WITHOUT_IMAGES.format(lacking))
    rollouts = [row.rollout for row in rows]
    prompt_lengths = [len(rollout.prompt_tokens) for rollout in rollouts]
    lengths = [rollout.response_length for rollout in rollouts]
    width, response_width = max(row.width for row in rows) + padding, max(lengths) + padding
    tokens = np.zeros((len(rows), width), dtype=np.int64)
    for i, rollout in enumerate(rollouts):
        tokens[i, : rows[i].width] = rollout.prompt_tokens + rollout.response_tokens
    mask = np.arange(response_width) < np.array(lengths)[:, None]
    images = batch_images([row.image_inputs for row in rows], width, device)
    prompts = [(rollout.prompt_tokens, length) for rollout, length in zip(rollouts, prompt_lengths, strict=True)]
    return PolicyBatch(
        tokens=torch.from_numpy(tokens).to(device),
        prompt_lengths=torch.tensor(prompt_lengths, device=device),
        response_mask=torch.from_numpy(mask).to(device),
        advantages=torch.tensor([row.advantage for row in rows], dtype=torch.float32, device=device),
        group_ids=torch.tensor([row.group for row in rows], device=device),
        images=images,
        rollout_logprobs=_rollout_logprobs(rollouts, response_width, device),
        joined=join_rows(prompts, lengths, padding, device) if images is None else None,
    )


def known_old_logprobs(rows: Sequence[Row], device: torch.device | str = "cpu") -> Tensor | None:
    """[B, R] old log-probs that came with the rows, 0 behind each one's end; None where the update has to compute them."""
    if any(row.old_logprobs is None for row in rows):
        return None
    width = max(row.rollout.response_length for row in rows)
    return _padded([row.old_logprobs or () for row in rows], width, 0.0, device)


def _rollout_logprobs(rollouts: Sequence[Rollout], width: int, device: torch.device | str) -> Tensor | None:
    if not any(rollout.rollout_logprobs for rollout in rollouts):
        return None
    return _padded([rollout.rollout_logprobs for rollout in rollouts], width, np.nan, device)


def _padded(rows: Sequence[Sequence[float]], width: int, filling: float, device: torch.device | str) -> Tensor:
    found = np.full((len(rows), width), filling, dtype=np.float32)
    for i, row in enumerate(rows):
        found[i, : len(row)] = row
    return torch.from_numpy(found).to(device)
