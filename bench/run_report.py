"""What a run cost and what came of it, as a Markdown table: held-out accuracy before and after, seconds by phase, memory.

    python bench/run_report.py runs/gsm8k-luspo runs/gsm8k-gspo

Seconds are medians over steps, so that a step in which the machine was busy elsewhere does not count.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PHASES = (
    "time/rollout",
    "time/prompts",
    "time/reward",
    "time/logprobs",
    "time/update",
    "time/optimizer",
    "time/diagnostics",
    "time/weights",
    "time/evaluation",
    "time/total",
)


def main() -> None:
    runs = [Path(argument) for argument in sys.argv[1:]]
    if not runs:
        sys.exit(__doc__)
    steps = [_lines(run / "metrics.jsonl") for run in runs]
    held_out = [_lines(run / "evals" / "held-out.jsonl") for run in runs]
    print("| | " + " | ".join(run.name for run in runs) + " |")
    print("| --- |" + " ---: |" * len(runs))
    _row("steps", [str(len(records)) for records in steps])
    for label, which in (("before", 0), ("after", -1)):
        _row(f"held-out accuracy {label} (95 % interval)", [_accuracy(records[which]) for records in held_out])
        _row(
            f"held-out response length {label} (tokens)",
            [f"{records[which]['evaluation/response_length/mean']:.1f}" for records in held_out],
        )
        _row(
            f"held-out truncated {label}",
            [f"{records[which]['evaluation/truncated_fraction']:.1%}" for records in held_out],
        )
    for label, part in (("first five steps", slice(0, 5)), ("last five steps", slice(-5, None))):
        for name, key in (("response length", "response_length/mean"), ("accuracy", "reward/accuracy/mean")):
            _row(f"{name}, {label}", [f"{_mean(records[part], key):.3g}" for records in steps])
    for name, key, format_number in (
        ("groups mixed", "group/mixed_fraction", _percent),
        ("sequences or tokens clipped", None, _percent),
        ("ratio noise floor (mean)", "ratio/noise_floor", _scientific),
        ("gradient norm (median)", "update/grad_norm", _short),
        ("optimizer steps with clipped gradient", "update/clipped_gradient", _percent),
    ):
        _row(name, [format_number(_number(records, key)) for records in steps])
    for phase in PHASES:
        _row(f"{phase} (s, median step)", [_seconds(records, phase) for records in steps])
    _row("response tokens per second of sampling", [f"{_tokens_per_second(records):.0f}" for records in steps])
    _row("peak memory of the process (GiB)", [_peak(run) for run in runs])


def _row(name: str, cells: list[str]) -> None:
    print(f"| {name} | " + " | ".join(cells) + " |")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line.strip()]


def _accuracy(record: dict[str, Any]) -> str:
    low, high = record["evaluation/accuracy_low"], record["evaluation/accuracy_high"]
    return f"{record['evaluation/accuracy']:.1%} ({low:.1%} to {high:.1%}, n = {record['evaluation/problems']})"


def _mean(records: list[dict[str, Any]], key: str) -> float:
    return statistics.fmean(record[key] for record in records if record.get(key) is not None)


def _number(records: list[dict[str, Any]], key: str | None) -> float:
    if key is None:
        return _mean(records, "objective/clip_low_fraction") + _mean(records, "objective/clip_high_fraction")
    if key == "update/grad_norm":
        return statistics.median(record[key] for record in records if key in record)
    return _mean(records, key)


def _seconds(records: list[dict[str, Any]], phase: str) -> str:
    """The median over the steps that have this phase; a dash where none has, as in a run of an earlier version."""
    found = [record[phase] for record in records if phase in record]
    return f"{statistics.median(found):.3g}" if found else "-"


def _tokens_per_second(records: list[dict[str, Any]]) -> float:
    totals = [0, *(record["tokens/total"] for record in records)]
    return statistics.median(
        (after - before) / record["time/rollout"]
        for before, after, record in zip(totals, totals[1:], records, strict=False)
    )


def _peak(run: Path) -> str:
    log = run / "run.log"
    found = re.findall(r"peak memory of this process ([\d.]+) GiB", log.read_text()) if log.exists() else []
    return found[-1] if found else "not recorded"


_percent: Callable[[float], str] = "{:.1%}".format
_scientific: Callable[[float], str] = "{:.1e}".format
_short: Callable[[float], str] = "{:.3g}".format


if __name__ == "__main__":
    main()
