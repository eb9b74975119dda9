"""Batches as a pure function of the step: coverage, purity, wrapping, no problem twice in a batch."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luspo_cli.data.batches import BatchSource, ProblemBatches
from luspo_cli.errors import UsageError
from luspo_cli.records import Message, Problem
from luspo_cli.training.made.task import MadeBatches
from luspo_cli.training.made.terms import TERMS


def problems(count: int) -> list[Problem]:
    return [Problem(str(number), (Message("user", "?"),), "1", "p") for number in range(count)]


def ids(source: BatchSource, steps: range) -> list[str]:
    return [problem.id for step in steps for problem in source.batch(step)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5), st.booleans())
def test_every_epoch_holds_every_problem_once(count: int, size: int, seed: int, shuffle: bool) -> None:
    if size > count:
        return
    sequence = ids(ProblemBatches(problems(count), size, seed, shuffle), range(3 * count))
    for epoch in range(3):
        assert sorted(sequence[epoch * count : (epoch + 1) * count]) == sorted(str(n) for n in range(count))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(3, 6), st.integers(0, 30), st.integers(0, 5))
def test_no_batch_holds_a_problem_twice(size: int, times: int, extra: int, seed: int) -> None:
    source = ProblemBatches(problems(size * times + extra), size, seed)
    for step in range(40):
        batch = source.batch(step)
        assert len({problem.id for problem in batch}) == len(batch) == size


def test_a_step_does_not_depend_on_the_steps_before() -> None:
    in_order = ProblemBatches(problems(50), 7, seed=3)
    expected = [in_order.batch(step) for step in range(60)]
    jumping = ProblemBatches(problems(50), 7, seed=3)
    for step in (59, 0, 31, 7, 8, 59):
        assert jumping.batch(step) == expected[step]


def test_file_order_without_shuffling_wraps_into_the_next_epoch() -> None:
    source = ProblemBatches(problems(5), 2, seed=0, shuffle=False)
    assert ids(source, range(5)) == ["0", "1", "2", "3", "4", "0", "1", "2", "3", "4"]


def test_epochs_and_seeds_differ() -> None:
    source = ProblemBatches(problems(30), 30, seed=0)
    assert ids(source, range(1)) != ids(source, range(1, 2))
    assert ids(source, range(1)) != ids(ProblemBatches(problems(30), 30, seed=1), range(1))


def test_the_order_is_fixed_for_good() -> None:
    assert ids(ProblemBatches(problems(8), 4, seed=0), range(2)) == ["5", "1", "4", "6", "2", "0", "7", "3"]


def test_bad_sizes() -> None:
    with pytest.raises(UsageError, match="cannot be filled from 3"):
        ProblemBatches(problems(3), 4, seed=0)
    with pytest.raises(ValueError, match="at least one"):
        ProblemBatches(problems(3), 0, seed=0)
    with pytest.raises(ValueError, match="from 0"):
        ProblemBatches(problems(3), 1, seed=0).batch(-1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 60), st.booleans())
def test_the_reserve_of_a_step_is_every_problem_but_those_of_its_batch(
    count: int, size: int, step: int, shuffle: bool
) -> None:
    if size > count:
        return
    source = ProblemBatches(problems(count), size, seed=1, shuffle=shuffle)
    own = {problem.id for problem in source.batch(step)}
    reserve = [problem.id for problem in source.reserve(step, 0, count)]
    assert sorted([*own, *reserve]) == sorted(str(n) for n in range(count))


def test_a_reserve_in_parts_is_the_reserve_and_steps_differ() -> None:
    source, other = ProblemBatches(problems(50), 5, seed=3), ProblemBatches(problems(50), 5, seed=3)
    whole = source.reserve(7, 0, 50)
    source.reserve(2, 0, 5)
    assert [*other.reserve(7, 0, 4), *other.reserve(7, 4, 30), *other.reserve(7, 34, 99)] == whole
    assert other.reserve(7, 45, 5) == []
    assert source.reserve(8, 0, 10) != whole[:10]
    assert ProblemBatches(problems(50), 5, seed=4).reserve(7, 0, 45) != whole
    with pytest.raises(ValueError, match="from 0"):
        source.reserve(7, -1, 5)


def test_batches_are_the_same_whether_or_not_reserves_were_taken() -> None:
    source, plain = ProblemBatches(problems(20), 6, seed=5), ProblemBatches(problems(20), 6, seed=5)
    for step in range(12):
        source.reserve(step, 0, 9)
        assert source.batch(step) == plain.batch(step)


def test_made_problems_have_a_reserve_without_end() -> None:
    source = MadeBatches(TERMS, "neutral", 4, 1)
    assert [*source.reserve(3, 0, 2), *source.reserve(3, 2, 5)] == source.reserve(3, 0, 7)
    own = {problem.id for problem in source.batch(3)}
    assert len(own | {problem.id for problem in source.reserve(3, 0, 500)}) == 504
    assert [p.prompt for p in source.reserve(3, 0, 7)] != [p.prompt for p in source.reserve(4, 0, 7)]
