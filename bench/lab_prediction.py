"""How well the lab predicts folders of runs: `python -m bench.lab_prediction FOLDERS... [--set KEY=VALUE]`.

Each cell (objective and configuration) with its seeds is one row of `luspo lab --from`, fitted to steps 1 to 3 alone. Printed:
the rows, then sign, rank correlation and error over all cells, for the lab and for "no change" (docs/length.md, section 7).
`--set` changes the model for all rows, for example to take an addition out: --set model.answer_noise=0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from luspo_cli.errors import UsageError
from luspo_cli.experiments.lab.forecasts import measures, runs_inside
from luspo_cli.experiments.lab.prediction import DEFAULT_SEEDS, predict_runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--seeds", type=int, default=DEFAULT_SEEDS)
    asked = parser.parse_args()
    rows = [row for row in predict_runs(asked.folders, asked.seeds, asked.sets).rows if row.real is not None]
    if len(rows) < 3:
        raise SystemExit(f"There are {len(rows)} cells with finished runs; a correlation needs three.")
    print("| cell | runs | start | predicted | 95 % of its seeds | real | no change |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        assert row.real is not None
        half = "" if row.real.half_width is None else f" ± {row.real.half_width:.1f}"
        print(
            f"| {row.label} | {row.real.n} | {row.no_change:.1f} | {row.final:.1f} | {row.low:.1f} to {row.high:.1f} |"
            f" {row.real.mean:.1f}{half} | {row.no_change:.1f} |"
        )
    print("\n| forecast | sign | rank correlation | error (tokens) | error of the log |")
    print("| --- | --- | --- | --- | --- |")
    for name, found in measures(rows).items():
        sign = "–" if found.sign is None else f"{found.sign * len(rows):.0f} of {len(rows)}"
        rank = "–" if found.rank is None else f"{found.rank:.2f}"
        print(f"| {name} | {sign} | {rank} | {found.error:.1f} | {found.log_error:.2f} |")
    inside, ends = runs_inside(rows)
    print(f"\n{inside} of {ends} runs ended in the range in which 95 % of the lab's seeds do.")


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        raise SystemExit(str(error)) from None
