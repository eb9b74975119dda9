"""Which problems a step trains on, as a pure function of the step: all that a resumed run needs.

Step s takes the positions s*B to (s+1)*B of an endless sequence of epochs, each a permutation of its own; a batch that
an epoch cannot fill goes on into the next one, so no problem is dropped and every batch is full.

Dynamic sampling draws further problems from the step's reserve: all problems but those of its batch, in an order of the step's
own. The batches stay what they are without it, so two runs that differ only there see the same problems first.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from luspo_cli.errors import UsageError
from luspo_cli.records import Problem


class BatchSource(Protocol):
    """Anything that can say which problems a step trains on."""

    def batch(self, step: int) -> list[Problem]:
        """Return the problems of one step, the same ones whenever it is asked; steps count from 0."""

    def reserve(self, step: int, first: int, count: int) -> list[Problem]:
        """Return problems `first` to `first` + `count` of the step's reserve: fewer, or none, where it ends."""


class ProblemBatches:
    """Fixed problems in batches: every epoch visits each problem once, in a seeded order or in file order."""

    def __init__(self, problems: Sequence[Problem], batch_size: int, seed: int, shuffle: bool = True) -> None:
        """Raise UsageError where a batch would need some problem twice."""
        if batch_size < 1:
            raise ValueError(f"a batch holds at least one problem, got {batch_size}")
        if batch_size > len(problems):
            raise UsageError(
                f"A batch of {batch_size} problems cannot be filled from {len(problems)}: "
                "lower rollout.problems, or give more data."
            )
        self._problems = tuple(problems)
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._reserve = lru_cache(maxsize=1)(self._reserve_order)
        self._order = lru_cache(maxsize=2)(self._permutation)

    def batch(self, step: int) -> list[Problem]:
        """Return the `batch_size` problems of `step`, counted from 0."""
        if step < 0:
            raise ValueError(f"steps count from 0, got {step}")
        first = step * self._batch_size
        return [self._problems[self._at(position)] for position in range(first, first + self._batch_size)]

    def reserve(self, step: int, first: int, count: int) -> list[Problem]:
        """Return a slice of the step's reserve, in a seeded order also where the batches keep file order."""
        if step < 0 or first < 0 or count < 0:
            raise ValueError(f"steps and positions count from 0, got step {step}, first {first}, count {count}")
        return [self._problems[index] for index in self._reserve(step)[first : first + count]]

    def _at(self, position: int) -> int:
        epoch, index = divmod(position, len(self._problems))
        return self._order(epoch)[index] if self._shuffle else index

    def _reserve_order(self, step: int) -> list[int]:
        own = {self._at(step * self._batch_size + i) for i in range(self._batch_size)}
        order = [index for index in range(len(self._problems)) if index not in own]
        random.Random(f"luspo reserve {self._seed} {step}").shuffle(order)
        return order

    def _permutation(self, epoch: int) -> tuple[int, ...]:
        order = self._shuffled(epoch)
        self._part_from_last_epoch(order, epoch)
        return tuple(order)

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self._problems)))
        random.Random(f"luspo batches {self._seed} {epoch}").shuffle(order)
        return order

    def _part_from_last_epoch(self, order: list[int], epoch: int) -> None:
        """Keep a problem that ends one epoch out of the same batch's share of the next, where there is room for it.

        Only the middle of `order` is exchanged: its end stays as shuffled, known to the next epoch without this one.
        """
        size, count = self._batch_size, len(order)
        ended = epoch * count % size  # problems of the last epoch in the batch that crosses the border
        if epoch == 0 or ended == 0:
            return
        before = set(self._shuffled(epoch - 1)[-ended:])
        own_end = (epoch + 1) * count % size
        middle = [at for at in range(size - ended, count - own_end) if order[at] not in before]
        for at in range(min(size - ended, count)):
            if order[at] in before and middle:
                other = middle.pop()
                order[at], order[other] = order[other], order[at]
