"""AIME 2024, 30 problems (I and II). Data: HuggingFaceH4/aime_2024; copies by Qwen2.5-Math, POLARIS and DAPO.

Example: "Every morning Aya goes for a 9-kilometer-long walk and stops at a coffee shop afterwards. ..." -> 204.
Golds have leading zeros in some copies (`025`); `solution` columns box other forms and are never read. DAPO's
evaluation file holds each problem 32 times and is read as 30 problems. Known deviation from verl: its scorer for this
data reads only `Answer:` lines, ours reads the box as well.
"""

from __future__ import annotations

from luspo_cli.evaluation.benchmarks.contest import IntegerBenchmark


class Aime24(IntegerBenchmark):
    """AIME I and II of 2024."""

    name = "AIME24"
    version = 2
    size = 30
    licence = "problems: Mathematical Association of America; copies: MIT (Qwen2.5-Math), Apache-2.0 (POLARIS)"
    hub_ids = (
        "HuggingFaceH4/aime_2024::train",
        "Maxwell-Jia/AIME_2024::train",
        "zwhe99/aime24::test",
        "BytedTsinghua-SIA/AIME-2024::train",
    )
    files = ("test.jsonl", "aime24.parquet", "aime-2024.parquet", "test.parquet")


AIME24 = Aime24()
