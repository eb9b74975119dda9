"""The page as a file: self-contained, the same bytes again, model text never as markup, refused under other names."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from doubles.reports import marked, rollout, write_page
from luspo_cli.analysis.history import read_run, read_runs
from luspo_cli.commands.compare import compare_cli
from luspo_cli.errors import UsageError
from luspo_cli.report import curves
from luspo_cli.report.curves import Prediction, axes, curve
from luspo_cli.report.rollouts import StepReader
from luspo_cli.report.selection import choose_rollouts

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> &amp; \u2028 ${x}"


def part(page: Path, name: str) -> Any:
    found = re.search(f'data-part="{name}">([^<]*)</script>', page.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


@pytest.fixture
def page(make_run, tmp_path: Path) -> Path:
    rows = [rollout("<b>p</b>", HOSTILE), rollout("<b>p</b>", "4", status="correct")]
    gspo = make_run("gspo-seed0", "gspo", rollouts={1: rows, 4: rows})
    luspo = make_run("luspo-seed0", rollouts={1: [marked(row) for row in rows]})
    return write_page(tmp_path / "report.html", gspo, luspo)


def test_model_text_stands_nowhere_as_markup(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "alert(1)" not in text
    assert "<b>p" not in text
    assert part(page, "rollouts 0 4")["columns"]["response"] == [HOSTILE, "4"]


def test_the_page_needs_no_network(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "unsafe-inline" not in policy[1].split("style-src")[0]
    outside = text[: text.index("<script>")]  # before the library, which names addresses that it never opens
    assert not re.search(r"https?://|<link|\bsrc=", outside)


def test_the_summary_says_what_is_there_and_what_is_missing(page: Path) -> None:
    summary = part(page, "summary")
    assert [run["name"] for run in summary["runs"]] == ["gspo-seed0", "luspo-seed0"]
    assert [[one["step"] for one in run["steps"]] for run in summary["rollouts"]["runs"]] == [[1, 4], [1]]
    assert summary["rollouts"]["rule"] == "All 6 stored rollouts are on this page."
    older, newer = (run["notes"] for run in summary["rollouts"]["runs"])
    assert "hold no clip_high_fraction, clip_low_fraction, loss_weight, sequence_ratio, token_log_ratios" in older[0]
    assert "No tokenizer is stored with luspo-seed0" in newer[0]
    assert summary["axes"][0] == {
        "steps": [1, 2, 3, 4], "tokens": [100, 200, 300, 400], "seconds": [2, 4, 6, 8],
    }  # fmt: skip
    assert [table["title"] for table in summary["tables"] if "title" in table][:2] == [
        "Single runs", "Means over seeds",
    ]  # fmt: skip
    equations = {one["label"]: one["equation"] for one in summary["formulas"]}
    assert equations["luspo"].startswith("L = −(1/N) Σ_i |y_i| · min(s_i A_i, clip(s_i, 1−0.002, 1+0.0025) A_i)")
    differing = {key["key"]: key for key in summary["configuration"]["keys"]}
    assert differing["objective.name"] == {"key": "objective.name", "expected": True, "values": ["gspo", "luspo"]}


def test_equal_input_gives_equal_bytes(make_run, tmp_path: Path) -> None:
    run = make_run("a", rollouts={1: [marked(rollout("p", "1"))]})
    one, other = (write_page(tmp_path / name, run).read_bytes() for name in ("one.html", "other.html"))
    assert one == other


def test_log_ratios_come_in_tenths_of_a_thousandth(make_run) -> None:
    row = marked(rollout("p", "12"), [0.00126, -0.5, float("0")])
    run = make_run("a", rollouts={1: [row, marked(rollout("p", "3"), token_log_ratios=None)]})
    reader = StepReader(read_run(run))
    found = reader.read(choose_rollouts(read_runs([run]))[0])
    assert found["columns"]["log_ratios"] == [[13, -5000, 0], None]
    assert found["groups"] == [{"id": "p", "prompt": "What is p?", "answer": "4", "rows": [0, 2]}]


def test_long_runs_are_drawn_by_means(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "POINTS", 2)
    run = read_run(make_run("a", metrics={"reward/accuracy/mean": [0.25, 0.75, None, 1.0]}))
    assert curves.stride([run]) == 2
    assert axes(run, 2) == {"steps": [1.5, 3.5], "tokens": [150, 350], "seconds": [3, 7]}
    assert curve(run, "reward/accuracy/mean", 2) == {"values": [0.5, 1]}
    assert curve(run, "policy/entropy", 2) is None


def test_a_prediction_is_handed_to_its_variant(make_run, tmp_path: Path) -> None:
    forecast = Prediction("luspo", "lab", "response_length/mean", [3, 4], [21.0, 22.0], [20.0, 20.5], [22.0, 23.5])
    page = write_page(tmp_path / "report.html", make_run("a"), predictions=[forecast])
    assert part(page, "summary")["predictions"] == [
        {"variant": 0, "label": "lab", "metric": "response_length/mean", "steps": [3, 4], "mean": [21, 22],
         "low": [20, 20.5], "high": [22, 23.5]}
    ]  # fmt: skip


def test_compare_writes_the_page_and_says_so(make_run, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(compare_cli)
    run, out = make_run("a"), tmp_path / "below/report.html"
    result = CliRunner().invoke(app, [str(run), "--html", str(out)])
    assert result.exit_code == 0, result.output
    assert f"report: {out}" in result.stdout
    assert part(out, "summary")["kept"] is None
    alone = CliRunner().invoke(app, [str(run), "--predict"])
    assert isinstance(alone.exception, UsageError)
    wrong = make_run("b", "gspo", metrics={"reward/accuracy/mean": [0.0] * 4})
    late = make_run("c", "sapo")
    config = json.loads((late / "config.json").read_text())
    (late / "config.json").write_text(json.dumps(config | {"rollout": {"lag": 2}}))
    predicted = CliRunner().invoke(app, [str(run), str(wrong), str(late), "--html", str(out), "--predict"])
    assert predicted.exit_code == 0, predicted.output
    assert "luspo: fitted, " in predicted.stderr
    summary = part(out, "summary")
    (forecast,) = summary["predictions"]
    assert summary["variants"][forecast["variant"]]["label"] == "luspo"
    assert forecast["steps"] == [1, 2, 3, 4]
    assert any(note.startswith("No prediction for gspo: ") and "accuracy" in note for note in summary["notes"])
    assert any(note.startswith("No prediction for sapo") and "rollout.lag = 2" in note for note in summary["notes"])
    refused = CliRunner().invoke(app, [str(run), "--html", str(tmp_path / "report.pdf")])
    assert isinstance(refused.exception, UsageError)


def test_a_damaged_file_of_rollouts_is_named(make_run, tmp_path: Path) -> None:
    run = make_run("a", rollouts={1: [rollout("p", "1")]})
    (run / "rollouts/step-000004.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UsageError, match=r"step-000004\.parquet cannot be read"):
        write_page(tmp_path / "report.html", run)
