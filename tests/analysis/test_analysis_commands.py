"""`luspo plot-length` and `luspo compare` as they are called."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from luspo_cli.commands.compare import COMPARE_EXAMPLES, compare_cli
from luspo_cli.commands.plot_length import PLOT_LENGTH_EXAMPLES, plot_length_cli
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.objective_text import listed_names
from luspo_cli.errors import RunError, UsageError
from luspo_cli.experiments import sweep
from luspo_cli.experiments.sweep import Interrupted, Training


@pytest.fixture
def call():
    app = typer.Typer()
    app.command("plot-length")(plot_length_cli)
    app.command("compare")(compare_cli)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def two_runs(write_run) -> list[Path]:
    return [write_run("gspo-seed0", "gspo", lengths=[20.0, 10.0]), write_run("luspo-seed0", lengths=[20.0, 20.0])]


def test_plot_length_writes_the_figure_and_says_so(call, two_runs, tmp_path) -> None:
    out = tmp_path / "out" / "lengths.svg"
    result = call("plot-length", *two_runs, "--out", out, "--smooth", 1)
    assert result.exit_code == 0, result.output
    assert out.read_bytes().startswith(b"<?xml")
    clip = "clip range: gspo 0.002 / 0.0025, luspo 0.002 / 0.0025"
    assert f"{out}: each step as recorded; {clip}." in result.stdout
    assert "note: No accuracy is recorded in gspo-seed0, luspo-seed0." in result.stderr


def test_plot_length_as_json(call, two_runs, tmp_path) -> None:
    out = tmp_path / "lengths.png"
    result = call("plot-length", *two_runs, "-o", out, "--no-accuracy", "--linear", "--json")
    assert json.loads(result.stdout) == {
        "path": str(out),
        "caption": "each step as recorded; clip range: gspo 0.002 / 0.0025, luspo 0.002 / 0.0025",
        "notes": [],
        "clip_ranges": {"gspo": [0.002, 0.0025], "luspo": [0.002, 0.0025]},
    }


def test_plot_length_in_the_papers_style(call, two_runs, tmp_path) -> None:
    out = tmp_path / "figure.pdf"
    result = call("plot-length", *two_runs, "-o", out, "--style", "paper", "--data", tmp_path / "f.csv")
    assert result.exit_code == 0, result.output
    assert out.read_bytes().startswith(b"%PDF")
    assert "response_length/mean,gspo,mean,1,20.0" in (tmp_path / "f.csv").read_text()
    refused = call("plot-length", *two_runs, "-o", out, "--style", "paper", "--no-accuracy")
    assert "--no-accuracy does not go with --style paper" in str(refused.exception)


def test_compare_draws_the_paper_figure_and_writes_its_numbers(call, two_runs, tmp_path) -> None:
    figure = ("--figure", tmp_path / "f.svg", "--style", "paper", "--data", tmp_path / "f.csv")
    assert call("compare", *two_runs, *figure).exit_code == 0
    assert (tmp_path / "f.svg").read_bytes().startswith(b"<?xml")
    assert (tmp_path / "f.csv").read_text().startswith("metric,variant,curve,step,value\n")
    assert "name it with --figure FILE" in str(call("compare", *two_runs, "--style", "paper").exception)


def test_plot_length_needs_a_run(call) -> None:
    assert call("plot-length").exit_code == 2


def test_plot_length_refuses_a_suffix(call, two_runs, tmp_path) -> None:
    result = call("plot-length", *two_runs, "--out", tmp_path / "lengths.gif")
    assert isinstance(result.exception, UsageError)
    assert not (tmp_path / "lengths.gif").exists()


def test_compare_prints_the_table_and_writes_the_figure_on_wish(call, two_runs, tmp_path) -> None:
    result = call("compare", *two_runs)
    assert result.exit_code == 0, result.output
    assert "luspo − gspo" in result.stdout
    assert "+10.0" in result.stdout
    assert list(tmp_path.glob("*.png")) == []
    figure = tmp_path / "lengths.png"
    assert f"figure: {figure}" in call("compare", *two_runs, "--figure", figure).stdout
    assert figure.is_file()


def test_a_figure_that_cannot_be_written_does_not_cost_the_table(call, two_runs, tmp_path, monkeypatch) -> None:
    def full(path: Path, *_: object) -> None:
        raise RunError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("luspo_cli.analysis.drawing.replace_file", full)
    result = call("compare", *two_runs, "--figure", tmp_path / "lengths.png")
    assert isinstance(result.exception, RunError)
    assert "luspo − gspo" in result.stdout
    assert "figure:" not in result.stdout


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--figure", "lengths.bmp", "has no suffix that a figure can be written as; end it in .png, .svg, .pdf."),
        ("--html", "page.png", "has no suffix that a page can be written as; end it in .html, .htm."),
        ("--data", "lengths.png", "has no suffix that a table of numbers can be written as; end it in .csv."),
        ("--figure", "folder.png", "is a folder; name a file in it"),
        ("--html", "file/page.html", "cannot be written: "),
        ("--figure", "file/deep/lengths.svg", "cannot be written: "),
    ],
)
def test_outputs_are_checked_before_anything_is_computed(call, two_runs, tmp_path, option, name, message) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("no folder")
    figure = () if option == "--figure" else ("--figure", tmp_path / "lengths.png")
    result = call("compare", *two_runs, *figure, option, tmp_path / name)
    assert isinstance(result.exception, UsageError)
    assert f"{option} {tmp_path / name} {message}" in str(result.exception)
    assert result.stdout == ""
    assert not (tmp_path / "lengths.png").exists()


def test_the_numbers_of_a_figure_do_not_replace_it(call, two_runs, tmp_path) -> None:
    figure = tmp_path / "a.png"
    assert call("plot-length", *two_runs, "--out", figure).exit_code == 0
    before = figure.read_bytes()
    result = call("plot-length", *two_runs, "--out", figure, "--data", figure)
    assert f"--data {figure} has no suffix that a table of numbers can be written as" in str(result.exception)
    assert figure.read_bytes() == before


def test_missing_folders_of_outputs_are_made(call, two_runs, tmp_path) -> None:
    out = tmp_path / "new" / "deep"
    words = ("--figure", out / "a.png", "--data", out / "a.csv", "--html", out / "a.html")
    assert call("compare", *two_runs, *words).exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.csv", "a.html", "a.png"]


def test_a_parent_folder_is_compared_with_a_note(call, two_runs, tmp_path) -> None:
    result = call("compare", tmp_path)
    assert result.exit_code == 0, result.output
    assert f"warning: 2 runs found below {tmp_path}." in result.stdout


def test_runs_are_compared_at_their_best_value(call, write_run, tmp_path) -> None:
    for rate, accuracy in ((1e-4, 0.5), (3e-4, 0.75)):
        for seed in (0, 1):
            change = {"update": {"learning_rate": rate}}
            write_run(f"{rate}-{seed}", "gspo", seed, reward__accuracy__mean=[accuracy] * 3, change=change)
    result = call("compare", tmp_path, "--sweep", "update.learning_rate", "--figure", tmp_path / "f.png", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [run["name"] for run in report["runs"]] == ["0.0003-0", "0.0003-1"]
    assert report["tuning"][0]["best"] == "0.0003"
    assert (tmp_path / "f.png").is_file()


def test_compare_as_json_prints_nothing_else(call, two_runs) -> None:
    report = json.loads(call("compare", *two_runs, "--json").stdout)
    assert [variant["label"] for variant in report["variants"]] == ["gspo", "luspo"]
    assert report["figure"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either run folders or --preset"),
        (["runs/a", "--preset", "tiny"], "either run folders or --preset"),
        (["runs/a", "--seeds", "2"], "--seeds goes with --preset"),
        (["runs/a", "--set", "a.b=1"], "--set goes with --preset"),
        (["runs/a", "--sweep", "a.b=1,2"], "values go with --preset"),
        (["--preset", "tiny", "--sweep", "update.learning_rate"], "--sweep wants section.key=value,value"),
        (["--preset", "tiny", "--sweep", "run.seed=1,2"], "choose another key"),
        (["--preset", "tiny", "--objectives", "gspo,lupso"], r"Unknown objective 'lupso' \(did you mean 'luspo'\?\)"),
        (["--preset", "tiny", "--objectives", "gspo,gspo"], "names gspo twice"),
        (["--preset", "tiny", "--objectives", ","], "is empty"),
        (["--preset", "tiny", "--set", "run.seed=3"], "the comparison itself sets this"),
        (["--preset", "tiny", "--set", "objective.name=gspo"], "the comparison itself sets this"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(call, words, message) -> None:
    result = call("compare", *words)
    assert isinstance(result.exception, UsageError)
    with pytest.raises(UsageError, match=message):
        raise result.exception


def test_seeds_below_one_are_bad_usage(call) -> None:
    assert call("compare", "--preset", "tiny", "--seeds", 0).exit_code == 2


def test_names_are_split_at_commas() -> None:
    assert listed_names(" grpo, luspo ,") == ["grpo", "luspo"]


CHILD = """
import json, pathlib, sys
run = pathlib.Path(sys.argv[1])
run.mkdir(parents=True, exist_ok=True)
(run / "config.json").write_text(sys.argv[2])
rows = [{"step": step, "response_length/mean": 10.0 * step} for step in (1, 2)]
(run / "metrics.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in rows))
(run / "checkpoints/step-000002").mkdir(parents=True)
(run / "checkpoints/step-000002/checkpoint.json").write_text('{"step": 2, "files": {}}')
"""


def _wanted(objective: str, seed: int) -> dict[str, Any]:
    return {"objective": {"name": objective}, "run": {"seed": seed, "steps": 2}}


def _command(training: Training) -> list[str]:
    config = json.dumps(_wanted(training.objective, training.seed))
    return [sys.executable, "-S", "-E", "-c", CHILD, str(training.run), config]


def test_a_preset_is_trained_compared_and_drawn(call, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sweep, "configuration", lambda objective, seed, preset, sets: _wanted(objective, seed))
    monkeypatch.setattr(sweep, "resolved", lambda *_: resolve_train(preset="tiny"))  # its size alone counts
    monkeypatch.setattr(sweep, "train_command", lambda training, preset, sets: _command(training))
    words = (
        "compare",
        "--preset",
        "presets/tiny2.5.toml",
        "--objectives",
        "gspo,luspo",
        "--seeds",
        2,
        "--out",
        tmp_path,
    )
    first = call(*words)
    assert first.exit_code == 0, first.output
    folder = tmp_path / "tiny2.5"
    names = ["gspo-seed0", "gspo-seed1", "lengths.png", "luspo-seed0", "luspo-seed1"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert "0 finished and used again, 0 to go on, 4 to start" in first.stderr
    assert "luspo-seed1: finished (step 2/2, length 20.0 tokens)" in first.stderr
    assert f"figure: {folder / 'lengths.png'}" in first.stdout
    again = call(*words, "--json")
    assert "4 finished and used again" in again.stderr
    assert len(json.loads(again.stdout)["runs"]) == 4


def test_an_interruption_exits_with_130_and_the_command_to_go_on(call, tmp_path, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> list[Path]:
        raise Interrupted("gspo-seed0 also failed")

    monkeypatch.setattr(sweep, "train_runs", interrupted)
    words = ["--preset", "tiny", "--objectives", "gspo,luspo", "--seeds", "2", "--set", "data.train=a b", "--out", "o"]
    monkeypatch.setattr(sys, "argv", ["luspo", "compare", *words])
    result = call("compare", *words)
    assert result.exit_code == 130
    assert "gspo-seed0 also failed" in result.stderr
    assert shlex.split(result.stderr.split("Go on with: ")[1]) == ["luspo", "compare", *words]


@pytest.mark.parametrize("module", ["commands.plot_length", "commands.compare", "experiments.sweep"])
def test_importing_a_command_imports_nothing_heavy(module: str) -> None:
    heavy = {"torch", "pandas", "numpy", "matplotlib", "transformers", "datasets", "pydantic"}
    code = f"import sys, luspo_cli.{module}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("example", "function"),
    [(line, "plot-length") for line in PLOT_LENGTH_EXAMPLES] + [(line, "compare") for line in COMPARE_EXAMPLES],
)
def test_examples_use_options_that_exist(call, example: str, function: str) -> None:
    words = shlex.split(example)
    assert words[:2] == ["luspo", function]
    help_text = call(function, "--help").output
    for option in (word for word in words if word.startswith("--")):
        assert option in help_text, option
