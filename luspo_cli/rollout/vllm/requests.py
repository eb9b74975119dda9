"""What is asked of vLLM and what comes back, the same for the engine in this process and for a server; imports no vllm.

One request a rollout, each with a seed of its own from the call's seed and the rollout's row: what a row draws does not depend
on what is drawn beside it. The prefix cache computes a group's prompt once nevertheless. The response ends with our end tokens
and no others (`ignore_eos` keeps the model's generation defaults out), and the end token is part of it.

vLLM returns log-probs of one kind an engine: of the logits as they are, or of the distribution that it drew from. The first is
ours (at the sampling temperature, over the whole vocabulary) at temperature 1 and for greedy draws, the second wherever nothing
is cut off by top_p or top_k. Where neither holds a rollout has no log-probs. A vision model's image tokens are never drawn, which
is a cut too: it has log-probs of the first kind alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from luspo_cli.errors import RunError, UsageError
from luspo_cli.records import Prompt, Rollout, StopReason
from luspo_cli.rollout.sampler import SamplingOptions

LogprobsMode = Literal["raw_logprobs", "processed_logprobs"]
NEVER = -100.0
"""The lowest bias that vLLM adds to a logit."""
LEAST_TEMPERATURE = 0.01
"""vLLM raises lower ones to this."""


def logprobs_mode(temperature: float) -> LogprobsMode:
    """The kind of log-probs to start an engine with that will mostly sample at `temperature`."""
    return "raw_logprobs" if temperature in (0.0, 1.0) else "processed_logprobs"


def has_logprobs(options: SamplingOptions, mode: LogprobsMode, never_drawn: Sequence[int] = ()) -> bool:
    """Whether an engine of this kind returns log-probs at the sampling temperature over the whole vocabulary."""
    if mode == "raw_logprobs":
        return options.temperature in (0.0, 1.0)
    if never_drawn:
        return False
    # A server can report logits in their place.
    return mode == "processed_logprobs" and (options.temperature == 0.0 or (options.top_p == 1.0 and not options.top_k))


def mode_for(options: SamplingOptions, never_drawn: Sequence[int] = ()) -> LogprobsMode | None:
    """The kind of log-probs to start a server with for these draws; None where no kind gives the sampler's own."""
    modes: tuple[LogprobsMode, ...] = ("raw_logprobs", "processed_logprobs")
    return next((mode for mode in modes if has_logprobs(options, mode, never_drawn)), None)


def row_seed(seed: int, row: int) -> int:
    """62 bits from the call's seed and the rollout's row, which is prompt * group_size + place in the group."""
    return int.from_bytes(hashlib.sha256(f"{seed} {row}".encode()).digest()[:8], "big") >> 2


def sampling_parameters(
    options: SamplingOptions, row: int, end_tokens: Sequence[int], never_drawn: Sequence[int] = ()
) -> dict[str, Any]:
    """The arguments of vLLM's SamplingParams for one rollout; penalties and the like keep vLLM's neutral defaults."""
    return {
        "n": 1,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "max_tokens": options.max_response_tokens,
        "seed": row_seed(options.seed, options.first_row + row),
        "stop_token_ids": list(end_tokens),
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
        **({"logit_bias": dict.fromkeys(never_drawn, NEVER)} if never_drawn else {}),
    }


def check_request(prompt: Prompt, options: SamplingOptions, longest: int | None) -> None:
    """UsageError for what vLLM cannot draw: a temperature that it would change, rows beyond `longest` tokens."""
    if 0 < options.temperature < LEAST_TEMPERATURE:
        raise UsageError(
            f"vLLM samples at temperature 0 or from {LEAST_TEMPERATURE} up, not at {options.temperature:g}"
        )
    needed = len(prompt.tokens) + options.max_response_tokens
    if longest is not None and needed > longest:
        raise UsageError(
            f"the prompt of problem '{prompt.problem_id}' with {options.max_response_tokens} response tokens needs {needed}"
            f" tokens and vLLM was started for {longest}: lower the response limit"
        )


def to_rollout(
    prompt: Prompt,
    tokens: Sequence[int],
    logprobs: Sequence[float],
    end_tokens: Sequence[int],
    keep_logprobs: bool,
    never_drawn: Sequence[int] = (),
) -> Rollout:
    """One rollout without its text (`with_texts`); RunError where vLLM returned nothing, an image token or numbers that are not
    finite."""
    if not tokens or len(tokens) != len(logprobs):
        raise RunError(
            f"vLLM returned {len(tokens)} tokens and {len(logprobs)} log-probs for problem '{prompt.problem_id}':"
            " look at vLLM's own messages, then go on with --resume"
        )
    if not all(math.isfinite(value) for value in logprobs):
        raise RunError(
            "the log-probs that vLLM returned are not finite: the weights have diverged or were broken from the start; start"
            " a new run with a lower update.learning_rate, from weights that are whole"
        )
    if drawn := set(tokens) & set(never_drawn):
        raise RunError(
            f"vLLM drew the image token {min(drawn)} for problem '{prompt.problem_id}', which stands for pixels that are not"
            " there: the weights have diverged, or this vLLM leaves out a request's logit_bias"
        )
    return Rollout(
        problem_id=prompt.problem_id,
        prompt_tokens=prompt.tokens,
        response_tokens=tuple(tokens),
        response="",
        stop_reason=StopReason.END if tokens[-1] in end_tokens else StopReason.LENGTH,
        rollout_logprobs=tuple(logprobs) if keep_logprobs else (),
        thought_open=prompt.thought_open,
    )


def with_texts(rollouts: Sequence[Rollout], tokenizer: Any) -> list[Rollout]:
    """The rollouts with their decoded texts."""
    texts = tokenizer.batch_decode([list(rollout.response_tokens) for rollout in rollouts], skip_special_tokens=True)
    return [replace(rollout, response=text) for rollout, text in zip(rollouts, texts, strict=True)]


def in_groups(rollouts: Sequence[Rollout], group_size: int) -> list[list[Rollout]]:
    """Rollouts in the order of their rows, [prompts][group_size]."""
    return [list(rollouts[i : i + group_size]) for i in range(0, len(rollouts), group_size)]
