"""AMC 12: two sets go by the name AMC23, so each has a name of its own here, and the 40 are the default.

`amc23`: the 40 problems of 2023 (Qwen2.5-Math, zwhe99/amc23). `amc23-83`: 83 problems of 2022 and 2023 (POLARIS, TTRL,
Dr. GRPO), which contain the 40. Choice letters are taken out, golds are floats that are integers, some negative.
Example: "Cities A and B are 45 miles apart. Alicia lives in A and Beth lives in B. ..." -> 27.
"""

from __future__ import annotations

from luspo_cli.evaluation.benchmarks.contest import IntegerBenchmark


class Amc23(IntegerBenchmark):
    """The 40 problems of 2023."""

    name = "AMC23"
    version = 2
    size = 40
    licence = "problems: Mathematical Association of America; copy: MIT (Qwen2.5-Math)"
    hub_ids: tuple[str, ...] = ("zwhe99/amc23::test", "knoveleng/AMC-23::train")
    files: tuple[str, ...] = ("test.jsonl", "test.parquet")

    def _wrong_size(self, rows: int, problems: int, place: str) -> str:
        other = {40: "amc23", 83: "amc23-83"}.get(problems)
        if other is None:
            return super()._wrong_size(rows, problems, place)
        return (
            f"{place} has {problems} problems and {self.name} means the set of {self.size}; evaluate {other} instead."
        )


class Amc23Of83(Amc23):
    """The 83 problems of 2022 and 2023."""

    name = "AMC23-83"
    size = 83
    licence = "problems: Mathematical Association of America; copy: Apache-2.0 (POLARIS)"
    hub_ids = ("AI-MO/aimo-validation-amc::train",)
    files = ("amc23.parquet", "test.parquet")


AMC23 = Amc23()
AMC23_83 = Amc23Of83()
