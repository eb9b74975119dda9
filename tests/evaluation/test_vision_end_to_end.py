"""A tiny Qwen2.5-VL checkpoint that looks, through `luspo eval` from end to end.

MathVista's layout has made pictures here, We-Math and LogicVista their real ones. Stored responses scored again from a file
have the same scores, row by row.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from doubles.pictures import pictures_folder
from doubles.vision import looking_model, vision_processor
from luspo_cli.app import app
from luspo_cli.evaluation.benchmarks.mathvista import MATHVISTA
from luspo_cli.evaluation.sampling import BenchmarkPrompts, SamplingModel

LEARNT, SHOWN = 16, 48
DRAWING = ("--max-response-tokens", 12, "--dtype", "float32", "--sampler", "in-process")
COUNTS = (
    "correct",
    "samples",
    "read_from",
    "decided_by",
    "truncated_fraction",
    "response_length/mean",
    "no_answer_fraction",
)
"""Metrics that do not depend on problems without a response."""
LETTERS = {"red": "A", "green": "B", "blue": "C", "yellow": "D"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures_folder(tmp_path_factory.mktemp("data") / "mathvista", SHOWN)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """Learnt from the first 16 pictures; the other 32 have shades that it has not seen."""
    folder = tmp_path_factory.mktemp("model") / "looking"
    processor = vision_processor()
    problems = MATHVISTA.problems(pictures)[:LEARNT]
    reading = SamplingModel(None, processor.tokenizer, None, processor)  # type: ignore[arg-type]
    prompts = BenchmarkPrompts(reading, MATHVISTA, problems)[:]
    answers = [f"\\boxed{{{LETTERS[problem.gold]}}}" for problem in problems]
    looking_model(processor, prompts, answers).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def invoke(*words: Any) -> Any:
    result = CliRunner().invoke(app, ["eval", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def evaluated(model: Path, name: str, data: Path, out: Path, *words: Any) -> dict[str, Any]:
    result = invoke(model, "--benchmark", name, "--data", data, "--out", out, *DRAWING, *words)
    (found,) = json.loads(result.stdout)["results"]
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["noise", "other"])
def test_a_model_that_looks_is_near_chance_without_its_pictures(
    model: Path, pictures: Path, tmp_path: Path, how: str
) -> None:
    """Four colours in turn: chance is 0.25 of 48, and 0.45 is more than three standard errors above it."""
    words = ("--limit", SHOWN, "--temperature", 0, "--set", f"sampling.blind={how}")
    found = evaluated(model, "mathvista", pictures, tmp_path, *words, "--json")
    blind = found["blind"]
    assert found["metrics"]["accuracy"] >= 0.9
    assert blind["accuracy"] <= 0.45
    assert blind["seeing_minus_blind_interval_95"][0] > 0.3
    table = invoke(model, "--benchmark", "mathvista", "--data", pictures, "--out", tmp_path, *DRAWING, *words).stdout
    head, row = table.splitlines()[:2]
    assert head.split()[-5:] == ["blind", "%", "seeing", "-", "blind"]
    assert row.startswith("MathVista  48 of 1,000 ")
    lines = table.splitlines()
    for start in (
        "by task",
        "  plots ",
        "  photographs ",
        "by skills",
        "by category",
        "by image size",
        "  up to 3,136 ",
    ):
        assert any(line.startswith(start) for line in lines), start


def handed_in(samples: Path, file: Path) -> Path:
    """Write the samples of a result as a responses file."""
    lines: dict[str, dict[str, Any]] = {}
    for row in pyarrow.parquet.read_table(samples).to_pylist():
        line = lines.setdefault(row["id"], {"id": row["id"], "responses": [], "truncated": [], "response_length": []})
        line["responses"].append(row["response"])
        line["truncated"].append(row["stop_reason"] == "length")
        line["response_length"].append(row["response_length"])
    file.write_text("".join(json.dumps(line) + "\n" for line in lines.values()), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("mathvista", 40),
        ("wemath", 40),
        ("logicvista", 0),
        pytest.param("mathvista", 0, marks=pytest.mark.slow),
        pytest.param("wemath", 0, marks=pytest.mark.slow),
    ],
)
def test_drawn_responses_and_the_same_ones_from_a_file_have_the_same_scores(
    model: Path, pictures: Path, data_folder: Callable[[str], Path], tmp_path: Path, name: str, limit: int
) -> None:
    data = pictures if name == "mathvista" else data_folder(name)
    words = ("--samples", 2, "--limit", limit) if limit else ("--samples", 1)
    found = evaluated(model, name, data, tmp_path / "out", *words, "--json")
    drawn = json.loads(Path(found["file"]).read_text())
    responses = handed_in(Path(found["samples_file"]), tmp_path / "responses.jsonl")
    invoke("--benchmark", name, "--data", data, "--responses", responses, "--out", tmp_path / "scores.json")
    scored = json.loads((tmp_path / "scores.json").read_text())
    number = limit or drawn["benchmark_size"]
    assert scored["problems"][:number] == drawn["problems"]
    assert {sample["reason"] for problem in scored["problems"][number:] for sample in problem["samples"]} <= {"missing"}
    for key in scored["metrics"] if number == drawn["benchmark_size"] else COUNTS:
        assert scored["metrics"][key] == drawn["metrics"][key], key
