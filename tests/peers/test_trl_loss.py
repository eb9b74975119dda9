"""Our loss against the code of stock TRL, with the settings that `luspo objectives` prints: `make test-peers`."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peer_cases import LIMIT, Batch, compare, make_batch, objectives, our_loss

from luspo_cli.config.objective import ObjectiveConfig, resolve
from luspo_cli.config.other_trainers.files import read_peer_loss
from luspo_cli.config.other_trainers.trl_keys import LOSS_KEYS, OTHER_KEYS, SCRIPT_KEYS
from luspo_cli.config.peers import trl_settings

pytestmark = pytest.mark.trl
OBJECTIVES = objectives(trl_settings)
FLOAT32_TEMPERATURES = 1e-7
"""TRL chooses between SAPO's two temperatures in float32, whatever the type of the log-probs."""


@pytest.fixture(scope="module", autouse=True)
def version() -> None:
    trl = pytest.importorskip("trl", reason="needs TRL in another environment: make peers")
    assert trl.__version__.split(".")[:2] == ["1", "16"]


def trl_loss(trainer: type, settings: Any, batch: Batch) -> torch.Tensor:
    """`_compute_loss` of a trainer that has a policy of given log-probs, in training on one device without accumulation."""
    rows, width = batch.logprobs.shape
    itself = SimpleNamespace(
        args=settings,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            num_processes=1, sync_gradients=True, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        loss_type=settings.loss_type,
        importance_sampling_level=settings.importance_sampling_level,
        epsilon_low=settings.epsilon,
        epsilon_high=settings.epsilon if settings.epsilon_high is None else settings.epsilon_high,
        beta=settings.beta,
        max_completion_length=settings.max_completion_length,
        entropy_coef=settings.entropy_coef,
        _entropy_bonus_enabled=settings.entropy_coef != 0,
        use_adaptive_entropy=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=False,
        get_gamma_weights=getattr(trainer, "get_gamma_weights", None),
        current_gradient_accumulation_steps=1,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (batch.logprobs, batch.entropy, None),
    )
    itself.args.steps_per_generation = 1
    inputs = {
        "prompt_ids": torch.ones(rows, 1, dtype=torch.long),
        "prompt_mask": torch.ones(rows, 1, dtype=torch.long),
        "completion_ids": torch.ones(rows, width, dtype=torch.long),
        "completion_mask": (torch.arange(width) < batch.lengths[:, None]).long(),
        "tool_mask": batch.mask.long(),
        "advantages": batch.advantages,
        "old_per_token_logps": batch.old_logprobs,
        "ref_per_token_logps": batch.ref_logprobs,
        "num_items_in_batch": batch.mask.sum(),
    }
    return trainer._compute_loss(itself, None, inputs)


def peer(config: ObjectiveConfig, folder: Path) -> Any:
    """TRL's own configuration class takes the settings: an option that it does not have raises."""
    from trl import GRPOConfig, GRPOTrainer
    from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

    settings = trl_settings(config, LIMIT)
    kind, trainer = (GMPOConfig, GMPOTrainer) if settings.config_class == "GMPOConfig" else (GRPOConfig, GRPOTrainer)
    chosen = kind(output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], **settings.values)
    return lambda batch: trl_loss(trainer, chosen, batch)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_value_and_gradient_are_those_of_trl(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config = OBJECTIVES[name]
    exact = FLOAT32_TEMPERATURES if config.surrogate == "sapo" else 1e-12
    compare(config, peer(config, tmp_path), exact if dtype == torch.float64 else 1e-6, dtype)


def test_the_loss_type_alone_keeps_the_token_ratio(tmp_path: Path) -> None:
    """`loss_type="luspo"` with TRL's own importance sampling level is not LUSPO: it is GRPO with token sums."""
    from trl import GRPOConfig, GRPOTrainer

    shared = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": []}
    alone = GRPOConfig(loss_type="luspo", epsilon=0.2, epsilon_high=0.28, **shared)
    assert alone.importance_sampling_level == "token"

    def loss(batch: Batch) -> torch.Tensor:
        return trl_loss(GRPOTrainer, alone, batch)

    as_read = OBJECTIVES["token clip seq-mean-token-sum"]
    compare(as_read, loss, 1e-12, torch.float64)
    luspo = resolve("luspo", clip_low=0.2, clip_high=0.28)
    for seed in range(3):
        batch = make_batch(as_read, seed, torch.float64)
        assert float((our_loss(luspo, batch)[0] - loss(batch)).detach().abs()) > 1e-3


def test_names_and_values_of_its_keys_are_those_of_our_table() -> None:
    from dataclasses import MISSING, fields

    from trl import GRPOConfig, ModelConfig
    from trl.scripts.grpo import GRPOScriptArguments

    own = {entry.name: entry for entry in fields(GRPOConfig)}
    assert set(own) == {*LOSS_KEYS, *OTHER_KEYS}
    assert {entry.name for kind in (ModelConfig, GRPOScriptArguments) for entry in fields(kind)} - set(
        own
    ) <= SCRIPT_KEYS
    for key, value in LOSS_KEYS.items():
        assert own[key].default is not MISSING
        assert own[key].default == value, key


READ = {
    "nothing set": {},
    "the loss type alone": {"loss_type": "luspo"},
    "sequence ratios under a token mean": {
        "importance_sampling_level": "sequence",
        "epsilon": 2e-3,
        "epsilon_high": 3e-3,
    },
    "a constant divisor, no std": {"loss_type": "dr_grpo", "scale_rewards": False, "max_completion_length": LIMIT},
    "a cap": {"loss_type": "cispo", "epsilon_high": 1.3},
    "two-sided": {"loss_type": "grpo", "delta": 1.5, "beta": "4e-2", "use_bias_correction_kl": "false"},
    "a mean per local batch": {"loss_type": "bnpo"},
}


@pytest.mark.parametrize("name", READ)
def test_the_loss_that_we_read_in_a_file_is_the_one_that_runs(name: str, tmp_path: Path) -> None:
    """`luspo objectives show FILE` against the trainer itself, given the same values."""
    from trl import GRPOConfig, GRPOTrainer

    file = tmp_path / "trl.json"
    file.write_text(json.dumps({"output_dir": str(tmp_path), **READ[name]}), encoding="utf-8")
    read = read_peer_loss(file).objective
    assert read is not None
    typed = {key: {"4e-2": 0.04, "false": False}.get(str(value), value) for key, value in READ[name].items()}
    chosen = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], **typed)
    compare(read, lambda batch: trl_loss(GRPOTrainer, chosen, batch), 1e-12, torch.float64)


def test_a_cap_below_one_is_what_trl_makes_of_cispo_alone(tmp_path: Path) -> None:
    """Without `epsilon_high` the cap of CISPO is `epsilon`, 0.2, whatever the ratio: REINFORCE times 0.2."""
    from trl import GRPOConfig, GRPOTrainer

    alone = GRPOConfig(loss_type="cispo", output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[])
    plain = OBJECTIVES["token clip token-mean"]
    batch = make_batch(plain, 0, torch.float64)
    expected = -(0.2 * batch.advantages[:, None] * batch.logprobs * batch.mask).sum() / batch.mask.sum()
    assert torch.allclose(trl_loss(GRPOTrainer, alone, batch), expected)
