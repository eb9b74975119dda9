"""Where the problems of a benchmark come from: a folder of the user's, else the hub; whole, then cut by `--limit`.

The benchmark itself refuses another number of rows than it has, so a limit is always a stated part of the whole and
never half a file by accident.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luspo_cli.errors import UsageError
from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem
from luspo_cli.evaluation.text_benchmark import TextBenchmark


def benchmark_data(name: str, data: Path, *, several: bool) -> Path:
    """Return the data of the benchmark called `name` on the command line: DATA/NAME, or of one benchmark DATA itself.

    Raises:
        UsageError: there is no such folder or file.
    """
    for folder in (data / name, data / name.partition("-")[0]):  # gsm8k-train lies beside gsm8k, amc23-83 beside amc23
        if folder.is_dir():
            return folder
    if several:
        raise UsageError(f"{data} has no folder '{name}'; with several benchmarks --data holds one folder for each.")
    if not data.exists():
        raise UsageError(f"There is no data file or folder {data}; give the one with the files of {name} to --data.")
    return data


def benchmark_problems(name: str, benchmark: Benchmark, data: Path | None, *, several: bool) -> list[BenchmarkProblem]:
    """Return all problems of a benchmark from `data`, or from the hub where it is None.

    Raises:
        UsageError: the data is not there or is not this benchmark.
    """
    if data is not None:
        return benchmark.problems(benchmark_data(name, data, several=several))
    if isinstance(benchmark, TextBenchmark):
        return benchmark.from_hub()
    published = f" (published as {benchmark.hub_ids[0].partition(':')[0]})" if benchmark.hub_ids else ""
    raise UsageError(f"{benchmark.name} needs its files{published}: give their folder with --data.")


def first_problems(problems: Sequence[BenchmarkProblem], limit: int, name: str) -> list[BenchmarkProblem]:
    """Return the first `limit` problems, all for 0; raises UsageError where there are fewer."""
    if limit > len(problems):
        raise UsageError(f"--limit {limit} is more than the {len(problems)} problems of {name}; leave it out for all.")
    return list(problems[:limit] if limit else problems)
