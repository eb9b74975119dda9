"""The cache against a plain list of tokens a row: whatever joins, leaves or moves, every row reads back its own columns."""

from __future__ import annotations

import random

import pytest
import torch

from luspo_cli.rollout.in_process.cache import BLOCK, KeyValueCache, PromptCache

LAYERS, HEADS, WIDTH = 2, 2, 3


def states(marks: list[list[int]]) -> torch.Tensor:
    """Keys [N, K, P, D] whose every number is the token's mark; rows padded on the right with -1."""
    longest = max(len(row) for row in marks)
    padded = torch.tensor([row + [-1] * (longest - len(row)) for row in marks], dtype=torch.float32)
    return padded[:, None, :, None].expand(-1, HEADS, -1, WIDTH).contiguous()


class Twin:
    """The cache and what each of its rows should hold."""

    def __init__(self) -> None:
        self.cache = KeyValueCache()
        self.rows: list[list[int]] = []
        self.mark = 0

    def fresh(self, number: int) -> list[int]:
        self.mark += number
        return list(range(self.mark - number + 1, self.mark + 1))

    def add(self, lengths: list[int], copies: int) -> None:
        prompts = [self.fresh(length) for length in lengths]
        computed = PromptCache()
        for layer in range(LAYERS):
            keys = states(prompts) + 1000 * layer
            computed.update(keys, -keys, layer)
        self.cache.add(computed, lengths, copies)
        self.rows += [list(prompt) for prompt in prompts for _ in range(copies)]

    def keep(self, indices: list[int]) -> None:
        self.cache.keep(torch.tensor(indices, dtype=torch.long))
        self.rows = [self.rows[i] for i in indices]

    def step(self) -> None:
        marks = self.fresh(len(self.rows))
        for row, mark in zip(self.rows, marks, strict=True):
            row.append(mark)
        valid, columns = self.cache.open_column()
        for layer in range(LAYERS):
            new = states([[mark] for mark in marks]) + 1000 * layer
            keys, values = columns.update(new, -new, layer)
            assert keys.shape == (len(self.rows), HEADS, valid.shape[1], WIDTH)
            for i, row in enumerate(self.rows):
                expected = torch.tensor(row, dtype=torch.float32) + 1000 * layer
                for head in range(HEADS):
                    assert torch.equal(keys[i, head, valid[i], 0], expected)
                    assert torch.equal(values[i, head, valid[i], WIDTH - 1], -expected)

    def check_invariants(self) -> None:
        assert self.cache.rows == len(self.rows)
        used = self.cache.valid[:, self.cache.begin : self.cache.end]
        assert used.sum(1).tolist() == [len(row) for row in self.rows]
        assert used[:, -1].all()  # all rows end in the same column
        # A row's columns are one stretch: nothing invalid after its first valid column.
        assert torch.equal(used.int().cummax(1).values.bool(), used)
        assert not self.cache.valid[:, self.cache.end :].any()


def test_prompts_of_unequal_length_end_in_one_column() -> None:
    twin = Twin()
    twin.add([3, 5, 1], copies=2)
    assert twin.cache.valid[:, :5].int().sum(1).tolist() == [3, 3, 5, 5, 1, 1]
    twin.check_invariants()
    twin.step()
    twin.check_invariants()


def test_a_longer_prompt_joins_in_front_of_all_others() -> None:
    twin = Twin()
    twin.add([2], copies=2)
    twin.step()
    twin.add([9], copies=1)  # longer than the 3 columns in use
    twin.check_invariants()
    twin.step()
    twin.check_invariants()


def test_columns_that_only_a_cut_row_used_are_dropped() -> None:
    twin = Twin()
    twin.add([12, 4], copies=1)
    twin.step()
    twin.keep([1])
    assert twin.cache.end == 5
    twin.check_invariants()
    twin.step()


def test_all_rows_cut_and_new_ones_admitted() -> None:
    twin = Twin()
    twin.add([6], copies=3)
    twin.step()
    twin.keep([])
    assert twin.cache.rows == 0
    twin.add([4, 2], copies=1)
    twin.step()
    twin.check_invariants()


def test_storage_grows_beyond_a_block() -> None:
    twin = Twin()
    twin.add([2, 3], copies=1)
    for _ in range(2 * BLOCK + 5):
        twin.step()
    twin.check_invariants()


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_events(seed: int) -> None:
    generator = random.Random(seed)
    twin = Twin()
    twin.add([generator.randint(1, 8) for _ in range(2)], copies=2)
    for _ in range(60):
        event = generator.random()
        if event < 0.15 and len(twin.rows) < 12:
            twin.add([generator.randint(1, 30) for _ in range(generator.randint(1, 2))], copies=generator.randint(1, 3))
        elif event < 0.35 and len(twin.rows) > 1:
            twin.keep(sorted(generator.sample(range(len(twin.rows)), generator.randint(1, len(twin.rows) - 1))))
        else:
            twin.step()
        twin.check_invariants()


def test_prefill_out_of_order_is_refused() -> None:
    with pytest.raises(AssertionError, match="layers in order"):
        PromptCache().update(torch.zeros(1), torch.zeros(1), 1)
