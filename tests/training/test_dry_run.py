"""The dry run: what it estimates, what it finds missing, and that it touches nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from doubles.models import character_model, random_qwen2
from doubles.vision import FAMILIES, vision_model, vision_processor
from luspo_cli.app import app
from luspo_cli.commands.display.plan import plan_text
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.model import VisionShapeConfig
from luspo_cli.data.overlap import held_out_warning
from luspo_cli.errors import UsageError
from luspo_cli.training.dry_run import _data, make_plan, missing_inputs
from luspo_cli.training.fit import GIB
from luspo_cli.training.memory import estimate_memory
from luspo_cli.training.problems import held_out_problems, training_problems


def write_problems(file: Path, number: int, text: str = "question") -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {
        "prompt": [[{"role": "user", "content": f"{text} {n}"}] for n in range(number)],
        "reward_model": [{"ground_truth": "3"}] * number,
    }
    pq.write_table(pa.table(rows), file)


def test_memory_of_weights_and_optimizer_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """7.6 G parameters in float32: weights and gradients 28.4 GiB each, two moments 56.7 GiB."""
    monkeypatch.setattr("luspo_cli.training.fit.memory_bytes", lambda: 400 * GIB)
    plan = make_plan(resolve_train(preset="qwen2.5-7b"))
    assert plan.parameters == 7_615_616_512
    assert plan.memory_gib["weights"] == plan.memory_gib["gradients"] == pytest.approx(28.37, abs=0.01)
    assert plan.memory_gib["optimizer"] == pytest.approx(56.74, abs=0.01)
    assert plan.memory_gib["reference"] == 0
    # 256 rows * (2048 + 8192) tokens * 28 layers * 2 (keys, values) * 4 heads * 128 numbers * 2 bytes
    assert plan.memory_gib["key_value_cache"] == pytest.approx(256 * 10240 * 28 * 2 * 4 * 128 * 2 / GIB, abs=0.01)
    assert plan.memory_gib["update_peak"] > plan.memory_gib["weights"] + plan.memory_gib["optimizer"]


def test_sections_that_do_nothing_in_a_run_are_not_printed() -> None:
    """A model of weights is not warmed up, and a run that begins at none of a parent's checkpoints is no fork."""
    for preset, warms_up in (("tiny", True), ("tiny-vl", True), ("qwen2.5-7b", False)):
        said = plan_text(make_plan(resolve_train(preset=preset)))
        assert ("  [warmup] " in said) is warms_up
        assert "  [fork] " not in said
        assert "  [rollout] " in said


def test_the_head_sees_response_tokens_alone_where_images_fill_the_prompts() -> None:
    """Images of 448 x 448 pixels: 256 tokens, so of 2048 tokens at most 2048 * 64 / 320 = 410 are of responses of 64."""
    sets = [
        "model.shape.vocabulary=1000", "data.max_pixels=200704", "data.max_prompt_tokens=320", "rollout.max_response_tokens=64",
        "update.tokens_per_micro_batch=2048",
    ]  # fmt: skip
    config = resolve_train(preset="qwen2.5-vl-7b", sets=sets)
    seeing = estimate_memory(config, config.model.shape)["logits_chunk"]
    assert seeing == pytest.approx(10 * 1000 * 2048 * 64 / 320)  # in bfloat16, in float32 and their exponentials
    shape = config.model.shape.model_copy(update={"vision": VisionShapeConfig()})
    assert estimate_memory(config, shape)["logits_chunk"] == 10 * 1000 * 2048


def test_what_saves_memory_lowers_the_estimate() -> None:
    def peak(*sets: str) -> dict[str, float]:
        config = resolve_train(preset="qwen2.5-7b", sets=list(sets))
        return estimate_memory(config, config.model.shape)

    base, kept = peak(), "update.spare_memory=false"
    assert peak("model.gradient_checkpointing=false", kept)["update_peak"] > 1.5 * peak(kept)["update_peak"]
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
    assert shares.memory_gib["sampler_copy"] == one.memory_gib["sampler_copy"] == pytest.approx(14.18, abs=0.01)
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
    monkeypatch.setattr("luspo_cli.training.fit.memory_bytes", lambda: 400 * GIB)
    missing = make_plan(resolve_train(preset="qwen2.5-7b")).missing
    assert [sentence.split()[0].rstrip(":") for sentence in missing] == ["model.path", "data.train", "data.held_out"]
    (tmp_path / "data/dapo-math-17k").mkdir(parents=True)
    missing = make_plan(resolve_train(preset="qwen2.5-7b")).missing
    assert missing[1].startswith(
        "data.train: There is no train.parquet in data/dapo-math-17k (it holds no parquet file);"
    )
    assert "make it with `luspo prepare-data dapo-math-17k --out data/dapo-math-17k`" in missing[1]
    (tmp_path / "data/dapo-math-17k/train.parquet").touch()
    (tmp_path / "hub/hub/models--Qwen--Qwen2.5-7B").mkdir(parents=True)
    (tmp_path / "data/aime24").mkdir()
    (tmp_path / "data/aime24/train.parquet").touch()
    missing = make_plan(resolve_train(preset="qwen2.5-7b")).missing
    assert [sentence.split(" cannot be read as parquet")[0] for sentence in missing] == [
        "data.train: data/dapo-math-17k/train.parquet", "data.held_out: data/aime24/train.parquet"
    ]  # fmt: skip
    write_problems(tmp_path / "data/dapo-math-17k/train.parquet", 8)
    write_problems(tmp_path / "data/aime24/train.parquet", 29, "held out")
    (missing_one,) = make_plan(resolve_train(preset="qwen2.5-7b")).missing
    assert missing_one.startswith(
        "data.held_out: data/aime24/train.parquet has 29 problems, fewer than evaluation.problems=30"
    )
    write_problems(tmp_path / "data/aime24/train.parquet", 30, "held out")
    assert make_plan(resolve_train(preset="qwen2.5-7b")).missing == []
    assert make_plan(resolve_train(preset="qwen2.5-7b", sets=["model.revision=v1"])).missing == []
    character_model(tmp_path / "hub")
    (unread,) = missing_inputs(resolve_train(preset="qwen2.5-7b", sets=["model.path=./hub", "model.revision=v1"]))
    assert (
        unread
        == "model.revision = 'v1' applies to hub ids only, and model.path = './hub' is not one: remove model.revision"
    )
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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vision_model_on_disk_is_counted_whole(tmp_path: Path, family: str) -> None:
    model = vision_model(family=family)
    model.save_pretrained(tmp_path)
    vision_processor(family=family).save_pretrained(tmp_path)
    config = resolve_train(preset="qwen2.5-0.5b", sets=[f"model.path={tmp_path}"])
    plan = make_plan(config)
    assert plan.images["parameters"] == sum(weight.numel() for weight in model.model.visual.parameters())
    assert plan.parameters == sum(weight.numel() for weight in model.parameters())
    assert plan.memory_notes == []
    assert not any("model" in sentence for sentence in plan.missing if "data." not in sentence)


@pytest.mark.parametrize("content", ["{", "[]", '{"hidden_size": 3}', '{"text_config": 3}'])
def test_a_model_folder_that_describes_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"config\.json does not describe a language model"):
        make_plan(resolve_train(preset="qwen2.5-0.5b", sets=[f"model.path={tmp_path}"]))


def estimate(*sets: str) -> dict[str, float]:
    config = resolve_train(preset="qwen2.5-7b", sets=list(sets))
    return estimate_memory(config, config.model.shape)


def test_memory_of_adapters_by_hand() -> None:
    """7B, rank 16: a bfloat16 base of 14.18 GiB; per layer 16 * (2 * 7168 + 2 * 4096 + 3 * 22528), times 28 layers."""
    plan = make_plan(resolve_train(preset="qwen2.5-7b", sets=["model.lora.rank=16"]))
    trained = 28 * 16 * (2 * 7168 + 2 * 4096 + 3 * 22528)
    assert plan.trained == trained == 40_370_176
    assert plan.parameters == 7_615_616_512
    assert plan.memory_gib["weights"] == pytest.approx((2 * 7_615_616_512 + 4 * trained) / GIB, abs=0.01)
    assert plan.memory_gib["gradients"] == pytest.approx(4 * trained / GIB, abs=0.01)
    assert plan.memory_gib["optimizer"] == pytest.approx(8 * trained / GIB, abs=0.01)
    # The untied embedding, 152064 x 3584, is shared with the sampler's copy.
    assert plan.memory_gib["sampler_copy"] == pytest.approx(2 * (7_615_616_512 - 152064 * 3584) / GIB, abs=0.01)
    assert estimate("model.lora.rank=16", "objective.kl_coefficient=0.1")["reference"] == 0


def test_the_count_of_adapters_is_that_of_peft() -> None:
    pytest.importorskip("peft", reason="adapters need the extra lora: pip install 'luspo[lora]'")
    from peft import LoraConfig, inject_adapter_in_model

    targets = ("q_proj", "v_proj", "down_proj")
    config = resolve_train(
        preset="tiny",
        sets=["model.shape.key_value_heads=1", "model.lora.rank=5", f"model.lora.targets={list(targets)}"],
    )
    shape = config.model.shape
    model = random_qwen2(
        shape.vocabulary,
        width=shape.width,
        feed_forward=shape.feed_forward,
        layers=shape.layers,
        heads=shape.heads,
        key_value_heads=shape.key_value_heads,
    )
    inject_adapter_in_model(LoraConfig(r=5, target_modules=list(targets)), model)
    assert make_plan(config).trained == sum(w.numel() for w in model.parameters() if w.requires_grad)


def test_memory_of_small_and_offloaded_moments() -> None:
    n = 7_615_616_512
    base, eight, away = estimate(), estimate("update.optimizer=adamw-8bit"), estimate("update.offload_optimizer=true")
    # Two bytes a weight, and two float32 scales for each block of 256.
    assert eight["optimizer"] == pytest.approx(n * (2 + 8 / 256))
    assert base["update_peak"] - eight["update_peak"] == pytest.approx(8 * n - eight["optimizer"])
    assert (away["optimizer"], away["host_optimizer"]) == (0, 12 * n)
    assert base["update_peak"] - away["update_peak"] == 8 * n
    half, bytes_ = estimate("update.moments=bfloat16"), estimate("update.moments=8bit")
    assert (half["optimizer"], bytes_["optimizer"]) == (4 * n, eight["optimizer"])
    both = estimate("update.moments=bfloat16", "update.offload_optimizer=true")
    assert (both["optimizer"], both["host_optimizer"]) == (0, 8 * n)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luspo_cli.training.dry_run.find_spec", lambda name: None)
    sets = ["model.lora.rank=4", "update.optimizer=adamw-8bit"]
    assert make_plan(resolve_train(preset="tiny", sets=sets)).missing == [
        "model.lora needs peft: pip install 'luspo[lora]'",
        "update.optimizer needs bitsandbytes: pip install 'luspo[adamw-8bit]'",
    ]
    assert make_plan(resolve_train(preset="tiny")).missing == []


def test_an_optimizer_kept_off_the_gpu_where_none_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (missing,) = make_plan(resolve_train(preset="tiny", sets=["update.offload_optimizer=true"])).missing
    assert missing.startswith("update.offload_optimizer needs a GPU")


def test_memory_is_that_of_the_sampler_that_will_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """7B in bfloat16: the in-process copy takes 14.18 GiB all the time; vLLM takes its share of the device while it draws."""
    inside = make_plan(resolve_train(preset="qwen2.5-7b", sets=["rollout.sampler=in-process"])).memory_gib
    assert (inside["vllm"], inside["sampler_copy"]) == (0, pytest.approx(14.18, abs=0.01))
    monkeypatch.setattr("luspo_cli.training.dry_run.device_memory", lambda: 80 * GIB)
    sets = ["rollout.sampler=vllm", "rollout.vllm.memory_share=0.3"]
    plan = make_plan(resolve_train(preset="qwen2.5-7b", sets=sets))
    asleep = plan.memory_gib
    assert (asleep["vllm"], asleep["sampler_copy"], asleep["key_value_cache"]) == (24, 0, 0)
    assert asleep["update_peak"] == inside["update_peak"]  # neither holds anything then
    held = sum(asleep[name] for name in ("program", "weights", "optimizer"))
    assert asleep["rollout_peak"] == pytest.approx(held + 24, abs=0.03)
    assert not [note for note in plan.memory_notes if "vllm" in note]
    monkeypatch.setattr("luspo_cli.training.dry_run.device_memory", lambda: None)
    elsewhere = make_plan(resolve_train(preset="qwen2.5-7b", sets=sets))
    assert elsewhere.memory_gib["vllm"] == 0
    assert "on one it takes 30% of the memory (rollout.vllm.memory_share)" in elsewhere.memory_notes[-1]
    sets = ["rollout.sampler=vllm-server", 'rollout.vllm.servers=["http://127.0.0.1:8000"]']
    away = make_plan(resolve_train(preset="qwen2.5-7b", sets=sets)).memory_gib
    assert (away["vllm"], away["sampler_copy"], away["key_value_cache"]) == (0, 0, 0)
    assert away["update_peak"] == asleep["update_peak"]
    assert away["rollout_peak"] == pytest.approx(held, abs=0.03)


def test_the_shape_of_a_hub_model_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("luspo_cli.policy.model_files.multiplies_bfloat16", lambda: True)
    config = resolve_train(preset="qwen2.5-7b", sets=["model.path=some/model", "model.revision=v2"])
    cached = tmp_path / "hub/models--some--model"
    (cached / "snapshots/0123abc").mkdir(parents=True)
    stored = {
        "vocab_size": 100, "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32
    }  # fmt: skip
    (cached / "snapshots/0123abc/config.json").write_text(json.dumps(stored))
    plan = make_plan(config)  # another revision is there
    assert (plan.parameters, plan.shape_from) == (7_615_616_512, "model.shape")
    note = "the shape is that of [model.shape]: the config.json of some/model is not on this machine"
    assert plan.memory_notes[0] == note
    (cached / "refs").mkdir()
    (cached / "refs/v2").write_text("0123abc")
    plan = make_plan(config)
    assert (plan.parameters, plan.shape_from, plan.memory_notes) == (8496, "config.json", [])
    assert make_plan(resolve_train(preset="tiny")).memory_notes == []
    assert plan.warnings == []  # it names no model type
    for kind, warned in (("llama", 0), ("jais2", 1)):
        (cached / "snapshots/0123abc/config.json").write_text(json.dumps(stored | {"model_type": kind}))
        assert len(make_plan(config).warnings) == warned


def test_the_dry_run_warns_of_held_out_questions_that_are_trained_on(tmp_path: Path) -> None:
    """In the words of the run; what is not in the slice that is evaluated does not count."""
    write_problems(tmp_path / "train.parquet", 8)
    write_problems(tmp_path / "held.parquet", 6)
    sets = [f"model.path={tmp_path}", f"data.train={tmp_path}", f"data.held_out={tmp_path / 'held.parquet'}"]
    (tmp_path / "config.json").write_text("{}")
    sets += ["evaluation.problems=4"]
    config = resolve_train(preset="qwen2.5-0.5b", sets=sets)
    assert _data(config)[1] == held_out_warning(
        training_problems(config), held_out_problems(config), str(tmp_path), str(tmp_path / "held.parquet")
    )
    assert str(_data(config)[1]).startswith("all 4 held-out questions of data.held_out")
    write_problems(tmp_path / "held.parquet", 6, "another")
    assert _data(config) == ([], None)
    plan = make_plan(resolve_train(preset="tiny"))
    assert plan.warnings == []
    assert "warning: so it is\n\nnothing is missing" in plan_text(replace(plan, warnings=["so it is"]))


@pytest.mark.parametrize("preset", ["qwen2.5-vl-7b", "qwen2.5-vl-7b-lora"])
def test_a_preset_tells_how_its_data_is_made_and_the_run_started(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    runner = CliRunner()
    shown = runner.invoke(app, ["train", "--preset", preset, "--dry-run"])
    text = shown.output
    assert shown.exit_code == 0, text
    about = text[text.index("about this preset") : text.index("\nmissing")]
    # The command in the sentence about missing data is the one that the preset names.
    (command,) = {line.split("`")[1] for line in text.splitlines() if "make it with `" in line}
    assert f"    {command}\n" in about
    runs = [
        line.split(": ", 1)[1].split("       ")[0]
        for line in about.splitlines()
        if line.startswith(("  Look:", "  Run:"))
    ]
    assert len(runs) == 2
    for run in runs:
        words = run.split()
        again = runner.invoke(app, [*words[1:], *["--dry-run"] * ("--dry-run" not in words)])
        assert again.exit_code == 0, again.output
        assert f"--preset {preset} " in run
    for said in (
        "Apache-2.0, says https://huggingface.co/Qwen/",
        "MIT, says https://huggingface.co/datasets/TIGER-Lab/ViRL39K",
        "80 GB",
    ):
        assert said in about
    alone = "one process has nothing to share out" in text
    assert alone is (preset == "qwen2.5-vl-7b")
    assert json.loads(runner.invoke(app, ["train", "--preset", "tiny", "--dry-run", "--json"]).output)["about"][
        0
    ].startswith("A probe")


def test_the_dry_run_says_that_the_run_folder_would_be_refused(tmp_path: Path) -> None:
    config = resolve_train(preset="tiny")
    assert make_plan(config, 1, tmp_path / "new").missing == []
    (tmp_path / "other.txt").write_text("")
    assert make_plan(config, 1, tmp_path).missing == [f"{tmp_path} exists and is no run folder; choose another --run"]
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert make_plan(config, 1, tmp_path).missing == [
        f"run folder {tmp_path} exists; go on with --resume, or choose another --run"
    ]
    assert make_plan(config, 1, tmp_path, "resume").missing == []
    (said,) = make_plan(resolve_train(preset="tiny", sets=["run.seed=7"]), 1, tmp_path, "resume").missing
    assert "another configuration: run.seed (0 there, 7 now)" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "other.txt"]


def test_a_kernel_that_cannot_compute_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is loaded: Liger that is not installed or has no GPU, and a graph of a sampler that is not ours."""
    from luspo_cli.policy import model_files

    liger = resolve_train(preset="tiny", sets=["model.kernels.head=liger"])
    monkeypatch.setattr(model_files, "find_spec", lambda name: None)
    assert any("pip install 'luspo[liger]'" in sentence for sentence in make_plan(liger).missing)
    monkeypatch.setattr(model_files, "find_spec", lambda name: name)
    monkeypatch.setattr(model_files, "has_cuda", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert any("needs a CUDA device" in sentence for sentence in make_plan(liger).missing)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not any("liger" in sentence for sentence in make_plan(liger).missing)
    graph = resolve_train(preset="tiny", sets=["model.kernels.decode=graph"])
    assert graph.graph_refused("in-process") is None
    assert "'vllm' draws" in str(graph.graph_refused("vllm"))
