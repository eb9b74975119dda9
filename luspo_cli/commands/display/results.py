"""What `luspo eval` prints: results as one line a benchmark, and the benchmarks there are.

A score stands with its interval, its counts and the shares of truncated and unanswered responses, since a low score
with many truncated ones says that the limit was too short. Numbers that do not exist are a dash, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luspo_cli.commands.display.format import DASH, percent
from luspo_cli.evaluation.benchmark import Benchmark

if TYPE_CHECKING:
    from rich.table import Table


def result_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row a result (the content of its JSON file)."""
    from rich.table import Table

    judged = any("judge" in content["metrics"] for content in results)
    inferred = any(_inferred(content) for content in results)
    table = Table(box=None, pad_edge=False)
    table.add_column("benchmark", no_wrap=True)
    titles: tuple[str, ...] = ("problems", "k", "avg@k %", "95 %", "pass@k %", "maj@k %", "correct")
    titles += ("length", "truncated %", "unanswered %", *(("inferred",) if inferred else ()))
    for title in (*titles, *(("judge %", "judge failed") if judged else ())):
        table.add_column(title, justify="right", no_wrap=True)
    for content in results:
        table.add_row(*_cells(content, inferred, judged))
    return table


def _inferred(content: Mapping[str, Any]) -> int:
    """Verdicts that rest on an answer inferred from the text, without a mark or a phrase."""
    return int(content["metrics"].get("read_from", {}).get("inferred", 0))


def _cells(content: Mapping[str, Any], inferred: bool, judged: bool) -> list[str]:
    metrics, samples = content["metrics"], content["n_samples"]
    problems, size = content["n_problems"], content.get("benchmark_size", content["n_problems"])
    judge = metrics.get("judge")
    cells = [
        content["benchmark"] + (f" ({content['mode']})" if content["mode"] != "rule" else ""),
        f"{problems:,}" if problems == size else f"{problems:,} of {size:,}",
        str(samples),
        percent(metrics["accuracy"]),
        interval(metrics["accuracy_interval_95"]),
        percent(metrics.get(f"pass@{samples}")),
        percent(metrics.get(f"maj@{samples}")),
        f"{metrics['correct']:,}/{metrics['samples']:,}",
        f"{length:.1f}" if (length := metrics.get("response_length/mean")) is not None else DASH,
        percent(metrics.get("truncated_fraction")),
        percent(metrics["no_answer_fraction"]),
    ]
    if inferred:
        cells.append(f"{_inferred(content):,}")
    if judged:
        cells += [percent(judge and judge["accuracy"]), f"{judge['failed']:,}" if judge else DASH]
    return cells


def warnings(content: Mapping[str, Any]) -> list[str]:
    """Return what a reader of the score should know, one sentence each."""
    name, metrics, responses = content["benchmark"], content["metrics"], content["responses"]
    found = []
    for kind, meaning in (
        ("missing", "problems have no response and count as wrong"),
        ("unknown", "lines have ids that are no problem's and are left out"),
        ("duplicate", "problems have several lines, each of which is a sample"),
        ("empty", "responses are empty and count as wrong"),
    ):
        if responses.get(kind):
            found.append(f"{name}: {responses[kind]:,} {meaning}.")
    for kind in ("timeout", "crashed"):
        if metrics["reasons"].get(kind):
            found.append(f"{name}: {metrics['reasons'][kind]:,} comparisons ended as '{kind}' and count as wrong.")
    if (cut := metrics.get("truncated_fraction") or 0) >= 0.1:
        found.append(f"{name}: {cut:.0%} of the responses reached the limit; a longer --max-response-tokens may help.")
    return found


def interval(bounds: Sequence[float] | None) -> str:
    """Return an interval in percent, and a dash for None."""
    return DASH if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"


def benchmark_json(name: str, benchmark: Benchmark) -> dict[str, Any]:
    """Return what `--list --json` says of one benchmark."""
    return {
        "name": name,
        "title": benchmark.name,
        "version": benchmark.version,
        "problems": benchmark.size,
        "modality": benchmark.modality,
        "modes": list(benchmark.modes),
        "prompts": list(benchmark.prompts),
        "default_prompt": benchmark.default_prompt,
        "licence": benchmark.licence,
        "hub_ids": list(benchmark.hub_ids),
    }


def benchmark_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the benchmarks of `benchmark_json` as a table; the default prompt comes first."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("name", "problems", "modality", "version", "modes", "prompts", "licence", "hub ids"):
        right = title in ("problems", "version")
        table.add_column(title, justify="right" if right else "left", no_wrap=title == "name", overflow="fold")
    for row in rows:
        prompts = sorted(row["prompts"], key=lambda name: name != row["default_prompt"])
        cells = (
            row["name"],
            f"{row['problems']:,}",
            row["modality"],
            str(row["version"]),
            ", ".join(row["modes"]),
            ", ".join(prompts),
            row["licence"],
            "\n".join(row["hub_ids"]) or DASH,
        )
        table.add_row(*map(Text, cells))
    return table
