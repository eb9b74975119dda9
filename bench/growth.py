"""How step time and memory of luspo grow with rows, response length, model size and processes, with the exponents that fit.

    python -m bench growth [--parts rows length size processes] [--lengths 128 512 2048 8192] [--json FILE]
    python -m bench growth --smoke

One step with every row trained and all responses of the limit's length, a random model. Each part changes one thing and
measures the baseline again. An exponent p says that the number grows as the thing to the power p: 1 in proportion, 2 with its
square, 0 not at all; the fixed part of the program makes it smaller than it becomes for larger sizes. Processes share the
cores of this machine: `peak GiB` is then that of the largest process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from results import FAILED, Values, exponent, luspo_costs, print_table
from shared.child import BENCH, run_child
from shared.engine import ONE_UPDATE, sums_in
from shared.models import SIZES, parameters_of, qwen2_config, random_model
from shared.options import environment_of, parser_of, results_of, smallest, threads_of

PARTS = ("rows", "length", "size", "processes")
NUMBERS = ("step", "rollout", "update", "peak GiB", "rollout peak GiB", "update peak GiB")
Case = dict[str, Any]


def main() -> None:
    options = _parsed()
    results = results_of("growth", options)
    base: Case = {"problems": 4, "tokens": options.lengths[0], "size": options.size, "processes": 1}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = sums_in(work / "data")
        for part in options.parts:
            _print_part(options, results, work, data, part, _cases(options, base, part))
    results.print_machine()


def _parsed() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--problems", type=int, nargs="+", default=[4, 8, 16], help="of a step, in groups of --group-size"
    )
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048, 8192], help="tokens of a response")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["60m", "0.5b"])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--micro-tokens", type=int, default=4096, help="of a micro-batch")
    parser.add_argument("--set", dest="sets", action="append", default=[], help="a setting of luspo's")
    options = parser.parse_args()
    smallest(options, problems=[2, 4], lengths=[16, 64], sizes=["smoke"], micro_tokens=256)
    return options


def _cases(options: argparse.Namespace, base: Case, part: str) -> dict[float, Case]:
    """What the part changes → the case; the baseline is among them."""
    if part == "rows":
        return {number * options.group_size: {**base, "problems": number} for number in options.problems}
    if part == "length":
        return {length: {**base, "problems": 1, "tokens": length} for length in options.lengths}
    if part == "processes":
        # As many problems in all of them as the largest number of processes can share.
        problems = max(base["problems"], *options.processes)
        return {number: {**base, "problems": problems, "processes": number} for number in options.processes}
    return {sum(parameters_of(qwen2_config(size)).values()): {**base, "size": size} for size in options.sizes}


def _print_part(
    options: argparse.Namespace, results: Any, work: Path, data: str, part: str, cases: dict[float, Case]
) -> None:
    names = {value: f"{part} {value:,}" for value in cases}
    run = _processes if part == "processes" else _step
    measures: dict[str, Callable[[], Values]] = {
        names[value]: partial(run, options, work, data, case) for value, case in cases.items()
    }
    medians = results.interleaved(measures, options.repeats)
    fitted = {
        column: exponent([(value, medians[names[value]][column]) for value in cases if column in medians[names[value]]])
        for column in NUMBERS
    }
    print(f"\n## {part}: medians of {options.repeats}, seconds and GiB\n")
    print_table(part, {**medians, "exponent": {key: p for key, p in fitted.items() if p == p}}, NUMBERS)


def _model(work: Path, size: str) -> str:
    folder = work / f"model-{size}"
    return str(folder if folder.is_dir() else random_model(folder, size))


def _step(options: argparse.Namespace, work: Path, data: str, case: Case) -> Values:
    """A measured step in a process of its own."""
    spec = {
        "model": options.model or _model(work, case["size"]),
        "data": data,
        "problems_a_step": case["problems"],
        "group_size": options.group_size,
        "tokens": case["tokens"],
        "steps": 2,
        "warm_up": 1,
        "micro_tokens": options.micro_tokens,
        "mode": "mixed",
        "threads": 0 if options.gpu else threads_of(),
        "sets": [f"model.compute_dtype={options.passes}", *options.sets],
        "off": [],
    }
    path = work / "specification.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    command = [sys.executable, str(BENCH / "shared/step_luspo.py"), str(path)]
    return run_child(command, limit_s=options.limit, environment=environment_of(options))


def _processes(options: argparse.Namespace, work: Path, data: str, case: Case) -> Values:
    """`luspo train` in so many processes; every row is trained, with its advantage or without, and lengths are natural."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        run = Path(folder) / "run"
        sets = [
            f"model.path={options.model or _model(work, case['size'])}", f"data.train={data}", *ONE_UPDATE,
            f"rollout.problems={case['problems']}", f"rollout.group_size={options.group_size}", "run.steps=2",
            f"rollout.max_response_tokens={case['tokens']}", f"update.tokens_per_micro_batch={options.micro_tokens}",
            "update.skip_rows_without_advantage=false", f"model.compute_dtype={options.passes}", *options.sets,
        ]  # fmt: skip
        asked = ["train", "--preset", "qwen2.5-0.5b", "--objective", "luspo", "--run", str(run)]
        asked += [part for setting in sets for part in ("--set", setting)]
        if case["processes"] > 1:
            asked += ["--processes", str(case["processes"])]
        before = dict(os.environ)
        os.environ.update(environment_of(options))
        try:
            costs = luspo_costs(asked)
        finally:
            os.environ.clear()
            os.environ.update(before)
        if FAILED in costs:
            return costs
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
    times = {"step": "time/total", "rollout": "time/rollout", "update": "time/update"}
    found: dict[str, Any] = {name: median(step[key] for step in steps) for name, key in times.items()}
    return found | {"peak GiB": costs["peak MB"] * 1e6 / 2**30}


if __name__ == "__main__":
    main()
