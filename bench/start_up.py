"""How long each command takes to answer when it computes nothing: `--help`, and what a user waits for before work begins.

    python -m bench start_up [--repeats 5] [--json FILE]

Processor seconds beside those on the clock: on a machine with other work to do they are the better measure.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from results import Results, luspo_costs, median_of

COMMANDS = (
    "prepare-data", "train", "eval", "compare", "plot-length", "objectives", "inspect", "lab", "fork", "merge",
)  # fmt: skip
STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = Results("start-up", options.json)
    with tempfile.TemporaryDirectory() as folder:
        runs = [_run(Path(folder), name) for name in ("gspo", "luspo")]
        asked = {
            "luspo --help": ["--help"],
            **{f"luspo {name} --help": [name, "--help"] for name in COMMANDS},
            "luspo objectives": ["objectives"],
            "luspo train --preset tiny --dry-run": ["train", "--preset", "tiny", "--dry-run"],
            "luspo inspect RUN": ["inspect", str(runs[0])],
            "luspo compare RUN RUN": ["compare", *map(str, runs), "--figure", str(Path(folder) / "lengths.png")],
        }
        for name, arguments in asked.items():
            results.measured(
                name, lambda arguments=arguments: median_of(lambda: luspo_costs(arguments), options.repeats)
            )
    results.print(("seconds", "processor", "peak MB"))


def _run(folder: Path, objective: str) -> Path:
    """A run folder of a few made-up steps."""
    run = folder / objective
    run.mkdir()
    clip = {"clip_low": 2e-3, "clip_high": 2.5e-3}
    config = {"objective": {"name": objective, **clip}, "run": {"steps": STEPS, "seed": 0}}
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    lines = [json.dumps({"step": step, "response_length/mean": 20.0 + step}) for step in range(1, STEPS + 1)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return run


if __name__ == "__main__":
    main()
