"""Values that no run could use are refused before anything starts, each with a sentence that names the key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luspo_cli.config.layers import resolve_train
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import UsageError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["update.betas=[1.5, 0.9]"], "update.betas"),
        (["reward.accuracy_weight=nan"], "reward.accuracy_weight"),
        (["rollout.temperature=inf"], "rollout.temperature"),
        (["objective.kl_coefficient=nan"], "objective.kl_coefficient"),
        (["run.seed=99999999999999999999"], "run.seed"),
        (["run.steps=100000000000"], "run.steps"),
        (["reward.overlong_weight=2.0"], "reward.overlong_buffer"),
        (["reward.gr3_alpha=-0.1"], "reward.gr3_alpha = -0.1 must be 0 or more"),
        (["reward.truncated_reward=-1"], "truncated_reward changes nothing without reward.truncated"),
        (["reward.truncated=drop"], "reward.truncated"),
        (["reward.lazy_length_tolerance=5"], "lazy_length_tolerance changes nothing without reward.lazy_length_weight"),
        (["reward.cosine_length_wrong=[-1, 0]"], "cosine_length_wrong changes nothing without"),
        (["reward.cosine_length_weight=1", "reward.cosine_length_wrong=[-1]"], "cosine_length_wrong"),
        (["update.ramp_steps=61"], "update.ramp_steps"),
        (["evaluation.temperature=0"], "evaluation.samples"),
        (["warmup.min_accuracy=0.5"], "warmup.stop_accuracy"),
        (["model.path=x/y", "data.train=z", "warmup.rows=3"], "warmup"),
        (["model.path=x/y", "data.train=z", "data.profile=pays"], "data.profile"),
        (["data.shuffle=false"], "--set: data.shuffle = false is for problems from a file"),
        (["evaluation.every=0", "evaluation.problems=64"], "--set: evaluation.problems changes nothing"),
        (["evaluation.every=0", "evaluation.blind=noise"], "--set: evaluation.blind changes nothing"),
        (["evaluation.every=0", "evaluation.samples=2"], "evaluation.samples changes nothing"),
        (
            ["evaluation.every=0", "evaluation.samples=1", "evaluation.temperature=0.5"],
            "evaluation.temperature changes",
        ),
        (["evaluation.every=0", "evaluation.max_response_tokens=9"], "evaluation.max_response_tokens changes nothing"),
    ],
)
def test_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve_train(preset="tiny", objective="luspo", sets=settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        ["evaluation.every=0"],  # the preset's own samples are no mistake
        ["evaluation.samples=2", "evaluation.every=0"],
        ["evaluation.every=0", "evaluation.samples=1"],
        ["model.path=x/y", "data.train=z", "data.shuffle=false"],
    ],
)
def test_what_a_later_layer_turns_off_is_no_mistake(settings: list[str]) -> None:
    assert resolve_train(preset="tiny", sets=settings).objective.name == "luspo"


def test_keys_without_an_evaluation_are_refused_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("[data]\ntrain = 'made:terms'\n[evaluation]\nproblems = 64\n")
    with pytest.raises(
        UsageError, match=r"own\.toml: evaluation\.problems changes nothing while evaluation\.every is 0"
    ):
        resolve_train(config_file=tmp_path / "own.toml")


def test_a_file_may_turn_off_the_evaluations_that_it_describes(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("[data]\ntrain = 'made:terms'\n[evaluation]\nproblems = 64\nevery = 0\n")
    assert resolve_train(config_file=tmp_path / "own.toml").evaluation.problems == 64


def test_a_stored_configuration_with_such_a_key_still_reads() -> None:
    stored = resolve_train(preset="tiny").model_dump(mode="json")
    stored["data"]["shuffle"] = False
    stored["evaluation"] |= {"every": 0, "problems": 7}
    assert TrainRun.model_validate_json(json.dumps(stored)).evaluation.problems == 7
