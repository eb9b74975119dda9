"""Products of few rows with the matrices of a model's layers in float32: plain, transposed, and in oneDNN's blocked layout.

    python -m bench few_rows [--rows 8 16 32] [--width 896] [--feed-forward 4864] [--vocabulary 151936] [--json FILE]

GFLOP/s, the best of three; the last column is one large product. A decode step is made of such products: what the blocked layout
is worth on a processor shows here (docs/engine.md, How the in-process sampler works).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from results import Results, Values

LARGE_ROWS = 2048
FLOPS_AT_LEAST = 2e9
"""Of one measurement: short products are repeated."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--width", type=int, default=896)
    parser.add_argument("--feed-forward", type=int, default=4864)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    shapes = [
        (options.width, options.width),
        (options.width, options.feed_forward),
        (options.feed_forward, options.width),
        (options.width, options.vocabulary),
    ]
    results = Results("few rows", options.json)
    for rows in options.rows:
        for inner, outer in shapes:
            results.measured(f"{rows} rows, {inner} to {outer}", lambda r=rows, i=inner, o=outer: _rates(r, i, o))
    results.print(("plain", "transposed", "blocked", f"plain, {LARGE_ROWS} rows"), digits=0)


def _rates(rows: int, inner: int, outer: int) -> Values:
    import torch

    weight = torch.randn(outer, inner)
    few, many = torch.randn(rows, inner), torch.randn(LARGE_ROWS if outer < 2**16 else rows, inner)
    blocked = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    found = {
        "plain": _rate(lambda: torch.nn.functional.linear(few, weight), rows * inner * outer),
        "transposed": _rate(lambda: torch.mm(weight, few.t()), rows * inner * outer),
        "blocked": _rate(
            lambda: torch.ops.mkldnn._linear_pointwise(few, blocked, None, "none", [], ""), rows * inner * outer
        ),
    }
    if len(many) > rows:
        found[f"plain, {LARGE_ROWS} rows"] = _rate(
            lambda: torch.nn.functional.linear(many, weight), len(many) * inner * outer
        )
    return found


def _rate(product: Callable[[], object], multiplications: int) -> float:
    """GFLOP/s of a product, two a multiplication."""
    times = max(3, int(FLOPS_AT_LEAST / (2 * multiplications)))
    product()
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(times):
            product()
        best = min(best, (time.perf_counter() - began) / times)
    return 2 * multiplications / best / 1e9


if __name__ == "__main__":
    main()
