"""LoRA on problems with images, end to end: trained, stopped and gone on with, over two processes, merged and evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from doubles import rank_cases
from doubles.image_runs import image_run, image_run_folder
from doubles.pictures import pictures_folder
from doubles.processes import run_processes
from doubles.runs import assert_same_records, records, train, without_times
from luspo_cli.app import app
from luspo_cli.config.model import ModelConfig
from luspo_cli.policy.loading import load_model

pytest.importorskip("peft", reason="adapters need the extra lora: pip install 'luspo[lora]'")

RATE = 1e-3
LORA = ("model.lora.rank=4", "objective.kl_coefficient=0.1", f"update.learning_rate={RATE}")
SHOWN = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_run_folder(tmp_path_factory.mktemp("lora-images"))


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run of two steps that nothing disturbed, in float32."""
    train(image_run(folder, *LORA), folder / "whole")
    return folder / "whole"


def adapter(run: Path, step: int = 2) -> Path:
    return run / f"checkpoints/step-{step:06d}/adapter"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(ModelConfig(path=str(path))).model.state_dict())


def responses(run: Path) -> list[Any]:
    return [
        pyarrow.parquet.read_table(run / f"rollouts/step-{step:06d}.parquet")["response_tokens"].to_pylist()
        for step in (1, 2)
    ]


def test_the_language_model_alone_has_moved(folder: Path, whole: Path) -> None:
    found = records(whole)
    assert [record["step"] for record in found] == [1, 2]
    assert all(record["update/grad_norm"] > 0 and record["ratio/noise_floor"] < 1e-5 for record in found)
    assert 0 <= found[0]["policy/kl_ref"] < found[1]["policy/kl_ref"]  # against the model with its adapters off
    assert not any("visual" in name for name in load_file(adapter(whole) / "adapter_model.safetensors"))
    before, after = weights(folder / "model"), weights(adapter(whole))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[1] for name in moved} == {"language_model"}
    assert len(moved) == 2 * 7


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_a_stopped_run_goes_on_bit_for_bit(folder: Path, whole: Path, tmp_path: Path, compute: str) -> None:
    config = image_run(folder, *LORA, f"model.compute_dtype={compute}")
    unbroken = whole
    if compute != "float32":
        unbroken = tmp_path / "whole"
        train(config, unbroken)
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path / "part", crash_after=1)
    assert [path.name for path in (tmp_path / "part/checkpoints").iterdir()] == ["step-000001"]
    assert any("going on after step 1" in text for text in train(config, tmp_path / "part", "resume"))
    assert without_times(tmp_path / "part") == without_times(unbroken)
    assert responses(tmp_path / "part") == responses(unbroken)
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "trainer/optimizer.safetensors"):
        one, other = (adapter(run).parent / name for run in (tmp_path / "part", unbroken))
        assert one.read_bytes() == other.read_bytes(), name
    held_out = [(run / "evals/held-out.jsonl").read_text() for run in (tmp_path / "part", unbroken)]
    assert held_out[0] == held_out[1]


def test_two_processes_make_the_run_of_one(folder: Path, whole: Path, tmp_path: Path) -> None:
    """Within the order of sums: equal responses, losses close, adapters within a hundredth of a step on average."""
    config = image_run(folder, *LORA)
    (tmp_path / "two").mkdir()
    assert run_processes(2, rank_cases.run_session, config.model_dump_json(), tmp_path / "two", 0) == [0, 0]
    said = [(tmp_path / f"two/said-{rank}.txt").read_text() for rank in (0, 1)]
    assert len(records(tmp_path / "two")) == 2, said
    assert responses(tmp_path / "two") == responses(whole)
    assert_same_records(tmp_path / "two", whole)
    ours, theirs = (load_file(adapter(run) / "adapter_model.safetensors") for run in (whole, tmp_path / "two"))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert float((weight - theirs[name]).abs().mean()) < 1e-2 * RATE, name


def invoke(*words: Any) -> Any:
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_run_and_its_merged_model_answer_alike(folder: Path, whole: Path, tmp_path: Path) -> None:
    merged = invoke("merge", whole, "--out", tmp_path / "merged", "--json")
    assert (merged["step"], Path(merged["base"])) == (2, folder / "model")
    own, plain = weights(adapter(whole)), weights(tmp_path / "merged")
    assert own.keys() == plain.keys()
    assert all(torch.equal(own[name], plain[name]) for name in own)
    data = pictures_folder(tmp_path / "mathvista", SHOWN)
    found = {}
    for name, model in (("run", whole), ("merged", tmp_path / "merged"), ("base", folder / "model")):
        words = ("eval", model, "--benchmark", "mathvista", "--data", data, "--out", tmp_path / name, "--limit", SHOWN)
        drawing = ("--samples", 2, "--max-response-tokens", 8, "--dtype", "float32", "--sampler", "in-process")
        (result,) = invoke(*words, *drawing, "--json")["results"]
        rows = pyarrow.parquet.read_table(tmp_path / f"{name}/MathVista.parquet").to_pylist()
        found[name] = (result["metrics"], [(row["id"], row["response"], row["response_length"]) for row in rows])
    assert len(found["run"][1]) == 2 * SHOWN
    assert found["run"] == found["merged"]
    assert found["run"][1] != found["base"][1]
