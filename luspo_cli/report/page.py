"""`luspo compare --html`: one self-contained file that reaches no network, whatever the responses in it say.

Data is gzip in base64 inside script elements of a type that no browser executes, unpacked when it is looked at: one part for
the summary, one a metric, one a stored step. The page puts it into text nodes only, and its content security policy allows
the two scripts written here, by their hashes, and no request at all.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from luspo_cli import __version__
from luspo_cli.analysis.history import RunHistory
from luspo_cli.analysis.length_curves import SMOOTHING_SHARE, choose_styles
from luspo_cli.analysis.outputs import PAGE, check_output
from luspo_cli.analysis.variants import split_into_variants
from luspo_cli.files import replace_file
from luspo_cli.metrics.intervals import student_quantile
from luspo_cli.metrics.names import metric_of
from luspo_cli.report import curves
from luspo_cli.report.kept import kept_maps
from luspo_cli.report.rollouts import RATIO_UNIT, StepReader
from luspo_cli.report.selection import LIMIT, choose_rollouts, rule
from luspo_cli.report.tables import configuration, formulas, parts_of
from luspo_cli.runs.stored_rollouts import count_rows, stored_steps

SCRIPTS = ("start.js", "curves.js", "tables.js", "kept.js", "rollouts.js", "main.js")
MOST_BYTES = 13_000_000
"""Room of the rollouts in the file, so that library, curves and they stay under 25 MB."""
FIRST_TRY, LEAST_TRY = 200, 200
"""Rollouts of a run in a first, small page; and of all runs below which size is no reason to leave more out."""


@dataclass
class Parts:
    """The parts of the file's data by name, each as base64 of gzip of JSON."""

    encoded: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: Any) -> str:
        """Store a part and return its name."""
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        self.encoded[name] = base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
        return name

    def size(self) -> int:
        return sum(map(len, self.encoded.values()))


def write_report(
    runs: Sequence[RunHistory],
    tables: RenderableType,
    out: Path,
    *,
    predictions: Sequence[curves.Prediction] = (),
    notes: Sequence[str] = (),
    limit: int = LIMIT,
) -> None:
    """Write the page of `runs`, whole or not at all; `tables` is what the comparison prints on a terminal.

    `predictions` are drawn over the curves, `notes` stand below them.
    """
    check_output(out, PAGE)
    replace_file(
        out, page(runs, tables, predictions=predictions, notes=notes, limit=limit).encode(), "or name another file"
    )


def page(
    runs: Sequence[RunHistory],
    tables: RenderableType,
    *,
    predictions: Sequence[curves.Prediction] = (),
    notes: Sequence[str] = (),
    limit: int = LIMIT,
) -> str:
    """Return the page's HTML. Equal input gives equal bytes."""
    variants = split_into_variants(runs)
    ordered = [run for variant in variants for run in variant.runs]
    styles = choose_styles(variants)
    parts = Parts()
    rollouts, stored = _rollouts(ordered, limit)
    stride = curves.stride(ordered)
    parts.add(
        "summary",
        {
            "version": __version__,
            "runs": [_run(run) for run in ordered],
            "variants": [
                {
                    "label": variant.label,
                    "colour": styles[variant.label][0],
                    "dash": _dash(styles[variant.label][1]),
                    "runs": [ordered.index(run) for run in variant.runs],
                }
                for variant in variants
            ],
            "student": [None, None, *(student_quantile(runs - 1) for runs in range(2, len(ordered) + 1))],
            "stride": stride,
            "axes": [curves.axes(run, stride) for run in ordered],
            "metrics": [_metric(name, ordered, stride, parts) for name in curves.metrics_of(ordered)],
            "window": max(len(run.table) for run in ordered) // stride // SMOOTHING_SHARE | 1,
            "notes": [*([] if stride == 1 else [curves.downsampling_note(stride)]), *notes],
            "tables": parts_of(tables),
            "configuration": configuration(ordered),
            "formulas": formulas(variants),
            "predictions": [curves.prediction_json(one, list(styles)) for one in predictions],
            "kept": kept_maps(ordered),
            "rollouts": stored,
        },
    )
    return _html({**parts.encoded, **rollouts.encoded})


def _run(run: RunHistory) -> dict[str, Any]:
    return {
        "name": run.name,
        "objective": run.objective,
        "seed": run.seed,
        "source": run.source,
        "steps": run.last_step,
        "planned": run.planned_steps,
    }


def _metric(name: str, runs: Sequence[RunHistory], stride: int, parts: Parts) -> dict[str, Any]:
    known = metric_of(name)
    part = parts.add(f"metric {name}", [curves.curve(run, name, stride) for run in runs])
    return {
        "name": name,
        "part": part,
        "unit": known.unit if known else "1",
        "meaning": known.meaning if known else "",
        "sparse": name.startswith(curves.EVALUATION),
    }


def _rollouts(runs: Sequence[RunHistory], limit: int) -> tuple[Parts, dict[str, Any]]:
    """The parts of the stored rollouts, and what the page says of them; fewer than `limit` where they would be too large."""
    stored = sum(count_rows(file) for run in runs for file in stored_steps(run.path).values())
    # A small page first: what a rollout takes there says how many fit.
    few = min(limit, FIRST_TRY * len(runs))
    parts, said = _fill(runs, few)
    if few < limit and said["shown"] < stored:
        few = min(limit, _fitting(parts, said))
        parts, said = _fill(runs, few)
        while parts.size() > MOST_BYTES and _fitting(parts, said) < said["shown"] and few > LEAST_TRY:
            few = max(LEAST_TRY, _fitting(parts, said))
            parts, said = _fill(runs, few)
    return parts, {**said, "rule": rule(said["shown"], stored, few, limit)}


def _fitting(parts: Parts, said: dict[str, Any]) -> int:
    return int(0.93 * MOST_BYTES * said["shown"] / max(1, parts.size()))


def _fill(runs: Sequence[RunHistory], limit: int) -> tuple[Parts, dict[str, Any]]:
    parts = Parts()
    readers = [StepReader(run) for run in runs]
    steps: list[list[dict[str, Any]]] = [[] for _ in runs]
    chosen = choose_rollouts(runs, limit)
    for one in chosen:
        name = parts.add(f"rollouts {one.run} {one.step}", readers[one.run].read(one))
        steps[one.run].append({"step": one.step, "part": name, "shown": one.rollouts, "stored": one.stored})
    shown = sum(one.rollouts for one in chosen)
    said = {
        "shown": shown,
        "unit": RATIO_UNIT,
        "runs": [{"steps": found, "notes": reader.notes()} for found, reader in zip(steps, readers, strict=True)],
    }
    return parts, said


def _dash(style: Any) -> str:
    """Matplotlib's line style as plotly writes it, for lines two pixels wide."""
    return "solid" if isinstance(style, str) else ",".join(f"{2 * length:g}px" for length in style[1])


def _html(parts: dict[str, str]) -> str:
    from plotly.offline import get_plotlyjs

    room = files("luspo_cli.report") / "assets"
    script = "\n".join((room / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();'
    library = get_plotlyjs()
    # An element would end early at its own closing tag.
    if "</script" in library or "</script" in script:
        raise AssertionError("a script of the page holds a closing script tag")
    allowed = " ".join(f"'sha256-{_digest(text)}'" for text in (library, script))
    data = "\n".join(
        f'<script type="text/plain" data-part="{escape(name)}">{value}</script>' for name, value in parts.items()
    )
    filled = (room / "page.html").read_text(encoding="utf-8")
    style = (room / "page.css").read_text(encoding="utf-8")
    for mark, value in (
        ("ALLOWED", allowed),
        ("STYLE", style),
        ("DATA", data),
        ("LIBRARY", library),
        ("SCRIPT", script),
    ):
        before, _, after = filled.partition(f"{{{{{mark}}}}}")
        filled = f"{before}{value}{after}"
    return filled


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
