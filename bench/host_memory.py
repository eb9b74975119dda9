"""Forward and backward of one micro-batch, before and after `keep_freed_memory`, in one process.

python bench/host_memory.py --model FOLDER [--rows 8] [--width 350]
"""

from __future__ import annotations

import argparse
import time

import torch

from luspo_cli.config.model import ModelConfig
from luspo_cli.policy.loading import load_model
from luspo_cli.policy.packing import Row, policy_batch
from luspo_cli.policy.policy import Policy
from luspo_cli.records import Rollout, StopReason
from luspo_cli.training.host_memory import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--width", type=int, default=350)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    policy = Policy(load_model(ModelConfig(path=options.model)).model, 1.0)
    prompt, response = tuple(range(100, 200)), tuple(range(300, 200 + options.width))
    rows = [Row(Rollout("bench", prompt, response, "", StopReason.END), 1.0) for _ in range(options.rows)]
    tokens = sum(row.width for row in rows)
    before = _seconds(policy, rows, options.repeats)
    kept = keep_freed_memory()
    after = _seconds(policy, rows, options.repeats)
    print(f"{tokens} tokens, forward and backward, best of {options.repeats} after one warm-up; switch taken: {kept}")
    print(f"as glibc does it  {before:7.2f} s   {tokens / before:7.0f} tokens/s")
    print(f"keeping memory    {after:7.2f} s   {tokens / after:7.0f} tokens/s   ratio {before / after:.2f}")


def _seconds(policy: Policy, rows: list[Row], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            logprobs, _ = policy(policy_batch(rows))
        logprobs.sum().backward()
        times.append(time.perf_counter() - start)
    return min(times[1:])


if __name__ == "__main__":
    main()
