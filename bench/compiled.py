"""Forward and backward of a Qwen2 decoder's layers with and without torch.compile: the first pass and those after it.

    python -m bench compiled [--layers 4] [--rows 4] [--width 256] [--passes 15] [--json FILE]

Layers of 0.5B's shape in float32, in one process, both in turn. A micro-batch has its own shape: `another shape` is the first
pass of a second one, `later` the median of the passes at the first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from results import Results, Values
from shared.models import qwen2_config
from shared.options import too_small


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--width", type=int, default=256, help="tokens of a row")
    parser.add_argument("--passes", type=int, default=15, help="of which the median is shown")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if reason := too_small(options):
        parser.error(reason)
    results = Results("torch.compile", options.json, layers=options.layers, rows=options.rows, width=options.width)
    both: dict[str, Values] = {}

    def of(name: str) -> Values:
        if not both:
            both.update(measured(options))
        return both[name]

    for name in ("layers", "compiled"):
        results.measured(name, lambda name=name: of(name))
    results.print(("first", "another shape", "later"))


def measured(options: argparse.Namespace) -> dict[str, Values]:
    """Seconds of both, which take turns after their first passes."""
    import torch
    from transformers import Qwen2Model

    torch.manual_seed(0)
    model = Qwen2Model(qwen2_config("0.5b", num_hidden_layers=options.layers, vocab_size=1000))
    shapes = (options.rows, options.width), (max(1, options.rows - 1), options.width - 23)
    sides: dict[str, Any] = {"layers": model, "compiled": torch.compile(model)}
    found: dict[str, dict[str, float]] = {
        name: {"first": seconds(side, shapes[0]), "another shape": seconds(side, shapes[1])}
        for name, side in sides.items()
    }
    later: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.passes):
        for name, side in sides.items():
            later[name].append(seconds(side, shapes[0]))
    return {name: values | {"later": statistics.median(later[name])} for name, values in found.items()}


def seconds(model: Any, shape: tuple[int, int]) -> float:
    """Of one forward and backward pass over random tokens."""
    import torch

    tokens = torch.randint(1000, shape, generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    began = time.perf_counter()
    model(input_ids=tokens, use_cache=False).last_hidden_state.square().mean().backward()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
