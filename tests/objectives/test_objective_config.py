"""The [objective] section: what a name fixes, what stays free, and that no key is dead."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
import torch
from loop_oracle import FORMULAS
from pydantic import BaseModel, ConfigDict, ValidationError
from ragged_batches import LIMIT, as_tensors, make_batch

from luspo_cli.config.objective import NAMED_OBJECTIVES, ObjectiveConfig, resolve
from luspo_cli.objectives import policy_loss

CUSTOM: dict[str, Any] = {
    "name": "custom",
    "advantage": "leave_one_out",
    "ratio": "sequence",
    "surrogate": "clip",
    "aggregation": "seq-mean-token-sum",
    "clip_low": 0.01,
    "clip_high": 0.02,
}
PUBLISHED = {
    "grpo": ("group_mean_std", "token", "clip", "seq-mean-token-mean", 0.2, 0.2),
    "dr_grpo": ("group_mean", "token", "clip", "seq-mean-token-sum-norm", 0.2, 0.2),
    "dapo": ("group_mean_std", "token", "clip", "token-mean", 0.2, 0.28),
    "gspo": ("group_mean_std", "sequence", "clip", "seq-mean-token-mean", 0.0003, 0.0004),
    "luspo": ("group_mean_std", "sequence", "clip", "seq-mean-token-sum", 0.002, 0.0025),
    "fspo": ("group_mean_std", "sequence-product", "clip", "seq-mean-token-mean", 0.03, 0.03),
    "cispo": ("group_mean_std", "token", "cispo", "token-mean", 1.0, 4.0),
    "sapo": ("group_mean_std", "token", "sapo", "seq-mean-token-mean", None, None),
    "gmpo": ("group_mean_std", "token", "gmpo", "seq-mean-token-mean", 0.4, 0.4),
    "dapo_prompt_mean": ("group_mean_std", "token", "clip", "prompt-mean", 0.2, 0.28),
    "balanced": ("group_mean_std", "token", "clip", "sign-balanced", 0.2, 0.28),
    "length_power": ("group_mean_std", "sequence", "clip", "length-power", 0.002, 0.0025),
    "dppo": ("group_mean", "token", "dppo-tv", "seq-mean-token-sum-norm", 0.15, 0.15),
    "dppo_kl": ("group_mean", "token", "dppo-kl", "seq-mean-token-sum-norm", 0.05, 0.05),
    "vespo": ("group_mean_std", "sequence-product", "vespo", "token-mean", None, None),
    "reinforce": ("leave_one_out", "token", "reinforce", "seq-mean-token-sum", None, None),
}


class Root(BaseModel):
    """How a run's configuration embeds the section."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    objective: ObjectiveConfig = ObjectiveConfig()


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_mean_the_published_formulas(name: str) -> None:
    config = resolve(name)
    assert dataclasses.astuple(config)[:7] == (name, *PUBLISHED[name])
    assert set(PUBLISHED) == set(NAMED_OBJECTIVES)
    assert (config.dual_clip, config.kl_coefficient, config.entropy_coefficient) == (None, 0.0, 0.0)


def test_sapo_temperatures() -> None:
    config = resolve("sapo")
    assert (config.sapo_temperature_positive, config.sapo_temperature_negative) == (1.0, 1.05)
    assert resolve("sapo", sapo_temperature_negative=2.0).sapo_temperature_negative == 2.0


def test_it_is_a_section_of_a_strict_pydantic_model() -> None:
    root = Root.model_validate({"objective": {"name": "luspo", "clip_low": 0.003, "kl_coefficient": 1}})
    assert root.objective == resolve("luspo", clip_low=0.003, kl_coefficient=1.0)
    assert root.objective.kl_estimator == "k3"
    assert type(root.objective.kl_coefficient) is float
    assert Root.model_validate(root.model_dump()) == root
    assert Root.model_validate_json(root.model_dump_json()) == root
    assert Root(objective=resolve("dapo")).objective.clip_high == 0.28
    schema = Root.model_json_schema()["$defs"]["ObjectiveConfig"]["properties"]
    assert all("description" in field for field in schema.values())


@pytest.mark.parametrize(
    "table",
    [
        {"name": "lupso"},
        {"name": "luspo", "clip_hihg": 0.1},
        {"name": "luspo", "clip_low": "0.2"},
        {"name": "luspo", "kl_coefficient": True},
        {"name": "gspo", "aggregation": "seq-mean-token-sum"},
    ],
)
def test_a_strict_model_refuses(table: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Root.model_validate({"objective": table})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"name": "gpso"}, "unknown objective 'gpso' .did you mean 'gspo'"),
        ({"name": "gspo", "aggregation": "seq-mean-token-sum"}, "gspo fixes aggregation .* use name 'custom'"),
        ({"name": "luspo", "ratio": "token"}, "luspo fixes ratio"),
        ({"name": "grpo", "advantage": "group_mean"}, "grpo fixes advantage"),
        ({"name": "grpo", "surrogate": "clipp"}, "surrogate = 'clipp' .*did you mean 'clip'"),
        ({"name": "sapo", "clip_low": 0.1}, "does not read clip_low"),
        ({"name": "sapo", "dual_clip": 3.0}, "does not read dual_clip"),
        ({"name": "cispo", "dual_clip": 3.0}, "does not read dual_clip"),
        ({"name": "grpo", "sapo_temperature_positive": 1.0}, "does not read sapo_temperature_positive"),
        ({"name": "grpo", "dual_clip": 1.0}, "dual_clip = 1.0 must be a ratio above 1"),
        ({"name": "grpo", "clip_low": 1.5}, "lower bound below 0"),
        ({"name": "grpo", "clip_high": 0.0}, "clip_high = 0.0 must be a positive number"),
        ({"name": "grpo", "clip_high": float("nan")}, "must be a positive number"),
        ({"name": "grpo", "kl_coefficient": -0.1}, "kl_coefficient = -0.1"),
        ({"name": "grpo", "entropy_coefficient": float("inf")}, "entropy_coefficient = inf"),
        ({"name": "grpo", "kl_estimator": "k2"}, "kl_estimator is not read"),
        ({"name": "grpo", "kl_estimator": "k4", "kl_coefficient": 1.0}, "kl_estimator = 'k4'"),
        ({"name": "custom"}, "'custom' must set advantage"),
        ({**CUSTOM, "aggregation": None}, "'custom' must set aggregation"),
        ({**CUSTOM, "clip_high": None}, "must set clip_high"),
        ({**CUSTOM, "surrogate": "gmpo"}, "set ratio to 'token'"),
        (
            {"name": "grpo", "clip_on": "sum"},
            "clip_on = 'sum' needs .* one ratio a sequence, grpo has surrogate 'clip'",
        ),
        ({"name": "cispo", "clip_on": "mean"}, "needs surrogate 'clip' .* cispo has surrogate 'cispo'"),
        ({**CUSTOM, "surrogate": "cispo", "clip_on": "root"}, "custom has surrogate 'cispo' and ratio 'sequence'"),
        ({"name": "luspo", "clip_on": "summ"}, "clip_on = 'summ' is not one of mean, root, sum .did you mean 'sum'"),
        ({"name": "fspo", "clip_on": "sum"}, "fspo fixes clip_on = 'root' and cannot take 'sum'"),
        ({"name": "luspo", "clip_on": "mean", "clip_low": 1.5}, "lower bound below 0"),
        ({**CUSTOM, "ratio": "sequence-product"}, "set clip_on to 'root' or 'sum'"),
        ({**CUSTOM, "ratio": "sequence-product", "surrogate": "cispo"}, "no bound that grows with the length"),
        ({**CUSTOM, "surrogate": "vespo", "clip_low": None, "clip_high": None}, "set ratio to 'sequence-product'"),
        ({**CUSTOM, "surrogate": "dppo-tv"}, "masks single tokens: set ratio to 'token'"),
        ({**CUSTOM, "surrogate": "reinforce"}, "has no importance ratio"),
        ({**CUSTOM, "aggregation": "length-power"}, "must set length_exponent"),
        ({"name": "vespo", "clip_low": 0.1}, "does not read clip_low: remove it, it reads vespo_k_positive"),
        ({"name": "reinforce", "clip_low": 0.1}, "does not read clip_low: remove it, it reads none"),
        ({"name": "dppo", "ratio_cap": 1.0}, "ratio_cap = 1.0 must be a ratio above 1"),
        ({"name": "length_power", "length_exponent": float("nan")}, "must be a finite number"),
        ({"name": "length_power", "length_normalise": "mean"}, "is not one of none, batch, delta-l"),
        ({"name": "vespo", "vespo_k_positive": 0.0}, "vespo_k_positive = 0.0 must be a positive number"),
        ({**CUSTOM, "surrogate": "sapo", "clip_low": None, "clip_high": None}, "must set sapo_temperature_positive"),
    ],
)
def test_impossible_mixes_are_refused_with_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as raised:
        ObjectiveConfig(**values)
    assert "\n" not in str(raised.value)


def test_repeating_what_the_name_fixes_is_allowed() -> None:
    assert ObjectiveConfig("luspo", ratio="sequence", aggregation="seq-mean-token-sum") == resolve("luspo")


@pytest.mark.parametrize("surrogate", ["clip", "cispo", "sapo", "gmpo"])
@pytest.mark.parametrize(
    "aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_every_custom_mix_either_runs_or_is_refused(surrogate: str, aggregation: str, ratio: str) -> None:
    values = {**CUSTOM, "surrogate": surrogate, "aggregation": aggregation, "ratio": ratio}
    if surrogate == "sapo":
        del values["clip_low"], values["clip_high"]
        values |= {"sapo_temperature_positive": 1.0, "sapo_temperature_negative": 1.1}
    if surrogate == "gmpo" and ratio == "sequence":
        with pytest.raises(ValueError, match="set ratio to 'token'"):
            ObjectiveConfig(**values)
        return
    logprobs, old, advantages, mask = as_tensors(make_batch(3, [2, 7, 4], 0.05))
    loss = policy_loss(ObjectiveConfig(**values), logprobs, old, advantages, mask, max_response_length=LIMIT).loss
    loss.backward()
    assert loss.item() != 0
    assert torch.isfinite(logprobs.grad).all()


FREE_KEYS: dict[str, Any] = {
    "clip_low": 0.01,
    "clip_high": 0.011,
    "dual_clip": 1.02,
    "sapo_temperature_positive": 3.0,
    "sapo_temperature_negative": 3.0,
    "ratio_cap": 1.01,
    "vespo_k_positive": 5.0,
    "vespo_lambda_negative": 5.0,
    "length_exponent": 0.5,
    "length_normalise": "batch",
    "kl_coefficient": 0.5,
    "entropy_coefficient": 0.5,
}


@pytest.mark.parametrize("key", FREE_KEYS)
@pytest.mark.parametrize("name", FORMULAS)
def test_every_key_changes_the_loss_or_is_refused(name: str, key: str) -> None:
    logprobs, old, advantages, mask = as_tensors(make_batch(3, [2, 7, 4, 5, 3, 6], 0.2))
    extra = {"ref_logprobs": old - 0.3, "entropy": torch.ones_like(old)}
    reads_clip, reads_temperatures = name not in ("sapo", "vespo", "reinforce"), name == "sapo"
    read = {
        "clip_low": reads_clip,
        "clip_high": reads_clip,
        "dual_clip": name in ("grpo", "dr_grpo", "dapo", "gspo", "luspo", "length_power", "fspo"),
        "ratio_cap": name in ("dppo", "dppo_kl"),
        "vespo_k_positive": name == "vespo",
        "vespo_lambda_negative": name == "vespo",
        "length_exponent": name == "length_power",
        "length_normalise": name == "length_power",
        "sapo_temperature_positive": reads_temperatures,
        "sapo_temperature_negative": reads_temperatures,
    }
    if not read.get(key, True):
        with pytest.raises(ValueError, match=f"does not read {key}"):
            resolve(name, **{key: FREE_KEYS[key]})
        return
    # A KL divergence of a token's coin grows with the square of what it moved.
    changed = resolve(name, **{key: 1e-3 if (name, key) == ("dppo_kl", "clip_high") else FREE_KEYS[key]})
    arguments = (logprobs, old, advantages, mask)
    plain = policy_loss(name, *arguments, max_response_length=LIMIT, **extra).loss.item()
    assert policy_loss(changed, *arguments, max_response_length=LIMIT, **extra).loss.item() != plain


def test_kl_estimators_differ() -> None:
    logprobs, old, advantages, mask = as_tensors(make_batch(3, [2, 7, 4], 0.2))
    losses = {
        policy_loss(
            resolve("luspo", kl_coefficient=0.5, kl_estimator=kind),
            logprobs,
            old,
            advantages,
            mask,
            ref_logprobs=old - 0.3,
        ).loss.item()
        for kind in ("k1", "k2", "k3")
    }
    assert len(losses) == 3


def test_configuration_and_words_import_neither_torch_nor_pydantic() -> None:
    code = (
        "import sys, luspo_cli.config.objective, luspo_cli.config.objective_text;"
        "sys.exit(' '.join({'torch', 'pydantic', 'transformers', 'typer'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""


def test_the_loss_imports_only_torch() -> None:
    code = (
        "import sys, luspo_cli.objectives;"
        "sys.exit(' '.join({'pydantic', 'transformers', 'typer', 'rich', 'pandas', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""
