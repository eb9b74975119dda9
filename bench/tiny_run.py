"""What a run of the preset `tiny` takes, by phase, here and in another checkout, run in turn on one core's worth of threads.

    python -m bench tiny_run [--base TREE] [--repeats 3] [--steps 60] [--seed 0] [--json FILE]
    python -m bench tiny_run --preset NAME --set KEY=VALUE ... --threads 2 --steps 2    # another run, the same in both checkouts

The phases are seconds on the clock as the run records them; `start` is what no step has: imports, the model, the check before the
first step. The processor's seconds are the whole process's: on a machine that has other work to do they are the better measure.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from results import Results, print_table

PHASES = {
    "rollout": "time/rollout",
    "reward": "time/reward",
    "logprobs": "time/logprobs",
    "update": "time/update",
    "held-out": "time/evaluation",
}
OWN = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="a checkout to compare this one with")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--set", dest="sets", action="append", default=[], help="a key that both checkouts know")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.base and not (options.base / "luspo_cli").is_dir():
        parser.error(f"--base {options.base} is no checkout: it has no folder luspo_cli")
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    trees = {**({"base": options.base.resolve()} if options.base else {}), "this": OWN}
    kept = {key: value for key, value in vars(options).items() if key not in ("base", "repeats", "json")}
    results = Results("tiny", options.json, **{name: str(tree) for name, tree in trees.items()}, **kept)
    medians = results.interleaved({name: partial(_run, options, tree) for name, tree in trees.items()}, options.repeats)
    asked = f"{options.preset}, {options.steps} steps, threads {options.threads}"
    print(f"{asked}, medians of {options.repeats} in turn; seconds\n")
    by_phase: dict[str, dict[str, float]] = {
        phase: {name: found[phase] for name, found in medians.items()} for phase in medians["this"]
    }
    for row in by_phase.values():
        if row.get("base"):
            row["ratio"] = row["this"] / row["base"]
    print_table("phase", by_phase, (*trees, *(["ratio"] if options.base else [])))
    results.print_machine()


def _run(options: argparse.Namespace, tree: Path) -> dict[str, float]:
    """Seconds of one run by phase, the whole on the clock and of the processor."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(options.threads)}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        settings = [f"run.steps={options.steps}", f"run.seed={options.seed}", f"run.threads={options.threads}"]
        settings += options.sets
        command = [sys.executable, "-m", "luspo_cli", "train", "--preset", options.preset, "--run", str(run)]
        command += [part for setting in settings for part in ("--set", setting)]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        # In the tree itself, so that its presets are the ones that are found.
        subprocess.run(
            command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        clock, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {name: sum(record.get(key) or 0.0 for record in records) for name, key in PHASES.items()}
    steps_s = sum(record["time/total"] for record in records)
    return {
        **found,
        "rest of the steps": steps_s - sum(found.values()),
        "start": clock - steps_s,
        "clock": clock,
        "processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


if __name__ == "__main__":
    main()
