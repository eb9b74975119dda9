"""Whole LoRA runs on a model of seconds: what a checkpoint holds, exact resume, and who can read the adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from doubles.runs import records, train
from luspo_cli.config.model import ModelConfig
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import UsageError

pytest.importorskip("peft", reason="adapters need the extra lora: pip install 'luspo[lora]'")

LORA = (
    "model.lora.rank=4",
    "model.compute_dtype=bfloat16",
    "model.gradient_checkpointing=true",
    "objective.kl_coefficient=0.1",
    "run.steps=4",
    "run.checkpoint_every=2",
    "evaluation.every=0",
)


@pytest.fixture(scope="module")
def whole(small_run: Callable[..., TrainRun], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run of four steps that nothing disturbed, with a KL term to the base."""
    path = tmp_path_factory.mktemp("lora") / "run"
    train(small_run(*LORA), path)
    return path


def newest(path: Path) -> Path:
    return path / "checkpoints" / "step-000004"


def test_a_checkpoint_holds_the_adapter_alone(whole: Path) -> None:
    assert sorted(entry.name for entry in newest(whole).iterdir()) == ["adapter", "checkpoint.json", "trainer"]
    files = {file.name for file in (newest(whole) / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= files
    assert {Path(name).suffix for name in files} <= {".safetensors", ".json", ".jinja"}
    weights = load_file(newest(whole) / "adapter/adapter_model.safetensors")
    assert len(weights) == 7 * 2
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name)  # all of them have moved
    state = load_file(newest(whole) / "trainer/optimizer.safetensors")
    assert {name.rpartition("::")[2] for name in state} == {"step", "exp_avg", "exp_avg_sq"}
    assert len(state) == 3 * len(weights)
    assert json.loads((whole / "provenance.json").read_text())["packages"]["peft"]


def test_the_reference_is_the_base_and_costs_no_memory(whole: Path) -> None:
    found = records(whole)
    assert [record["step"] for record in found] == [1, 2, 3, 4]
    # At step 1 only the second of two mini-batches has moved away from the base; later all have.
    assert 0 <= found[0]["policy/kl_ref"] < found[-1]["policy/kl_ref"]


def test_a_killed_run_ends_with_the_same_bits(
    whole: Path, small_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError):
        train(small_run(*LORA), tmp_path / "run", crash_after=2)
    train(small_run(*LORA), tmp_path / "run", "resume")
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "trainer/optimizer.safetensors"):
        assert (newest(tmp_path / "run") / name).read_bytes() == (newest(whole) / name).read_bytes(), name


def test_a_base_that_was_altered_is_not_gone_on_from(
    whole: Path, small_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(newest(tmp_path / "run"))
    stored = json.loads((tmp_path / "run/provenance.json").read_text())
    stored["model"]["weights"] = {"model.safetensors": "0" * 64}
    (tmp_path / "run/provenance.json").write_text(json.dumps(stored))
    before = (tmp_path / "run/provenance.json").read_bytes()
    with pytest.raises(UsageError, match=r"changed since the run began: .* of the starting model"):
        train(small_run(*LORA), tmp_path / "run", "resume")
    assert (tmp_path / "run/provenance.json").read_bytes() == before


def test_eval_finds_base_and_adapter(whole: Path) -> None:
    from luspo_cli.evaluation.sampling import load_sampling_model
    from luspo_cli.evaluation.weights import find_weights

    weights = find_weights(str(whole), None)
    assert (weights.path, weights.step) == (str(newest(whole) / "adapter"), 4)
    assert weights.reads_images() is False
    base = json.loads((newest(whole) / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    assert weights.fingerprint() not in (None, find_weights(base, None).fingerprint())
    assert find_weights(str(newest(whole) / "adapter"), None).fingerprint() == weights.fingerprint()
    model = load_sampling_model(weights.path, "float32", 8).sampler.model  # type: ignore[attr-defined]
    plain = load_sampling_model(base, "float32", 8).sampler.model  # type: ignore[attr-defined]
    moved = {
        name
        for (name, weight), own in zip(model.named_parameters(), plain.parameters(), strict=True)
        if not torch.equal(weight, own)
    }
    assert {name.split(".")[-2] for name in moved} == set(ModelConfig().lora.targets)


def test_merge_writes_a_model_that_anybody_can_load(whole: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM
    from typer.testing import CliRunner

    from luspo_cli.app import app
    from luspo_cli.policy.loading import load_model

    done = CliRunner().invoke(app, ["merge", str(whole), "--out", str(tmp_path / "merged"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["step"] == 4
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32, attn_implementation="luspo")
    folded = load_model(ModelConfig(path=str(newest(whole) / "adapter"))).model
    for (name, weight), own in zip(merged.named_parameters(), folded.parameters(), strict=True):
        assert torch.equal(weight, own), name
    again = CliRunner().invoke(app, ["merge", str(whole), "--out", str(tmp_path / "merged")])
    assert isinstance(again.exception, UsageError)
    assert "exists" in str(again.exception)
    assert [entry.name for entry in tmp_path.iterdir()] == ["merged"]
