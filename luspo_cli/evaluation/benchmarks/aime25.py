"""AIME 2025, 30 problems (I and II). Data: math-ai/aime25; copies by OpenCompass (two configurations) and POLARIS.

Example: "Find the sum of all integer bases b>9 for which 17_b is a divisor of 97_b." -> 70. One gold of the POLARIS
copy is `336^\\circ`; some problems describe a figure that no copy includes.
"""

from __future__ import annotations

from luspo_cli.evaluation.benchmarks.contest import IntegerBenchmark


class Aime25(IntegerBenchmark):
    """AIME I and II of 2025."""

    name = "AIME25"
    version = 2
    size = 30
    licence = "problems: Mathematical Association of America; copy: Apache-2.0 (POLARIS)"
    hub_ids = (
        "math-ai/aime25::test",
        "opencompass/AIME2025:AIME2025-I+AIME2025-II:test",
        "yentinglin/aime_2025::train",
    )
    files = ("test.jsonl", "aime25.parquet", "test.parquet")


AIME25 = Aime25()
