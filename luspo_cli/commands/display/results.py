"""What `luspo eval` prints: results as one line a benchmark, and the benchmarks there are.

A score stands with its interval, its counts and the shares of truncated and unanswered responses, since a low score
with many truncated ones says that the limit was too short. Numbers that do not exist are a dash, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luspo_cli.commands.display.format import DASH, percent
from luspo_cli.evaluation.benchmark import Benchmark
from luspo_cli.metrics.intervals import wilson_interval

if TYPE_CHECKING:
    from rich.table import Table


def result_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row a result (the content of its JSON file)."""
    from rich.table import Table

    judged = any("judge" in content["metrics"] for content in results)
    blind = any("blind" in content for content in results)
    inferred = any(_inferred(content) for content in results)
    table = Table(box=None, pad_edge=False)
    table.add_column("benchmark", no_wrap=True)
    titles: tuple[str, ...] = ("problems", "k", "avg@k %", "95 %", "pass@k %", "maj@k %", "correct")
    titles += ("length", "truncated %", "unanswered %", *(("inferred",) if inferred else ()))
    titles += ("blind %", "seeing - blind") if blind else ()
    for title in (*titles, *(("judge %", "judge failed") if judged else ())):
        table.add_column(title, justify="right", no_wrap=True)
    for content in results:
        table.add_row(*_cells(content, inferred, judged, blind))
    return table


def breakdown(content: Mapping[str, Any], tables: Sequence[str]) -> Table | None:
    """Return accuracy by category and by image size, one line a value; None where the result has no such table."""
    from rich.table import Table

    metrics, other = content["metrics"], content.get("blind", {}).get("metrics")
    shown = {path: cells for path in (*tables, "image_size") if (cells := _at(metrics, path))}
    if not shown:
        return None
    table = Table(box=None, pad_edge=False)
    table.add_column(content["benchmark"], no_wrap=True)
    for title in ("problems", "accuracy %", "95 %", *(() if other is None else ("blind %", "difference"))):
        table.add_column(title, justify="right", no_wrap=True)
    for path, cells in shown.items():
        title = f"by {path.rpartition('.')[2].replace('_', ' ')}"
        if all(_accuracy(cell)[1] is None for cell in cells.values()):
            title += ", mean over concepts"
        table.add_row(title, style="bold")
        for value, cell in cells.items():
            accuracy, total = _accuracy(cell)
            row = [DASH if total is None else f"{total:,}", percent(accuracy)]
            row.append(interval(wilson_interval(accuracy, total)) if total and accuracy is not None else DASH)
            if other is not None:
                blind, _ = _accuracy(_at(other, path)[value])
                row += [percent(blind), DASH if accuracy is None or blind is None else signed(accuracy - blind)]
            table.add_row(f"  {value}", *row)
    return table


def _at(metrics: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    found: Any = metrics
    for part in path.split("."):
        found = found.get(part, {})
    return found


def _accuracy(cell: Any) -> tuple[float | None, int | None]:
    """Accuracy (None of no problems) and number of problems of one line; a mean over parts has none, such as
    We-Math's domains, whose concepts weigh the same however many problems they have."""
    return (cell["accuracy"], cell["total"]) if isinstance(cell, Mapping) else (cell, None)


def _inferred(content: Mapping[str, Any]) -> int:
    """Verdicts that rest on an answer inferred from the text, without a mark or a phrase."""
    return int(content["metrics"].get("read_from", {}).get("inferred", 0))


def _cells(content: Mapping[str, Any], inferred: bool, judged: bool, blind: bool) -> list[str]:
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
    if blind:
        found = content.get("blind")
        cells += [DASH, DASH] if found is None else [percent(found["accuracy"]), _difference(found)]
    if judged:
        cells += [percent(judge and judge["accuracy"]), f"{judge['failed']:,}" if judge else DASH]
    return cells


def _difference(blind: Mapping[str, Any]) -> str:
    bounds = blind["seeing_minus_blind_interval_95"]
    return signed(blind["seeing_minus_blind"]) + ("" if bounds is None else f" ({interval(bounds)})")


def signed(share: float) -> str:
    """Return a difference of shares in percent points, with its sign."""
    return f"{100 * share:+.1f}"


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
