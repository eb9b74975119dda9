"""The loss that `luspo objectives show` reads in a file of verl's settings, against verl itself: `make test-peers`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peer_cases import LIMIT, compare
from verl_cases import Host, composed

from luspo_cli.config.other_trainers.files import read_peer_loss
from luspo_cli.config.other_trainers.verl import KEYS, _threshold
from luspo_cli.config.peers import ACTOR
from luspo_cli.config.stored import flatten
from luspo_cli.errors import UsageError

pytestmark = pytest.mark.verl
GSPO = f"{ACTOR}.policy_loss.loss_mode=gspo {ACTOR}.clip_ratio_low=2e-3 {ACTOR}.clip_ratio_high=2.5e-3"
READ = {
    "the estimator alone": "",
    "gspo under verl's own aggregation": GSPO,
    "gspo with token sums": f"{GSPO} {ACTOR}.loss_agg_mode=seq-mean-token-sum",
    "sapo, which ignores the aggregation": f"{ACTOR}.policy_loss.loss_mode=sapo",
    "a cap and a floor": f"{ACTOR}.policy_loss.loss_mode=cispo {ACTOR}.clip_ratio_low=0.3",
    "a clip ratio that nothing reads": f"{ACTOR}.clip_ratio=0.01 {ACTOR}.loss_agg_mode=seq-mean-token-mean",
    "a constant divisor and a KL term": (
        f"{ACTOR}.loss_agg_mode=seq-mean-token-sum-norm {ACTOR}.loss_scale_factor={LIMIT} {ACTOR}.use_kl_loss=True"
        f" {ACTOR}.kl_loss_coef=0.3"
    ),
}


@pytest.fixture(scope="module", autouse=True)
def version() -> None:
    verl = pytest.importorskip("verl", reason="needs verl in another environment: make peers")
    assert verl.__version__ == "0.9.1"


def test_values_are_those_of_its_own_configuration() -> None:
    yaml = pytest.importorskip("yaml")
    spec = find_spec("verl")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "trainer" / "config" / "_generated_ppo_trainer.yaml"
    own = flatten(yaml.safe_load(file.read_text(encoding="utf-8")))
    for key, value in KEYS.items():
        assert own[key] == value, key


@pytest.mark.parametrize("name", READ)
def test_the_loss_that_we_read_in_a_script_is_the_one_that_runs(name: str, tmp_path: Path) -> None:
    from verl.utils.config import omega_conf_to_dataclass

    overrides = f"algorithm.adv_estimator=grpo {READ[name]}"
    script = tmp_path / "run.sh"
    script.write_text(f"python -m verl.trainer.main_ppo {overrides}\n", encoding="utf-8")
    read = read_peer_loss(script).objective
    assert read is not None
    settings = omega_conf_to_dataclass(composed(overrides.split()).actor_rollout_ref.actor)
    compare(read, lambda batch: Host(settings, read, batch).loss(), 1e-12, torch.float64)


def test_a_range_of_weights_is_read_as_verl_reads_it() -> None:
    from verl.trainer.ppo.rollout_corr_helper import _parse_rollout_is_threshold

    for value in ("0.5_5.0", "1.0_1.0", "2", 3.0):
        upper, lower = _parse_rollout_is_threshold(value)
        assert _threshold(value, "verl.sh") == (upper if lower is None else (lower, upper))
    for value in ("5.0_0.5", "0_5.0", "low_high", [0.5, 5.0]):
        with pytest.raises((TypeError, ValueError)):
            _parse_rollout_is_threshold(value)
        with pytest.raises(UsageError):
            _threshold(value, "verl.sh")
