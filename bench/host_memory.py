"""Forward and backward of one micro-batch under glibc's allocator and under a preloaded one, in turn.

python bench/host_memory.py --model FOLDER --preload LIBRARY [--rows 11] [--width 350]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time

import torch

from luspo_cli.config.model import ModelConfig
from luspo_cli.policy.loading import load_model
from luspo_cli.policy.packing import Row, policy_batch
from luspo_cli.policy.policy import Policy
from luspo_cli.records import Rollout, StopReason


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--preload", help="an allocator's shared library to compare with")
    parser.add_argument("--rows", type=int, default=11)
    parser.add_argument("--width", type=int, default=350)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--once", action="store_true", help="measure in this process only")
    options = parser.parse_args()
    if options.once:
        measure(options)
        return
    print(f"{'allocator':<24} {'seconds':>8} {'tokens/s':>9} {'page faults':>12} {'peak GiB':>9}", flush=True)
    for library in [None, options.preload] if options.preload else [None]:
        environment = {**os.environ, **({"LD_PRELOAD": library} if library else {})}
        subprocess.run([sys.executable, *sys.argv, "--once"], env=environment, check=True)


def measure(options: argparse.Namespace) -> None:
    """Best of `repeats` after one warm-up; page faults are those of the best repeat."""
    policy = Policy(load_model(ModelConfig(path=options.model)).model, 1.0)
    prompt, response = tuple(range(100, 200)), tuple(range(300, 200 + options.width))
    rows = [Row(Rollout("bench", prompt, response, "", StopReason.END), 1.0) for _ in range(options.rows)]
    tokens = sum(row.width for row in rows)
    results = []
    for _ in range(options.repeats + 1):
        start, faults = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        with torch.autocast("cpu", torch.bfloat16):
            logprobs, _ = policy(policy_batch(rows), with_entropy=True)
        logprobs.sum().backward()
        after = resource.getrusage(resource.RUSAGE_SELF)
        results.append((time.perf_counter() - start, after.ru_minflt - faults))
    seconds, faults = min(results[1:])
    name = os.path.basename(os.environ.get("LD_PRELOAD", "")) or "glibc"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name:<24} {seconds:>8.2f} {tokens / seconds:>9.0f} {faults:>12,} {peak:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
