"""We-Math and LogicVista with their real images: `luspo eval` on a small random Qwen2.5-VL with a real processor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from doubles.vision import vision_model, vision_processor
from luspo_cli.app import app

LIMIT, SAMPLES = 6, 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny-vl"
    vision_processor().save_pretrained(folder)
    vision_model().save_pretrained(folder)
    return folder


def test_real_images_reach_the_model_and_a_second_call_draws_nothing(
    model: Path, data_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    data = data_folder("logicvista").parent
    data_folder("wemath")
    words = ["eval", model, "--benchmark", "wemath,logicvista", "--data", data, "--out", tmp_path, "--limit", LIMIT]
    words += ["--samples", SAMPLES, "--max-response-tokens", 6, "--max-rows", 4, "--dtype", "float32", "--json"]
    first = CliRunner().invoke(app, list(map(str, words)))
    assert first.exit_code == 0, first.output
    results = {one["benchmark"]: one for one in json.loads(first.stdout)["results"]}
    assert set(results) == {"We-Math", "LogicVista"}
    for name, size in (("We-Math", 1740), ("LogicVista", 448)):
        one = results[name]
        assert (one["n_problems"], one["benchmark_size"], one["n_samples"]) == (LIMIT, size, SAMPLES)
        assert (one["drawn"], one["found"]) == (LIMIT * SAMPLES, 0)
        rows = pyarrow.parquet.read_table(tmp_path / f"{name}.parquet").to_pylist()
        assert len(rows) == LIMIT * SAMPLES
        assert {row["stop_reason"] for row in rows} <= {"end", "length"}
        assert all(1 <= row["response_length"] <= 6 for row in rows)
    assert "strict" in results["We-Math"]["metrics"]
    assert "skill" in results["LogicVista"]["metrics"]
    again = CliRunner().invoke(app, list(map(str, words)))
    assert [(one["drawn"], one["found"]) for one in json.loads(again.stdout)["results"]] == [(0, LIMIT * SAMPLES)] * 2


def test_an_image_that_is_missing_is_one_sentence_and_leaves_no_result(
    model: Path, data_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    source = data_folder("logicvista")
    data = tmp_path / "logicvista"
    data.mkdir()
    (data / "dataset.json").write_bytes((source / "dataset.json").read_bytes())
    words = ["eval", model, "--benchmark", "logicvista", "--data", data, "--out", tmp_path / "out", "--limit", 2]
    result = CliRunner().invoke(app, list(map(str, [*words, "--max-response-tokens", 4])))
    assert result.exit_code != 0
    assert "v1_0.png" in str(result.exception)
    assert not (tmp_path / "out/LogicVista.json").exists()
