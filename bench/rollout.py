"""Tokens per second of the in-process sampler and of transformers' generate, same model, same prompts, one run.

    python bench/rollout.py --model FOLDER [--rows 32 64] [--tokens 200]

Length is fixed (no token ends a response), so every system does the same work.
"""

from __future__ import annotations

import argparse
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luspo_cli.policy import attention
from luspo_cli.rollout.in_process import InProcessSampler
from luspo_cli.rollout.packed_linear import bfloat16_copy
from luspo_cli.rollout.sampler import Prompt, SamplingOptions

QUESTION = "A baker sells {} loaves a day for {} days. How many loaves is that? Think step by step."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--group-size", type=int, default=8)
    options = parser.parse_args()
    attention.register()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    stock = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16, attn_implementation="sdpa")
    own = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16, attn_implementation=attention.NAME)
    packed = bfloat16_copy(own)
    print(f"{'rows':>5} {'generate':>10} {'in-process':>11} {'packed':>8} {'packed / generate':>18}   (tokens/s)")
    for rows in options.rows:
        prompts = [tokenizer.encode(QUESTION.format(i + 3, i + 5)) for i in range(rows // options.group_size)]
        generate = _generate(stock, prompts, options.group_size, options.tokens)
        plain = _sampler(own, tokenizer, prompts, options.group_size, options.tokens)
        fast = _sampler(packed, tokenizer, prompts, options.group_size, options.tokens)
        print(f"{rows:>5} {generate:>10.0f} {plain:>11.0f} {fast:>8.0f} {fast / generate:>18.2f}")


def _generate(model: torch.nn.Module, prompts: list[list[int]], group_size: int, tokens: int) -> float:
    longest = max(map(len, prompts))
    padded = [[0] * (longest - len(prompt)) + prompt for prompt in prompts for _ in range(group_size)]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts for _ in range(group_size)]
    inputs = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
    settings = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    start = time.perf_counter()
    out = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0, **settings)
    return (out.shape[1] - longest) * len(padded) / (time.perf_counter() - start)


def _sampler(
    model: torch.nn.Module, tokenizer: object, prompts: list[list[int]], group_size: int, tokens: int
) -> float:
    sampler = InProcessSampler(model, tokenizer, [], max_rows=1024)
    named = [Prompt(str(i), tuple(prompt)) for i, prompt in enumerate(prompts)]
    start = time.perf_counter()
    groups = sampler.sample_groups(named, SamplingOptions(group_size, tokens))
    return sum(rollout.response_length for group in groups for rollout in group) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
