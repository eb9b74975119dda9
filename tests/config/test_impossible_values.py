"""Values that no run could use are refused before anything starts, each with a sentence that names the key."""

from __future__ import annotations

import pytest

from luspo_cli.config.layers import resolve_train
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
        (["update.ramp_steps=61"], "update.ramp_steps"),
        (["evaluation.temperature=0"], "evaluation.samples"),
        (["warmup.min_accuracy=0.5"], "warmup.stop_accuracy"),
        (["model.path=x/y", "data.train=z", "warmup.rows=3"], "warmup"),
        (["model.path=x/y", "data.train=z", "data.profile=pays"], "data.profile"),
    ],
)
def test_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve_train(preset="tiny", objective="luspo", sets=settings)
    assert "\n" not in str(caught.value)
