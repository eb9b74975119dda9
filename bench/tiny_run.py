"""What a run of the preset `tiny` takes, by phase, in one checkout and in another, run in turn on one core's worth of threads.

    python -m bench.tiny_run --base TREE [--pairs 2] [--steps 60] [--seed 0]

The phases are seconds on the clock as the run records them; `start` is what no step has: imports, the model, the check before the
first step. The processor's seconds are the whole process's: on a machine that has other work to do they are the better measure.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
    parser.add_argument("--base", type=Path, required=True, help="a checkout to compare this one with")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    base, own = [], []
    for _ in range(options.pairs):
        base.append(_run(options.base.resolve(), options.steps, options.seed))
        own.append(_run(OWN, options.steps, options.seed))
    print(f"tiny, {options.steps} steps, one thread, {options.pairs} pairs in turn; seconds, median over the runs")
    print(f"{'':>18}{'base':>9}{'this':>9}{'ratio':>8}")
    for phase in base[0]:
        before, now = (statistics.median(run[phase] for run in runs) for runs in (base, own))
        print(f"{phase:>18}{before:>9.2f}{now:>9.2f}{now / before if before else float('nan'):>8.2f}")


def _run(tree: Path, steps: int, seed: int) -> dict[str, float]:
    """Seconds of one run by phase, the whole on the clock and of the processor."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        settings = [f"run.steps={steps}", f"run.seed={seed}", "run.threads=1"]
        command = [sys.executable, "-m", "luspo_cli", "train", "--preset", "tiny", "--run", str(run)]
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
