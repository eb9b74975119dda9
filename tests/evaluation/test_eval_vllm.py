"""`luspo eval --sampler vllm`: which sampler is taken, and a whole evaluation with the real vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from doubles.evaluation import aime_folder
from doubles.image_runs import image_run, image_run_folder
from doubles.pictures import pictures_folder
from doubles.runs import train
from luspo_cli.app import app
from luspo_cli.errors import UsageError
from luspo_cli.rollout import samplers

ROOT = Path(__file__).resolve().parents[2]


def small_model(folder: Path) -> Path:
    """A random Qwen2 whose heads have 32 numbers, as vLLM's CPU kernels want them."""
    sys.path.insert(0, str(ROOT / "tests/rollout/vllm"))
    try:
        from vllm_models import tiny_model
    finally:
        sys.path.pop(0)
    tiny_model(folder, tied=True)
    return folder


def refused(*words: str) -> str:
    result = CliRunner().invoke(app, ["eval", *words])
    assert isinstance(result.exception, UsageError), result.output
    return str(result.exception)


def test_the_sampler_is_checked_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "vllm_is_installed", lambda: False)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    data = aime_folder(tmp_path / "aime24")
    words = [str(tmp_path / "model"), "--benchmark", "aime24", "--data", str(data)]
    assert "make vllm" in refused(*words, "--sampler", "vllm")
    assert "'auto', 'in-process' or 'vllm'" in refused(*words, "--sampler", "vllm-server")
    assert "--sampler" in refused("--benchmark", "aime24", "--responses", "x.jsonl", "--sampler", "vllm")


def evaluated(model: Path, benchmark: str, data: Path, out: Path, *more: object) -> None:
    """`luspo eval` in float32 with vLLM unless told, in a process of its own."""
    words = [model, "--benchmark", benchmark, "--data", data, "--out", out, "--dtype", "float32", "--sampler", "vllm"]
    done = subprocess.run(
        [sys.executable, "-m", "luspo_cli", "eval", *map(str, [*words, *more])],
        capture_output=True,
        text=True,
        cwd=out.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.vllm
def test_an_evaluation_with_vllm_says_so_and_repeats(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    model, data = small_model(tmp_path / "model"), aime_folder(tmp_path / "aime24")
    results = []
    for out in ("one", "two"):
        drawing = ("--samples", 2, "--max-response-tokens", 12, "--limit", 3)
        evaluated(model, "aime24", data, tmp_path / out, *drawing)
        results.append(json.loads((tmp_path / out / "AIME24.json").read_text()))
    assert results[0]["sampling"]["sampler"] == "vllm"
    assert results[0]["n_samples"] == 2
    assert results[0]["problems"] == results[1]["problems"]


@pytest.mark.vllm
def test_an_adapter_of_a_model_that_sees_answers_as_its_merged_model(tmp_path: Path) -> None:
    """The same weights reach vLLM pushed and from the merged model's files; greedy, it draws what the in-process sampler does."""
    pytest.importorskip("vllm")
    pytest.importorskip("peft")
    image_run_folder(tmp_path, scale=2, end=[1, *range(72, 104)])
    config = image_run(tmp_path, "model.lora.rank=4", "update.learning_rate=1e-2", "rollout.sampler=in-process")
    train(config, tmp_path / "run")
    merged = CliRunner().invoke(app, ["merge", str(tmp_path / "run"), "--out", str(tmp_path / "merged")])
    assert merged.exit_code == 0, merged.output
    data = pictures_folder(tmp_path / "mathvista", 8)
    found = []
    for out, model, sampler in (("a", "run", "vllm"), ("b", "merged", "vllm"), ("c", "run", "in-process")):
        drawing = ("--samples", 1, "--temperature", 0, "--max-response-tokens", 8, "--limit", 8, "--sampler", sampler)
        evaluated(tmp_path / model, "mathvista", data, tmp_path / out, *drawing)
        rows = pyarrow.parquet.read_table(tmp_path / out / "MathVista.parquet").to_pylist()
        found.append([(row["id"], row["response"], row["response_length"]) for row in rows])
    assert len(found[0]) == 8
    assert found[0] == found[1] == found[2]
    assert len({response for _, response, _ in found[0]}) > 1
