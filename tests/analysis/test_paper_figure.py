"""The figure in the paper's manner, and the numbers that figures draw."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from luspo_cli.analysis.history import read_runs
from luspo_cli.analysis.length_curves import Drawn, plot_length
from luspo_cli.analysis.paper_figure import _build, plot_paper
from luspo_cli.analysis.variants import split_into_variants
from luspo_cli.errors import UsageError


def _rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


@pytest.fixture
def runs(write_run):
    folders = []
    for place, objective in enumerate(("grpo", "gspo", "luspo")):
        for seed in (0, 1):
            folder = write_run(
                f"{objective}-{seed}",
                objective,
                seed,
                lengths=[10.0 + place, 20.0 + place + 2 * seed],
                reward__total__mean=[0.25, 0.5 + seed],
                change={"evaluation": {"samples": 4}},
            )
            (folder / "evals").mkdir()
            held_out = [{"step": 0, "evaluation/accuracy": 0.25}, {"step": 2, "evaluation/accuracy": 0.5 + seed / 4}]
            (folder / "evals/held-out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
            folders.append(folder)
    return read_runs(folders)


def test_the_papers_pairs_stand_in_rows_and_its_numbers_in_columns(runs) -> None:
    drawn: list[Drawn] = []
    figure, caption = _build(runs, split_into_variants(runs), 1, drawn)
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "(a) response length (tokens)", "(b) reward", "(c) held out, avg@4",
        "(d) response length (tokens)", "(e) reward", "(f) held out, avg@4",
    ]  # fmt: skip
    means = [[line.get_ydata().tolist() for line in ax.get_lines() if line.get_gid() == "mean"] for ax in figure.axes]
    assert means[0] == [[10.0, 21.0], [11.0, 22.0]]  # grpo, gspo
    assert means[3] == [[11.0, 22.0], [12.0, 23.0]]  # gspo, luspo
    assert means[2] == [[0.25, 0.625]] * 2  # step 0 is there
    assert caption.startswith("as recorded; thick: mean over runs")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["grpo", "gspo", "luspo"]


def test_without_a_pair_of_the_paper_all_stand_in_one_row(write_run) -> None:
    runs = read_runs([write_run("a", "dapo"), write_run("b", "luspo")])
    figure, _ = _build(runs, split_into_variants(runs), None, [])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["(a) response length (tokens)"]
    assert len([line for line in figure.axes[0].get_lines() if line.get_gid() == "mean"]) == 2


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_suffix_chooses_the_format_and_equal_input_gives_equal_bytes(runs, tmp_path, suffix, start) -> None:
    out = tmp_path / f"figure{suffix}"
    plot_paper(runs, out)
    first = out.read_bytes()
    assert first.startswith(start)
    plot_paper(runs, out)
    assert out.read_bytes() == first
    with pytest.raises(UsageError, match="no suffix that a figure can be written as"):
        plot_paper(runs, tmp_path / "figure.gif")


@pytest.mark.parametrize("draw", [plot_paper, plot_length])
def test_the_drawn_numbers_are_written(runs, tmp_path, draw) -> None:
    draw(runs, tmp_path / "figure.png", smooth=1, data=tmp_path / "out" / "figure.csv")
    rows = _rows(tmp_path / "out" / "figure.csv")
    assert list(rows[0]) == ["metric", "variant", "curve", "step", "value"]
    length = {
        (row["variant"], row["curve"], int(row["step"])): float(row["value"])
        for row in rows
        if row["metric"] == "response_length/mean"
    }
    assert len(length) == 3 * 5 * 2  # two runs, mean, lowest and highest at two steps, of three variants, once each
    assert [length["luspo", curve, 2] for curve in ("luspo-0", "luspo-1", "mean", "lowest", "highest")] == [
        22.0, 24.0, 23.0, 22.0, 24.0
    ]  # fmt: skip


def test_written_numbers_are_the_smoothed_ones(write_run, tmp_path) -> None:
    runs = read_runs([write_run("a", lengths=[3.0, None, 9.0, 12.0, 15.0])])
    plot_length(runs, tmp_path / "f.png", smooth=3, data=tmp_path / "f.csv")
    values = {int(row["step"]): float(row["value"]) for row in _rows(tmp_path / "f.csv")}
    assert values == {1: 3.0, 3: 10.5, 4: 12.0, 5: 13.5}  # step 2 is a gap, and no row
