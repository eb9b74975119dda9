"""What a run holds in each phase, and that holding less changes no number; runs and updates with small moments."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doubles.runs import records, stored_weights, train
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import UsageError
from luspo_cli.policy.packing import policy_batch, rows_of
from luspo_cli.training.memory import estimate_memory

SHORT = ("model.compute_dtype=bfloat16", "rollout.sampler=in-process", "evaluation.every=0", "run.checkpoint_every=1")


def test_a_run_that_holds_less_is_the_same_run(
    small_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No sampler's weights and no cache in an update, no gradients while it samples; the weights of the run that holds them."""
    from luspo_cli.rollout.in_process import sampler as module
    from luspo_cli.rollout.in_process.sampler import InProcessSampler
    from luspo_cli.training.update import Updater

    samplers: list[Any] = []
    caches: list[Any] = []
    held: list[tuple[int, int, bool]] = []
    sample_groups, update, cache = InProcessSampler.sample_groups, Updater.update, module.KeyValueCache

    def sampling(self: Any, *arguments: Any, **options: Any) -> Any:
        samplers.append(self)
        return sample_groups(self, *arguments, **options)

    def updating(self: Any, *arguments: Any, **options: Any) -> Any:
        owned = sum(weight.numel() for weight in samplers[-1].model.parameters())
        gradients = sum(weight.grad is not None for weight in self.policy.parameters())
        held.append((owned, gradients, any(reference() for reference in caches)))
        return update(self, *arguments, **options)

    def new_cache(*arguments: Any) -> Any:
        made = cache(*arguments)
        caches.append(weakref.ref(made))
        return made

    monkeypatch.setattr(InProcessSampler, "sample_groups", sampling)
    monkeypatch.setattr(Updater, "update", updating)
    monkeypatch.setattr(module, "KeyValueCache", new_cache)
    for spare in ("true", "false"):
        train(small_run("run.steps=2", f"update.spare_memory={spare}", *SHORT), tmp_path / spare)
        gc.collect()
    assert held[:2] == [(0, 0, False)] * 2
    assert held[3][0] > 0
    assert held[3][1] > 0  # the gradients of the step before
    assert not held[3][2]
    first, second = (records(tmp_path / spare) for spare in ("true", "false"))
    for one, other in zip(first, second, strict=True):
        for name in ("objective/loss", "update/grad_norm", "response_length/mean"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-7)
    ours, theirs = (stored_weights(tmp_path / spare, 1) for spare in ("true", "false"))
    assert all(weight.sub(theirs[name]).abs().max() < 2e-4 for name, weight in ours.items())  # a fifth of a step


@pytest.mark.parametrize("kind", ["bfloat16", "8bit"])
def test_a_run_with_small_moments_resumes_bit_for_bit(
    small_run: Callable[..., TrainRun], tmp_path: Path, kind: str
) -> None:
    import torch

    settings = ("evaluation.every=0", "run.checkpoint_every=1", f"update.moments={kind}")
    train(small_run("run.steps=3", *settings), tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        train(small_run("run.steps=3", *settings), tmp_path / "parts", crash_after=2)
    with pytest.raises(UsageError, match=r"update\.moments"):
        train(small_run("run.steps=3", *settings[:2]), tmp_path / "parts", "resume")
    train(small_run("run.steps=3", *settings), tmp_path / "parts", "resume")
    whole, parts = (stored_weights(tmp_path / run, 3) for run in ("whole", "parts"))
    assert all(torch.equal(weight, parts[name]) for name, weight in whole.items())


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "8bit"])
def test_an_update_learns_with_any_moments(make_updater: Callable[..., Any], make_groups: Any, kind: str) -> None:
    """Forty updates on the same rows: those with a positive advantage get likelier, the others less."""
    import torch

    groups = make_groups([[3, 9, 1, 6], [5, 5, 12, 4]], [[1.0, -0.5, -1.0, 0.5], [0.5, 0.2, -1.2, 0.5]])
    updater, model = make_updater(f"update.moments={kind}", dtype="float32")
    batch = policy_batch([row for group in groups for row in rows_of(group)])

    def gap() -> float:
        with torch.no_grad():
            logprobs, _ = updater.policy(batch)
        return float((logprobs.sum(-1) * batch.advantages).sum())

    before = gap()
    for _ in range(40):
        updater.update(groups, 1e-3)
    assert gap() - before > 20
    if kind == "8bit":
        assert updater.optimizer.state[model.lm_head.weight]["exp_avg"].dtype == torch.float32  # below 4,096 numbers


def estimate(*sets: str) -> dict[str, float]:
    config = resolve_train(preset="qwen2.5-7b", sets=list(sets))
    return estimate_memory(config, config.model.shape)


def test_memory_that_is_spared_is_not_counted_in_the_other_phase() -> None:
    sets = ("rollout.sampler=in-process", "model.compute_dtype=bfloat16")
    spared, kept = estimate(*sets), estimate(*sets, "update.spare_memory=false")
    of_one_phase = ("sampler_copy", "gradients")
    assert all(spared[part] == kept[part] > 0 for part in of_one_phase)
    assert kept["rollout_peak"] - spared["rollout_peak"] == pytest.approx(kept["gradients"])
    # Not the head's second gradient besides: the layers' activations are the peak.
    assert kept["update_peak"] - spared["update_peak"] >= kept["sampler_copy"]
    assert (spared["head_gradient"], kept["head_gradient"]) == (0, 4 * 152064 * 3584)


def test_layers_that_keep_less_by_hand() -> None:
    """16,384 tokens, 28 layers of width 3584 and 18944: 22 and 4 bytes of each for 36 and 8, and one layer's bfloat16 weights."""
    sets = ("model.gradient_checkpointing=false", "update.tokens_per_micro_batch=16384")
    lean, plain = estimate(*sets), estimate(*sets, "update.spare_memory=false")
    assert lean["activations"] == 16384 * 28 * (22 * 3584 + 4 * 18944)
    assert plain["activations"] == 16384 * 28 * (36 * 3584 + 8 * 18944)
    layers = 7_615_616_512 - 2 * 152064 * 3584
    assert (lean["autocast_copies"], plain["autocast_copies"]) == (2 * layers / 28, 2 * layers)
    assert estimate(*sets, "model.lora.rank=16")["activations"] == plain["activations"]
