"""Drawing a token: frequencies, the ends of the unit interval, exact supports, and log-probs by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from luspo_cli.errors import RunError
from luspo_cli.rollout.in_process.draw import BLOCK, choose_tokens

ALMOST_ONE = math.nextafter(1.0, 0.0)


def draws(logits: Tensor, uniform: Tensor, **options: float) -> Tensor:
    """Tokens for one row of logits [V] under many uniform numbers [N]."""
    settings = {"temperature": 1.0, **options}
    return choose_tokens(logits.expand(len(uniform), -1), uniform, **settings)[0]  # type: ignore[arg-type]


def grid(number: int) -> Tensor:
    """The midpoints of `number` equal parts of [0, 1)."""
    return (torch.arange(number, dtype=torch.float64) + 0.5) / number


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_frequencies_follow_the_softmax(temperature: float) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(11, generator=generator)
    number = 20_000
    tokens = draws(logits, torch.rand(number, generator=generator), temperature=temperature)
    expected = number * (logits.double() / temperature).softmax(-1)
    found = torch.bincount(tokens, minlength=11).double()
    chi_square = float(((found - expected) ** 2 / expected).sum())
    assert chi_square < 29.6  # 99.9 % quantile with 10 degrees of freedom


def test_equal_parts_of_the_interval_give_each_token_its_probability_within_one_part() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    counts = torch.bincount(draws(logits, grid(1000)), minlength=4).tolist()
    assert counts == pytest.approx([500, 250, 125, 125], abs=1)


@pytest.mark.parametrize("vocabulary", [1, 3, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 1000])
def test_both_ends_of_the_interval_stay_in_the_vocabulary(vocabulary: int) -> None:
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    first, last = draws(logits, torch.tensor([0.0, ALMOST_ONE], dtype=torch.float64)).tolist()
    assert (first, last) == (0, vocabulary - 1)
    # 1 - 2^-24 is the largest number that torch.rand gives in float32.
    assert draws(logits, torch.tensor([1 - 2**-24])).item() < vocabulary


@pytest.mark.parametrize("vocabulary", [5, BLOCK, 300])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_certain_token_is_drawn_at_every_number(vocabulary: int, place: str) -> None:
    token = {"first": 0, "middle": vocabulary // 2, "last": vocabulary - 1}[place]
    logits = torch.full((vocabulary,), -torch.inf)
    logits[token] = 3.0
    uniform = torch.tensor([0.0, 1e-12, 0.5, 1 - 2**-24, ALMOST_ONE], dtype=torch.float64)
    assert draws(logits, uniform).tolist() == [token] * 5


@pytest.mark.parametrize("vocabulary", [40, 2 * BLOCK + 3])
def test_a_token_without_probability_is_never_drawn(vocabulary: int) -> None:
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(1))
    banned = torch.arange(vocabulary) % 3 != 1  # first and last of every stretch among them
    logits[banned] = -torch.inf
    uniform = torch.cat([torch.tensor([0.0, ALMOST_ONE], dtype=torch.float64), grid(5000)])
    tokens = draws(logits, uniform)
    assert not banned[tokens].any()
    assert set(tokens.tolist()) == set((~banned).nonzero()[:, 0].tolist())


def test_a_large_vocabulary_keeps_its_last_digits() -> None:
    """A flat float32 cumulative sum over 150,000 equal weights ends several tokens off."""
    vocabulary = 150_000
    wanted = torch.tensor([1, 74_999, 149_998])
    uniform = (wanted.double() + 0.5) / vocabulary
    assert draws(torch.zeros(vocabulary), uniform).tolist() == wanted.tolist()


def test_top_k_draws_exactly_the_k_most_probable() -> None:
    logits = torch.tensor([0.1, 2.0, -1.0, 1.5, 0.7, 1.4])
    assert set(draws(logits, grid(2000), top_k=3).tolist()) == {1, 3, 5}
    assert set(draws(logits, grid(2000), top_k=99).tolist()) == set(range(6))


@pytest.mark.parametrize(
    ("top_p", "support"), [(0.05, {2}), (0.39, {2}), (0.41, {2, 0}), (0.71, {2, 0, 3}), (0.96, {2, 0, 3, 1, 4})]
)
def test_top_p_draws_exactly_the_smallest_set_that_reaches_p(top_p: float, support: set[int]) -> None:
    logits = torch.tensor([0.30, 0.09, 0.40, 0.16, 0.05]).log()
    assert set(draws(logits, grid(4000), top_p=top_p).tolist()) == support


def test_truncated_draws_keep_the_proportions() -> None:
    logits = torch.tensor([0.30, 0.10, 0.40, 0.20]).log()
    counts = torch.bincount(draws(logits, grid(700), top_k=2), minlength=4).tolist()
    assert counts == pytest.approx([300, 0, 400, 0], abs=1)


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 2}, {"top_p": 0.5}, {"temperature": 0.5}, {"temperature": 0.5, "top_k": 2}]
)
def test_log_probs_are_of_the_whole_distribution_at_the_temperature(options: dict[str, float]) -> None:
    settings = {"temperature": 1.0, **options}
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(3))
    before = logits.clone()
    tokens, logprobs = choose_tokens(logits, grid(50), **settings)  # type: ignore[arg-type]
    oracle = (logits.double() / settings["temperature"]).log_softmax(-1)[torch.arange(50), tokens]
    assert torch.allclose(logprobs.double(), oracle, atol=2e-6)
    assert torch.equal(logits, before)  # the caller's logits are not overwritten


def test_temperature_zero_takes_the_most_probable_token_at_temperature_one() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, -1.0, 4.0]])
    tokens, logprobs = choose_tokens(logits, torch.tensor([0.99, 0.01]), temperature=0)
    assert tokens.tolist() == [1, 0]
    assert logprobs.tolist() == pytest.approx(
        [3 - math.log(1 + math.e**3 + math.e), -math.log(1 + math.e**-6 + math.e**-1)]
    )


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits = torch.zeros(1, 4096, dtype=torch.bfloat16)
    token, logprob = choose_tokens(logits, torch.tensor([0.5]), temperature=1.0)
    assert token.item() == 2048
    assert logprob.item() == pytest.approx(-math.log(4096), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_logits_that_are_not_finite_stop_the_run(temperature: float, top_p: float) -> None:
    logits = torch.zeros(2, 7)
    logits[1, 3] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        choose_tokens(logits, torch.tensor([0.5, 0.5]), temperature=temperature, top_p=top_p)
