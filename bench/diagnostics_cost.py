"""What the diagnostics of a step cost: `python -m bench.diagnostics_cost RUNS...`.

Two runs, one with and one without, would tell the machine's noise. So the diagnostics time themselves (`time/diagnostics`:
collecting rows, the outcomes under other objectives, bins, shares), and the one thing that is computed inside the policy's pass,
the sum of squared chances of every token, is timed here beside the same function without it, at each run's size.
On a GPU `time/diagnostics` holds what the processor waits for; run this there for the pass.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from luspo_cli.policy.logprobs import token_logprobs

REPEATS = 7


def collision_seconds(tokens: int, width: int, vocabulary: int) -> float:
    """Median of paired differences of a forward pass of the head over so many tokens with and without it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator).to(device)
    head = torch.randn(vocabulary, width, generator=generator).to(device)
    targets = torch.randint(vocabulary, (tokens,), generator=generator).to(device)

    def timed(with_collision: bool) -> float:
        began = time.perf_counter()
        token_logprobs(hidden, head, targets, 1.0, True, with_collision)[0].sum().item()
        return time.perf_counter() - began

    timed(True)
    return statistics.median(timed(True) - timed(False) for _ in range(REPEATS))


def main(folders: Sequence[str]) -> None:
    if not folders:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    print("| run | seconds a step | diagnostics | in the pass | together |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for folder in map(Path, folders):
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        model = json.loads(next((folder / "checkpoints").glob("*/model/config.json")).read_text())
        tokens = int(statistics.median(r["response_length/mean"] * r["update/rows_trained"] for r in records))
        whole = statistics.median(r["time/total"] for r in records)
        own = statistics.median(r["time/diagnostics"] for r in records) / whole
        in_pass = collision_seconds(tokens, model["hidden_size"], model["vocab_size"]) / whole
        print(f"| {folder} | {whole:.3f} | {own:.2%} | {in_pass:.2%} | {own + in_pass:.2%} |")


if __name__ == "__main__":
    main(sys.argv[1:])
