"""The sampler against transformers' own generation, against itself with few and many places, and against the policy."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from luspo_cli.policy.packing import Row, policy_batch
from luspo_cli.policy.policy import Policy
from luspo_cli.records import Prompt, Rollout, StopReason
from luspo_cli.rollout.in_process.sampler import InProcessSampler, uniform_numbers
from luspo_cli.rollout.sampler import SamplingOptions

END = 1


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    generator = random.Random(3)
    lengths = [3, 17, 5, 1, 9, 4, 12]
    return [Prompt(f"p{i}", tuple(generator.randrange(2, 26) for _ in range(n))) for i, n in enumerate(lengths)]


def sampled(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    max_rows: int = 1000,
    end: Sequence[int] = (END,),
    **options: Any,
) -> list[list[Rollout]]:
    settings = {"group_size": 3, "max_response_tokens": 20, "seed": 11, **options}
    return InProcessSampler(model, tokenizer, end, max_rows).sample_groups(prompts, SamplingOptions(**settings))


def tokens(groups: list[list[Rollout]]) -> list[list[tuple[int, ...]]]:
    return [[rollout.response_tokens for rollout in group] for group in groups]


@pytest.mark.parametrize("max_rows", [2, 5, 1000])
def test_greedy_tokens_are_those_of_transformers(
    make_model: Callable[..., Any], made_tokenizer: Any, prompts: list[Prompt], max_rows: int
) -> None:
    """With 2 or 5 places, groups join late and finished rows are cut out. Five end tokens make lengths differ."""
    ends = [1, 4, 8, 15, 21]
    reference = make_model(attention="eager")
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt.tokens])
        out = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=0,
        )
        expected.append(tuple(out[0, ids.shape[1] :].tolist()))
    assert len({len(response) for response in expected}) > 2  # otherwise nothing was ever cut out
    groups = sampled(make_model(), made_tokenizer, prompts, max_rows, ends, group_size=2, temperature=0)
    assert tokens(groups) == [[response, response] for response in expected]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_k": 6}, {"top_p": 0.7}])
def test_the_number_of_places_does_not_change_the_draws(
    make_model: Callable[..., Any], made_tokenizer: Any, prompts: list[Prompt], dtype: str, options: dict[str, Any]
) -> None:
    model = make_model(dtype=dtype)
    many = sampled(model, made_tokenizer, prompts, end=(1, 5, 9), **options)
    assert len({r.response_length for group in many for r in group}) > 3  # otherwise nobody leaves early
    for max_rows in (3, 7, 9):
        assert tokens(sampled(model, made_tokenizer, prompts, max_rows, (1, 5, 9), **options)) == tokens(many)


def test_a_row_draws_its_own_numbers_whatever_is_beside_it(
    make_model: Callable[..., Any], made_tokenizer: Any, prompts: list[Prompt]
) -> None:
    """Same prompt twice: other numbers, other responses; the first group is the same when others are left out."""
    model = make_model()
    twice = sampled(model, made_tokenizer, [prompts[0], prompts[0]])
    assert tokens(twice)[0] != tokens(twice)[1]
    assert tokens(sampled(model, made_tokenizer, [prompts[0]])) == tokens(twice)[:1]
    assert len(set(tokens(twice)[0])) > 1
    assert tokens(sampled(model, made_tokenizer, [prompts[0]], seed=12)) != tokens(twice)[:1]


@pytest.mark.parametrize("length", [1, 7, 64])
def test_rows_further_down_a_batch_have_the_numbers_of_the_whole_one(length: int) -> None:
    whole = uniform_numbers(SamplingOptions(1, length, seed=5), 1200)
    for first, rows in ((0, 3), (1, 5), (256, 2), (600, 17), (1100, 100)):
        assert torch.equal(
            uniform_numbers(SamplingOptions(1, length, seed=5, first_row=first), rows), whole[first : first + rows]
        )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("max_rows", [4, 1000])
def test_log_probs_are_those_that_the_policy_computes(
    make_model: Callable[..., Any], made_tokenizer: Any, prompts: list[Prompt], temperature: float, max_rows: int
) -> None:
    model = make_model()
    groups = sampled(model, made_tokenizer, prompts, max_rows, (1, 5), temperature=temperature)
    rollouts = [rollout for group in groups for rollout in group]
    batch = policy_batch([Row(rollout, 1.0) for rollout in rollouts])
    with torch.no_grad():
        logprobs, _ = Policy(model, temperature)(batch)
    for row, rollout in zip(logprobs, rollouts, strict=True):
        assert len(rollout.rollout_logprobs) == rollout.response_length
        assert row[: rollout.response_length].tolist() == pytest.approx(rollout.rollout_logprobs, abs=1e-5)


def test_stop_reasons_and_text(make_model: Callable[..., Any], made_tokenizer: Any, prompts: list[Prompt]) -> None:
    groups = sampled(make_model(), made_tokenizer, prompts, end=(1, 5), group_size=8, max_response_tokens=6)
    rollouts = [rollout for group in groups for rollout in group]
    assert {rollout.stop_reason for rollout in rollouts} == set(StopReason)
    assert [group[0].problem_id for group in groups] == [prompt.problem_id for prompt in prompts]
    for rollout in rollouts:
        ended = rollout.response_tokens[-1] in (1, 5)
        assert rollout.truncated is not ended
        assert not set(rollout.response_tokens[:-1]) & {1, 5}  # nothing is sampled after an end
        assert rollout.response_length <= 6
        assert rollout.truncated is False or rollout.response_length == 6
        assert rollout.response == made_tokenizer.decode(rollout.response_tokens, skip_special_tokens=True)
        assert "<end>" not in rollout.response
    # An end token as the last that fits is an end, not a truncation.
    assert any(r.response_length == 6 and not r.truncated for r in rollouts)


def test_no_prompts_and_progress(make_model: Callable[..., Any], made_tokenizer: Any, prompts: list[Prompt]) -> None:
    model = make_model().train()
    assert sampled(model, made_tokenizer, []) == []
    heard: list[int] = []
    sampler = InProcessSampler(model, made_tokenizer, (1, 5), 6)
    sampler.sample_groups(prompts, SamplingOptions(2, 10, seed=1), heard.append)
    assert heard == sorted(set(heard))
    assert heard[-1] == 2 * len(prompts)
    assert model.training  # sampled in eval mode, handed back as it came


@pytest.mark.parametrize("max_rows", [6, 1000])
def test_rollouts_are_handed_over_as_they_end(
    make_model: Callable[..., Any], made_tokenizer: Any, prompts: list[Prompt], max_rows: int
) -> None:
    """Each of the returned ones once, short ones first where all are drawn at once; and nothing else is drawn."""
    sampler = InProcessSampler(make_model(), made_tokenizer, (1, 5), max_rows)
    options = SamplingOptions(3, 20, seed=1)
    heard: list[tuple[int, Rollout]] = []
    progress: list[int] = []
    handed: list[int] = []

    def on_finished(row: int, rollout: Rollout) -> None:
        heard.append((row, rollout))
        handed.append(progress[-1] if progress else 0)

    groups = sampler.sample_groups(prompts, options, progress.append, on_finished)
    assert groups == sampler.sample_groups(prompts, options)
    rollouts = [rollout for group in groups for rollout in group]
    assert dict(heard) == dict(enumerate(rollouts))
    assert len(heard) == len(rollouts)
    assert all(rollout is rollouts[row] for row, rollout in heard)
    assert handed[0] < len(rollouts)  # before the end
    lengths = [rollout.response_length for _, rollout in heard]
    assert (lengths == sorted(lengths)) is (max_rows == 1000)
    assert len(set(lengths)) > 3


def test_long_prompts_are_prefilled_in_parts(
    make_model: Callable[..., Any], made_tokenizer: Any, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    whole = sampled(model, made_tokenizer, prompts)
    monkeypatch.setattr("luspo_cli.rollout.in_process.sampler.PREFILL_TOKENS", 16)  # below the longest prompt's 17
    assert tokens(sampled(model, made_tokenizer, prompts)) == tokens(whole)


def test_each_call_reads_the_weights_anew(
    make_model: Callable[..., Any], made_tokenizer: Any, prompts: list[Prompt]
) -> None:
    model, other = make_model(0), make_model(1)
    sampler = InProcessSampler(model, made_tokenizer, (1,), 100)
    options = SamplingOptions(3, 20, seed=11)
    first = sampler.sample_groups(prompts, options)
    sampler.load_weights(other)
    second = sampler.sample_groups(prompts, options)
    assert tokens(first) != tokens(second)
    assert tokens(second) == tokens(sampled(other, made_tokenizer, prompts))
