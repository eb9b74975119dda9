"""verl's own merger, by the launcher's command, on a checkpoint of one shard: the weights come out as they were.

Run with `make test-peers`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from luspo_cli.config.layers import resolve_train
from luspo_cli.runs.checkpoints import damage, find_checkpoints
from luspo_cli.training.verl.checkpoints import LATEST, merge_checkpoints, sharded
from luspo_cli.training.verl.overrides import VerlFiles

pytestmark = pytest.mark.verl


def save_shard(actor: Path) -> dict[str, torch.Tensor]:
    """What verl's FSDP engine writes with one process; returns the weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, architectures=["Qwen2ForCausalLM"],
    )  # fmt: skip
    weights = {name: value.to(torch.bfloat16) for name, value in Qwen2ForCausalLM(config).state_dict().items()}
    config.save_pretrained(actor / "huggingface")
    torch.save(weights, actor / "model_world_size_1_rank_0.pt")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 1}))
    return weights


def test_the_merged_checkpoint_is_a_whole_model_folder(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    pytest.importorskip("verl", reason="needs verl in another environment: make peers")
    files = VerlFiles(tmp_path / "verl")
    weights = save_shard(files.checkpoints / "global_step_2" / "actor")
    save_shard(files.checkpoints / "global_step_4" / "actor")  # of a save that was cut short: LATEST does not know it
    (files.checkpoints / LATEST).write_text("2")
    assert list(sharded(files)) == [2]
    run = resolve_train(preset="qwen2.5-7b", sets=["run.engine=verl"])
    assert merge_checkpoints(run, files, tmp_path / "checkpoints", sys.executable) == [2]
    (checkpoint,) = find_checkpoints(tmp_path / "checkpoints")
    assert checkpoint.step == 2
    assert damage(checkpoint) is None
    found = load_file(checkpoint.path / "model" / "model.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name].to(torch.bfloat16), value) for name, value in weights.items())
    assert merge_checkpoints(run, files, tmp_path / "checkpoints", sys.executable) == []  # it is there already


def test_a_merger_that_fails_is_one_sentence(tmp_path: Path) -> None:
    from luspo_cli.errors import RunError

    files = VerlFiles(tmp_path / "verl")
    (files.checkpoints / "global_step_2" / "actor").mkdir(parents=True)
    (files.checkpoints / LATEST).write_text("2")
    run = resolve_train(preset="qwen2.5-7b", sets=["run.engine=verl"])
    with pytest.raises(RunError, match=r"verl's merger failed on .*; its shards are whole"):
        merge_checkpoints(run, files, tmp_path / "checkpoints", sys.executable)
    assert find_checkpoints(tmp_path / "checkpoints") == []
