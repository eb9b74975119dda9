"""The one table of benchmarks: name → where it lives. Nothing registers itself; a module is imported when asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from luspo_cli.errors import UsageError, nearest
from luspo_cli.evaluation.benchmark import Benchmark

BENCHMARKS: dict[str, tuple[str, str]] = {
    "aime24": ("luspo_cli.evaluation.benchmarks.aime24", "AIME24"),
    "aime25": ("luspo_cli.evaluation.benchmarks.aime25", "AIME25"),
    "aime26": ("luspo_cli.evaluation.benchmarks.matharena", "AIME26"),
    "hmmt-feb26": ("luspo_cli.evaluation.benchmarks.matharena", "HMMT_FEB26"),
    "brumo25": ("luspo_cli.evaluation.benchmarks.matharena", "BRUMO25"),
    "amc23": ("luspo_cli.evaluation.benchmarks.amc23", "AMC23"),
    "amc23-83": ("luspo_cli.evaluation.benchmarks.amc23", "AMC23_83"),
    "math500": ("luspo_cli.evaluation.benchmarks.math500", "MATH500"),
    "gsm8k": ("luspo_cli.evaluation.benchmarks.gsm8k", "GSM8K"),
    "gsm8k-train": ("luspo_cli.evaluation.benchmarks.gsm8k", "GSM8K_TRAIN"),
    "mathvista": ("luspo_cli.evaluation.benchmarks.mathvista", "MATHVISTA"),
    "wemath": ("luspo_cli.evaluation.benchmarks.wemath", "WEMATH"),
    "logicvista": ("luspo_cli.evaluation.benchmarks.logicvista", "LOGICVISTA"),
}
"""Command-line name → (module, name of the Benchmark instance in it)."""

SUITES: dict[str, tuple[str, ...]] = {
    "text": ("aime24", "aime25", "amc23", "math500", "gsm8k"),
    "vision": ("mathvista", "wemath", "logicvista"),
    "all": ("aime24", "aime25", "amc23", "math500", "gsm8k", "mathvista", "wemath", "logicvista"),
}


def load_benchmark(name: str) -> Benchmark:
    """Return the benchmark called `name` (any case), or described by the file `name`; raises UsageError if there is none."""
    if name.endswith(".toml"):
        from luspo_cli.evaluation.benchmark_description import read_description
        from luspo_cli.evaluation.own_benchmark import OwnBenchmark

        own = OwnBenchmark(read_description(Path(name)), Path(name))
        if own.name.lower() in BENCHMARKS:
            raise UsageError(f"{name}: '{own.name}' is one of luspo's own benchmarks: give it another name = ...")
        return own
    key = name.strip().lower()
    if key not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        raise UsageError(
            f"There is no benchmark '{name}'{nearest(key, BENCHMARKS)}; choose one of: {known}; or give a FILE.toml that"
            " describes your own (docs/own-benchmark.md)."
        )
    module_name, instance = BENCHMARKS[key]
    benchmark = getattr(import_module(module_name), instance)
    assert isinstance(benchmark, Benchmark), f"{module_name}.{instance} is not a Benchmark."
    return benchmark
