"""What the machine can do at most, measured: products of large matrices and reading memory. A child of other benchmarks:

python bench/shared/limits.py [--size 4096] [--seconds 2] [--device cpu]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from results import print_table

from shared.child import Values, run_child, say, wait_for_device

LIMITS = "limits"
"""Their case among those of a benchmark."""
READ_BYTES = 2**30


def measured_limits(device: str, *, smoke: bool = False) -> Values:
    """GEMM FLOP/s in bfloat16 and float32 and bytes/s of reading memory, from a process of its own."""
    small = ["--size", "512", "--seconds", "0.2"] if smoke else []
    return run_child([sys.executable, str(Path(__file__)), "--device", device, *small])


def print_limits(limits: Mapping[str, Any]) -> None:
    """A table of them."""
    print_table("limits, 10^9", {"this machine": {key: value / 1e9 for key, value in limits.items()}}, tuple(limits), 0)


def _best(work: Callable[[], object], seconds: float) -> float:
    """The shortest of repeats that take `seconds` together; the first is a warm-up."""
    work()
    wait_for_device()
    times, ends = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < ends:
        began = time.perf_counter()
        work()
        wait_for_device()
        times.append(time.perf_counter() - began)
    return min(times)


def _product(size: int, dtype: Any, device: str, seconds: float) -> float:
    """The seconds of one product of square matrices of this size."""
    import torch

    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return _best(lambda: left @ right.t(), seconds)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    found = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        size = 256
        # Larger ones only while they fit the time: a processor may have no instructions for bfloat16.
        while size < options.size and 8 * _product(size, dtype, options.device, 0) < options.seconds:
            size = min(2 * size, options.size)
        found[f"GEMM {name} FLOP/s"] = 2 * size**3 / _product(size, dtype, options.device, options.seconds)
    # Each thread reads its part of a block that no cache holds.
    block = torch.ones(READ_BYTES // 4 if options.seconds >= 1 else 2**24, device=options.device)
    seconds = _best(block.sum, options.seconds)
    found["read B/s"] = block.numel() * 4 / seconds
    say(found)


if __name__ == "__main__":
    main()
