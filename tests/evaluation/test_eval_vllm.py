"""`luspo eval --sampler vllm`: which sampler is taken, and a whole evaluation with the real vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from doubles.evaluation import aime_folder
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


@pytest.mark.vllm
def test_an_evaluation_with_vllm_says_so_and_repeats(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    model, data = small_model(tmp_path / "model"), aime_folder(tmp_path / "aime24")
    results = []
    for out in ("one", "two"):
        words = [model, "--benchmark", "aime24", "--data", data, "--samples", "2", "--max-response-tokens", "12"]
        words += ["--dtype", "float32", "--sampler", "vllm", "--limit", "3", "--out", tmp_path / out]
        done = subprocess.run(
            [sys.executable, "-m", "luspo_cli", "eval", *map(str, words)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(json.loads((tmp_path / out / "AIME24.json").read_text()))
    assert results[0]["sampling"]["sampler"] == "vllm"
    assert results[0]["n_samples"] == 2
    assert results[0]["problems"] == results[1]["problems"]
