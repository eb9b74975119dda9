"""The estimate of memory counts what a step can hold, not what a setting would allow beyond it."""

from __future__ import annotations

from luspo_cli.config.layers import resolve_train
from luspo_cli.training.memory import estimate_memory


def activations(micro_tokens: int, *sets: str) -> float:
    step = [
        "rollout.problems=2", "rollout.group_size=3", "rollout.max_response_tokens=512", "data.max_prompt_tokens=128",
        "update.mini_batches=1", f"update.tokens_per_micro_batch={micro_tokens}", *sets,
    ]  # fmt: skip
    config = resolve_train(preset="qwen2.5-0.5b", sets=step)
    return estimate_memory(config, config.model.shape)["activations"]


def test_a_micro_batch_holds_no_more_than_the_rows_of_a_mini_batch() -> None:
    """2 groups of 3 rows of at most 640 tokens: 3,840 in one mini-batch, 1,920 in each of two."""
    assert activations(100_000) == activations(3840) > activations(3839)
    assert activations(100_000, "update.mini_batches=2") == activations(1920)
    assert activations(1) == activations(640)  # one row always fits
