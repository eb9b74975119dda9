"""The lab's configuration: training's names, the preset's values, and refusals that name key and value."""

from __future__ import annotations

from typing import Any

import pytest
from test_keys_are_read import PACKAGE, keys_read

from luspo_cli.config.lab import LabRun, resolve_lab
from luspo_cli.config.layers import all_keys, resolve_train
from luspo_cli.config.objective import resolve
from luspo_cli.errors import UsageError

TOKEN_MEAN: dict[str, Any] = {
    "advantage": "group_mean", "ratio": "token", "surrogate": "clip", "clip_low": 0.1, "clip_high": 0.3,
    "aggregation": "token-mean",
}  # fmt: skip


def test_the_recipe_is_the_presets() -> None:
    preset, lab = resolve_train(preset="qwen2.5-7b", objective="gspo"), resolve_lab("gspo", preset="qwen2.5-7b")
    assert lab.objective == preset.objective
    assert lab.rollout.problems == preset.rollout.problems
    assert lab.rollout.group_size == preset.rollout.group_size
    assert lab.update.mini_batches == preset.update.mini_batches
    assert lab.update.gradient_clip == preset.update.gradient_clip
    assert lab.run.steps == preset.run.steps
    # Its own: logits are no weights, and a limit that responses meet would be a reward on length.
    assert lab.update.learning_rate == 0.02
    assert lab.rollout.max_response_tokens == 2048


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["update.minibatches=8"], r"--set: unknown key 'update.minibatches' \(did you mean 'update.mini_batches'\?\)"),
        (["rollout.temperature=0.5"], "--set: unknown key 'rollout.temperature'"),
        (["rollout.lag=2"], "'rollout.lag': the lab does not model this key of a training; leave it out"),
        (["reward.truncated=mask"], "'reward.truncated': the lab does not model this key of a training; leave it out"),
        (["update.mini_batches=5"], r"rollout.problems \(16\) must be a multiple of update.mini_batches \(5\)"),
        (["update.mini_batches=many"], "--set: update.mini_batches = 'many'"),
        (["data.length_gain=2.0"], "--set: data.length_gain needs data.profile = pays or costs"),
        (["model.skill_spread=1.0"], "--set: model.skill_spread needs model.prompt_types above 1"),
        (["model.stop_bin_tokens=4"], "--set: model.stop_bin_tokens needs model.stop_bins above 1"),
        (["model.ending=0.4"], r"model.accuracy \(0.45\) must be below model.ending \(0.4\)"),
        (["model.length=100", "rollout.max_response_tokens=50"], r"model.length \(100\) must lie between"),
        (["update.optimizer=sgd", "update.betas=[0.5, 0.9]"], "update.betas is AdamW's"),
        (["objective.entropy_coefficient=0.1"], "objective.entropy_coefficient is not part of the lab's model"),
        (["objective.name=gspo"], "--set objective.name=gspo: the lab itself sets this; use --objectives"),
        (["objective.clip_low=2.0"], "clip_low = 2.0 puts the lower bound below 0"),
        (["steps=5"], "--set wants section.key=value"),
    ],
)
def test_what_does_not_fit_is_refused_with_key_and_value(sets: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_lab("luspo", sets=sets)


def test_an_objective_composed_by_keys_takes_the_presets_recipe() -> None:
    parts = ["advantage=group_mean", "ratio=token", "surrogate=clip", "clip_low=0.1", "clip_high=0.3"]
    sets = [f"objective.{part}" for part in parts]
    lab = resolve_lab("custom", sets=[*sets, "objective.aggregation=token-mean"])
    swept = resolve_lab("custom", sets=sets, swept=("objective.aggregation", "token-mean"))
    assert lab == swept
    assert lab.objective == resolve("custom", **TOKEN_MEAN)
    assert lab.rollout == resolve_lab("luspo").rollout
    with pytest.raises(UsageError, match=r"^--set: objective 'custom' must set aggregation: choose one of token-mean"):
        resolve_lab("custom", sets=sets)


def test_every_key_is_read_by_the_lab_or_by_the_loss() -> None:
    keys = {key for key, _ in all_keys(LabRun)}
    own = keys_read(LabRun, PACKAGE / "experiments" / "lab")
    unread = {key for key in keys - own if not key.startswith("objective.")}
    assert not unread, f"keys that change nothing: {sorted(unread)}"
