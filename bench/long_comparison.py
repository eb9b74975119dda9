"""`luspo compare` over 12 made-up runs of 10,000 steps: seconds and peak memory, table and figure included.

python -m bench long_comparison [--runs 12] [--steps 10000] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from report import make_run
from results import Results, luspo_costs, median_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = Results("luspo compare", options.json)
    with tempfile.TemporaryDirectory() as folder:
        runs = [make_run(Path(folder), place, options.steps, tokens=20) for place in range(options.runs)]
        asked = ["compare", *map(str, runs), "--figure", str(Path(folder) / "lengths.png")]
        name = f"{options.runs} runs of {options.steps:,} steps"
        results.measured(name, lambda: median_of(lambda: luspo_costs(asked), options.repeats))
    results.print(("seconds", "processor", "peak MB"))


if __name__ == "__main__":
    main()
