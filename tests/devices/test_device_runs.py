"""Whole runs on a device: they train, are killed and go on; the kernels that are off unless asked for, and vLLM asleep."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doubles.runs import records, stored_weights, train
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import UsageError

LORA = ("model.lora.rank=4", "model.compute_dtype=bfloat16")
SETTINGS = {
    "float32": (),
    "bfloat16": ("model.compute_dtype=bfloat16",),
    "offloaded": ("update.offload_optimizer=true",),
    "8-bit moments": ("update.moments=8bit",),
    "adapters": LORA,
    "kernels": ("model.kernels.attention=varlen", "model.kernels.decode=graph"),
    "kernels in bfloat16": (
        "model.kernels.attention=varlen", "model.kernels.decode=graph", "model.compute_dtype=bfloat16",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_run_trains_and_resumes(device: Any, small_run: Callable[..., TrainRun], tmp_path: Path, kind: str) -> None:
    import torch

    on_gpu = device.type == "cuda"
    if kind == "adapters":
        pytest.importorskip("peft", reason="adapters need the extra lora: pip install 'luspo[lora]'")
    config = small_run("run.steps=3", "run.checkpoint_every=1", "rollout.sampler=in-process", *SETTINGS[kind])
    if kind == "offloaded" and not torch.cuda.is_available():
        with pytest.raises(UsageError, match="offload_optimizer"):
            train(config, tmp_path / "run")
        return
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path / "run", crash_after=2)
    if on_gpu:
        assert torch.cuda.max_memory_allocated() > 0  # the device was used, not the CPU beside it
    assert "going on after step 2" in train(config, tmp_path / "run", "resume")
    found = records(tmp_path / "run")
    assert [record["step"] for record in found] == [1, 2, 3]
    assert all(record["update/grad_norm"] > 0 and record["update/skipped_steps"] == 0 for record in found)
    # In bfloat16 sampler and policy round in other places.
    low = config.model.compute_dtype == "bfloat16"
    assert max(record["sampler/logprob_difference_mean"] for record in found) < (0.05 if low else 1e-3)
    if kind != "adapters":
        before, after = stored_weights(tmp_path / "run", 2), stored_weights(tmp_path / "run", 3)
        assert any(not torch.equal(before[name], weight) for name, weight in after.items())


def test_other_kernels_train_the_same_run(device: Any, small_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    """Up to the last bits: over three steps the same responses, and weights a small part of a step away."""
    sets = ("run.steps=3", "run.checkpoint_every=3", "evaluation.every=0", "rollout.sampler=in-process")
    train(small_run(*sets), tmp_path / "plain")
    train(small_run(*sets, *SETTINGS["kernels"]), tmp_path / "kernels")
    plain, kernels = (records(tmp_path / name) for name in ("plain", "kernels"))
    for one, other in zip(plain, kernels, strict=True):
        assert one["response_length/mean"] == other["response_length/mean"]
        assert one["update/grad_norm"] == pytest.approx(other["update/grad_norm"], rel=1e-3)
    ours, theirs = (stored_weights(tmp_path / name, 3) for name in ("plain", "kernels"))
    assert all(weight.sub(theirs[name]).abs().max() < 2e-4 for name, weight in ours.items())  # a fifth of a step


@pytest.mark.vllm
def test_vllm_sleeps_and_wakes(device: Any, tmp_path: Path) -> None:
    """One engine a process is all that vLLM promises."""
    from vllm_models import own_process

    own_process(__file__, device.type, tmp_path)


def sleep_and_wake(device: str, folder: Path) -> None:
    """A second round draws what the first drew without a push, and new weights draw something else.

    On CUDA the engine's memory is free while it sleeps; elsewhere vLLM has no sleep, and the rest holds all the same.
    """
    import torch
    from vllm_models import VOCABULARY, randomise, tiny_model

    from luspo_cli.records import Prompt
    from luspo_cli.rollout.sampler import SamplingOptions
    from luspo_cli.rollout.vllm.engine import EngineSettings, VllmSampler
    from luspo_cli.training.made.build import made_tokenizer

    model = tiny_model(folder, tied=False).to(device)
    settings = EngineSettings(str(folder), "float32", 128, max_rows=16, temperature=1.0)
    sampler = VllmSampler(settings, made_tokenizer(VOCABULARY), [1])
    prompts, options = [Prompt("a", (5, 9, 17, 33, 2)), Prompt("b", (7, 8))], SamplingOptions(4, 24, seed=1)

    def free() -> int:
        return int(torch.cuda.mem_get_info()[0]) if device == "cuda" else 0

    def drawn() -> list[tuple[int, ...]]:
        return [rollout.response_tokens for group in sampler.sample_groups(prompts, options) for rollout in group]

    sampler.load_weights(model)
    awake = free()  # the weights alone are
    first, asleep = drawn(), free()
    assert drawn() == first
    randomise(model, 5)
    sampler.load_weights(model)
    assert drawn() != first
    if device == "cuda":
        assert sampler._awake == set()
        assert asleep >= awake
        sampler._wake("weights", "kv_cache")
        assert free() < asleep - 2**30  # the cache takes its share of the device again


if __name__ == "__main__":
    sleep_and_wake(sys.argv[1], Path(sys.argv[2]))
