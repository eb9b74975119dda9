"""The dry run: what it estimates, what it finds missing, and that it touches nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luspo_cli.config.layers import resolve_train
from luspo_cli.errors import UsageError
from luspo_cli.training.plan import GIB, estimate_memory, make_plan


def test_memory_of_weights_and_optimizer_by_hand() -> None:
    """7.6 G parameters in float32: weights and gradients 28.4 GiB each, two moments 56.7 GiB."""
    plan = make_plan(resolve_train(preset="qwen2.5-7b"))
    assert plan.parameters == 7_615_616_512
    assert plan.memory_gib["weights"] == plan.memory_gib["gradients"] == pytest.approx(28.37, abs=0.01)
    assert plan.memory_gib["optimizer"] == pytest.approx(56.74, abs=0.01)
    assert plan.memory_gib["reference"] == 0
    # 256 rows * (2048 + 8192) tokens * 28 layers * 2 (keys, values) * 4 heads * 128 numbers * 2 bytes
    assert plan.memory_gib["key_value_cache"] == pytest.approx(256 * 10240 * 28 * 2 * 4 * 128 * 2 / GIB, abs=0.01)
    assert plan.memory_gib["update_peak"] > plan.memory_gib["weights"] + plan.memory_gib["optimizer"]


def test_what_saves_memory_lowers_the_estimate() -> None:
    def peak(*sets: str) -> dict[str, float]:
        config = resolve_train(preset="qwen2.5-7b", sets=list(sets))
        return estimate_memory(config, config.model.shape)

    base = peak()
    assert peak("model.gradient_checkpointing=false")["update_peak"] > 1.5 * base["update_peak"]
    assert peak("update.tokens_per_micro_batch=10240")["activations"] < base["activations"]
    assert peak("rollout.max_rows=64")["key_value_cache"] == base["key_value_cache"] / 4
    assert peak("objective.kl_coefficient=0.1")["reference"] == base["weights"]


def test_several_processes_share_out_what_the_configuration_says() -> None:
    """Eight: an eighth of weights, gradients and moments each when sharded, and a bfloat16 copy to sample with either way."""
    config, sharded = (resolve_train(preset="qwen2.5-7b", sets=[f"model.sharding={how}"]) for how in ("none", "full"))
    one, eight, shares = make_plan(config), make_plan(config, 8), make_plan(sharded, 8)
    assert eight.memory_gib["weights"] == one.memory_gib["weights"] == pytest.approx(28.37, abs=0.01)
    for part, whole in (("weights", 28.37), ("gradients", 28.37), ("optimizer", 56.74)):
        assert shares.memory_gib[part] == pytest.approx(whole / 8, abs=0.01)
    assert shares.memory_gib["compute_copies"] == one.memory_gib["compute_copies"] == pytest.approx(28.37, abs=0.01)
    # Embeddings and head, 2 * 152064 * 3584, and one of 28 layers, in float32.
    outside = 2 * 152064 * 3584
    assert shares.memory_gib["gathered"] == pytest.approx(
        4 * (outside + (7_615_616_512 - outside) / 28) / GIB, abs=0.01
    )
    assert shares.memory_gib["update_peak"] < 0.6 * eight.memory_gib["update_peak"]
    assert make_plan(sharded).memory_gib == one.memory_gib  # nothing to share out


def test_work_by_hand() -> None:
    plan = make_plan(resolve_train(preset="tiny"))
    assert plan.work == {
        "steps": 60,
        "rollouts_per_step": 256,
        "optimizer_steps": 240,
        "rollouts_per_optimizer_step": 64,
        "response_tokens_at_most": 60 * 256 * 96,
    }
    assert plan.missing == []


def test_everything_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    missing = make_plan(resolve_train(preset="qwen2.5-7b")).missing
    assert [sentence.split()[0].rstrip(":") for sentence in missing] == ["model.path", "data.train", "data.held_out"]
    (tmp_path / "data/dapo-math-17k").mkdir(parents=True)
    missing = make_plan(resolve_train(preset="qwen2.5-7b")).missing
    assert "has no train.parquet; make it with luspo prepare-data" in missing[1]
    (tmp_path / "data/dapo-math-17k/train.parquet").touch()
    (tmp_path / "hub/hub/models--Qwen--Qwen2.5-7B").mkdir(parents=True)
    (tmp_path / "data/aime24").mkdir()
    (tmp_path / "data/aime24/test.parquet").touch()
    assert make_plan(resolve_train(preset="qwen2.5-7b")).missing == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "hub"]  # the plan itself made nothing


def test_the_shape_of_a_model_on_disk_is_its_own(tmp_path: Path) -> None:
    stored = {
        "vocab_size": 100, "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32
    }  # fmt: skip
    config = resolve_train(preset="qwen2.5-0.5b", sets=[f"model.path={tmp_path}"])
    (tmp_path / "config.json").write_text(json.dumps(stored))
    # attention 4 * 16 * 16 + 3 * 16, feed-forward 3 * 16 * 32, norms 2 * 16; embeddings and head 2 * 1600, last norm 16
    assert make_plan(config).parameters == 2 * (1024 + 48 + 1536 + 32) + 3200 + 16
    (tmp_path / "config.json").write_text(json.dumps({"text_config": stored}))
    assert make_plan(config).parameters == 2 * (1024 + 48 + 1536 + 32) + 3200 + 16


@pytest.mark.parametrize("content", ["{", "[]", '{"hidden_size": 3}', '{"text_config": 3}'])
def test_a_model_folder_that_describes_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"config\.json does not describe a language model"):
        make_plan(resolve_train(preset="qwen2.5-0.5b", sets=[f"model.path={tmp_path}"]))
