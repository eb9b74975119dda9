"""Options that the benchmarks of models share, and what follows from them."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from results import Results, usable_cores

from shared.models import SIZES, random_model

PASSES = ("bfloat16", "float32")
NOT_IN_A_NUMBER = ("repeats", "limit", "smoke", "json", "child", "only", "parts", "sides", "modes", "tricks")
"""Options on which no measurement depends: they say which are made and how often."""


def parser_of(documentation: str | None) -> argparse.ArgumentParser:
    """A parser with the shared options."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder; without it a random one of --size is made")
    parser.add_argument("--size", choices=SIZES, default="60m", help="of the random model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=1800, help="seconds that one measurement may take")
    parser.add_argument("--preload", help="an allocator's library for every process (docs/engine.md)")
    parser.add_argument(
        "--passes",
        choices=PASSES,
        help="type of forward and backward; without it bfloat16 where the device multiplies it, else float32",
    )
    parser.add_argument("--gpu", action="store_true", help="on the CUDA device")
    parser.add_argument(
        "--smoke", action="store_true", help="the smallest sizes in place of all others, to see that it works"
    )
    parser.add_argument("--json", type=Path, help="where to keep what was measured, and to go on")
    return parser


def smallest(options: argparse.Namespace, **sizes: Any) -> None:
    """With `--smoke`: these sizes, a model that nearly nothing is, one repeat."""
    if options.smoke:
        for name, value in {"size": "smoke", "repeats": 1, **sizes}.items():
            setattr(options, name, value)


def results_of(name: str, options: argparse.Namespace) -> Results:
    """The results of a benchmark, which hold for these options alone; `passes` is decided here where nobody named it."""
    if reason := unusable(options):
        sys.exit(f"bench: {reason}")
    options.passes = options.passes or passes_of(options)
    given = {key: value for key, value in vars(options).items() if key not in NOT_IN_A_NUMBER and "python" not in key}
    return Results(name, options.json, **given)


def unusable(options: argparse.Namespace) -> str | None:
    """What is wrong with the shared options, found before anything is measured."""
    if options.repeats < 1 or not options.limit > 0:
        return f"--repeats ({options.repeats}) and --limit ({options.limit:g}) must be more than 0"
    if reason := too_small(options) or wrong_set(getattr(options, "sets", [])):
        return reason
    if options.model and not (Path(options.model) / "config.json").is_file():
        return f"--model {options.model} is no model folder: it has no config.json"
    if options.preload and not loadable(options.preload):
        return f"--preload {options.preload} cannot be loaded: the loader would go on without it"
    if options.gpu:
        from luspo_cli.machine import has_cuda

        return None if has_cuda() else "--gpu needs a CUDA device, and torch finds none"
    return None


def too_small(options: argparse.Namespace) -> str | None:
    """Which size is none: all numbers of a benchmark's options count something, but for a warm-up and a seed."""
    for key, value in vars(options).items():
        numbers = value if isinstance(value, list) else [value]
        if key not in ("warm_up", "seed") and any(type(number) is int and number < 1 for number in numbers):
            return f"--{key.replace('_', '-')} ({', '.join(map(str, numbers))}) must be at least 1"
    return None


def wrong_set(assignments: Sequence[str]) -> str | None:
    """What is wrong with the first `--set` that is none: its form or its key. Its value is for the run to judge."""
    from luspo_cli.config.layers import all_keys, parse_set
    from luspo_cli.errors import UsageError

    keys = {key for key, _ in all_keys()}
    for assignment in assignments:
        try:
            parse_set(assignment)
        except UsageError as error:
            return str(error)
        if (key := assignment.partition("=")[0].strip()) not in keys:
            return f"--set {assignment}: there is no key {key}"
    return None


def loadable(library: str) -> bool:
    """Whether the dynamic loader finds this library: it says so of a process that it starts, and goes on without it.

    Not loaded here: an allocator that comes into a running process is asked to free what it never gave out, and aborts.
    """
    started = subprocess.run([sys.executable, "-c", ""], env={**os.environ, "LD_PRELOAD": library}, capture_output=True)
    return started.returncode == 0 and b"cannot be preloaded" not in started.stderr


def model_of(options: argparse.Namespace, work: Path) -> str:
    """The folder of the model, made in `work` where none is named."""
    return options.model or str(random_model(work / "model", options.size))


def device_of(options: argparse.Namespace) -> str:
    return "cuda" if options.gpu else "cpu"


def passes_of(options: argparse.Namespace) -> str:
    """The type of the passes where none is named: the one that the device multiplies fast."""
    from luspo_cli.machine import multiplies_bfloat16

    return "bfloat16" if options.gpu or multiplies_bfloat16() else "float32"


def threads_of() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or usable_cores())


def environment_of(options: argparse.Namespace) -> Mapping[str, str]:
    """Of every child: no network, the same threads, the allocator if one is named; a GPU only where it is asked for."""
    found = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads_of()), "TOKENIZERS_PARALLELISM": "false"}
    if options.preload:
        found["LD_PRELOAD"] = options.preload
    return found if options.gpu else found | {"CUDA_VISIBLE_DEVICES": ""}
