"""What is asked of vLLM and how its answers become rollouts, without vLLM."""

from __future__ import annotations

import pytest

from luspo_cli.errors import RunError, UsageError
from luspo_cli.records import Prompt, StopReason
from luspo_cli.rollout.sampler import SamplingOptions
from luspo_cli.rollout.vllm.requests import (
    check_request,
    has_logprobs,
    logprobs_mode,
    mode_for,
    row_seed,
    sampling_parameters,
    to_rollout,
)

PROMPT = Prompt("p", (3, 4, 5))


def test_a_row_keeps_its_seed_and_no_two_rows_share_one() -> None:
    seeds = {row_seed(seed, row) for seed in range(20) for row in range(200)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert row_seed(7, 3) == row_seed(7, 3)
    assert row_seed(1, 23) != row_seed(12, 3)  # not a concatenation of digits


def test_a_share_of_a_batch_draws_as_the_whole_batch_does() -> None:
    """A process that takes the batch from row 16 on asks for row 2 of its own with the seed of row 18 of the whole."""
    whole, share = (SamplingOptions(group_size=8, max_response_tokens=4, seed=5, first_row=row) for row in (0, 16))
    assert sampling_parameters(share, 2, (1,)) == sampling_parameters(whole, 18, (1,))
    assert sampling_parameters(share, 2, (1,)) != sampling_parameters(whole, 2, (1,))


def test_sampling_parameters_name_every_choice_of_ours() -> None:
    asked = sampling_parameters(SamplingOptions(8, 64, 0.7, 0.9, 20, seed=5), 3, (1, 2))
    assert (asked["temperature"], asked["top_p"], asked["top_k"], asked["max_tokens"]) == (0.7, 0.9, 20, 64)
    assert asked["stop_token_ids"] == [1, 2]
    assert asked["ignore_eos"] is True  # the model's own end tokens are ours or none
    assert asked["logprobs"] == 0  # of the drawn token alone
    assert not {"repetition_penalty", "min_p", "stop", "bad_words"} & asked.keys()


@pytest.mark.parametrize(
    ("engine_for", "options", "expected"),
    [
        (1.0, SamplingOptions(1, 1, 1.0), True),
        (1.0, SamplingOptions(1, 1, 1.0, top_p=0.9), True),  # raw log-probs know no cut
        (1.0, SamplingOptions(1, 1, 0.0), True),
        (1.0, SamplingOptions(1, 1, 0.6), False),
        (0.6, SamplingOptions(1, 1, 0.6), True),
        (0.6, SamplingOptions(1, 1, 1.0), True),
        (0.6, SamplingOptions(1, 1, 0.6, top_p=0.9), False),
        (0.6, SamplingOptions(1, 1, 0.6, top_k=5), False),
    ],
)
def test_log_probs_are_kept_only_where_they_are_ours(
    engine_for: float, options: SamplingOptions, expected: bool
) -> None:
    assert has_logprobs(options, logprobs_mode(engine_for)) is expected


def test_an_answer_becomes_a_rollout() -> None:
    ended = to_rollout(PROMPT, [7, 8, 1], [-0.1, -0.2, -0.3], (1, 2), keep_logprobs=True)
    assert ended.response_tokens == (7, 8, 1)
    assert ended.rollout_logprobs == (-0.1, -0.2, -0.3)
    assert ended.stop_reason is StopReason.END
    cut = to_rollout(PROMPT, [7, 8], [-0.1, -0.2], (1, 2), keep_logprobs=False)
    assert cut.stop_reason is StopReason.LENGTH
    assert cut.rollout_logprobs == ()


@pytest.mark.parametrize(
    ("tokens", "logprobs", "message"),
    [([], [], "0 tokens"), ([7], [], "1 tokens and 0 log-probs"), ([7], [float("nan")], "not finite")],
)
def test_silence_and_broken_numbers_end_the_run(tokens: list[int], logprobs: list[float], message: str) -> None:
    with pytest.raises(RunError, match=message):
        to_rollout(PROMPT, tokens, logprobs, (1,), keep_logprobs=True)


def test_what_vllm_cannot_draw_is_refused_in_a_sentence() -> None:
    fine = SamplingOptions(1, 5)
    check_request(PROMPT, fine, 8)
    with pytest.raises(UsageError, match=r"'p' with 5 response tokens needs 8"):
        check_request(PROMPT, fine, 7)
    with pytest.raises(UsageError, match=r"0\.005"):
        check_request(PROMPT, SamplingOptions(1, 5, temperature=0.005), 8)


def test_tokens_that_are_never_drawn() -> None:
    assert sampling_parameters(SamplingOptions(1, 1), 0, (1,), (6, 7))["logit_bias"] == {6: -100.0, 7: -100.0}
    with pytest.raises(RunError, match=r"drew the image token 6 for problem 'p'"):
        to_rollout(PROMPT, [7, 6], [-0.1, -0.2], (1,), keep_logprobs=True, never_drawn=(5, 6))
    # Leaving them out is a cut: what vLLM drew from is no distribution over the whole vocabulary.
    warm = SamplingOptions(1, 1, 0.6)
    assert has_logprobs(warm, "processed_logprobs")
    assert not has_logprobs(warm, "processed_logprobs", (6,))
    assert mode_for(warm, (6,)) is None
    assert mode_for(SamplingOptions(1, 1), (6,)) == "raw_logprobs"
