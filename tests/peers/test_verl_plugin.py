"""Our objectives inside stock verl 0.9.1: through `ppo_loss`, against its own losses, over micro-batches and ranks.

Run with `make test-verl`.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peer_cases import LIMIT, Batch, compare, make_batch, objectives
from verl_cases import Host, actor

from luspo_cli.config.objective import NAMED_OBJECTIVES, ObjectiveConfig, resolve
from luspo_cli.config.peers import verl_settings
from luspo_cli.config.verl_losses import VERL_LOSSES, verl_loss_name, verl_plugin_settings
from luspo_cli.objectives import policy_loss

pytestmark = pytest.mark.verl
PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
OURS, STOCK = objectives(verl_plugin_settings), objectives(verl_settings)
SPLITS = [(size, ranks) for size in (1, 2, 5, None) for ranks in (1, 2, 4)]


@pytest.fixture(scope="module", autouse=True)
def version() -> None:
    verl = pytest.importorskip("verl", reason="needs verl in another environment: make peers")
    assert verl.__version__ == "0.9.1"


def plugin(config: ObjectiveConfig) -> Any:
    return actor(verl_plugin_settings(config, LIMIT))


def registered(name: str) -> Any:
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    return get_policy_loss_fn(name)


CARRIED = [name for name in NAMED_OBJECTIVES if not verl_plugin_settings(resolve(name)).missing]


def bare(config: ObjectiveConfig, **info: Any) -> SimpleNamespace:
    """What the loss reads of verl's configuration."""
    keys = {key.rpartition(".")[2]: value for key, value in verl_plugin_settings(config, LIMIT).values.items()}
    usual = {"clip_ratio": 0.2, "clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_c": 3.0, "tau_pos": 1.0}
    return SimpleNamespace(**{**usual, "tau_neg": 1.05, "loss_scale_factor": None, **keys}, global_batch_info=info)


def called(config: ObjectiveConfig, batch: Batch, settings: Any = None, **changed: Any) -> Any:
    """The registered function, called as verl calls it, with one advantage a token."""
    arguments = {
        "old_log_prob": batch.old_logprobs,
        "log_prob": batch.logprobs,
        "advantages": batch.advantages[:, None] * batch.mask,
        "response_mask": batch.mask,
        "loss_agg_mode": config.aggregation,
        "config": settings or bare(config),
        "rollout_is_weights": None,
    }
    return registered(verl_loss_name(config))(**arguments | changed)


def gradient(loss: torch.Tensor, batch: Batch) -> torch.Tensor:
    return torch.autograd.grad(loss, batch.logprobs)[0]


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).detach().abs().max() / other.detach().abs().max().clamp(min=1e-300))


def test_every_name_is_registered_and_none_of_verls_is_replaced() -> None:
    from verl.trainer.ppo import core_algos

    assert {name for name in core_algos.POLICY_LOSS_REGISTRY if name.startswith("luspo")} == set(VERL_LOSSES)
    for name, function in core_algos.POLICY_LOSS_REGISTRY.items():
        ours = "luspo_cli.verl_plugin.policy_loss"
        assert function.__module__ == (ours if name in VERL_LOSSES else core_algos.__name__)
    assert {f"luspo_{name}" if name != "luspo" else name for name in CARRIED} <= set(VERL_LOSSES)


@PRECISIONS
@pytest.mark.parametrize("name", OURS)
def test_through_verl_it_is_our_own_loss(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """With verl's KL and entropy terms, for whole mini-batches."""
    config = OURS[name]
    settings = plugin(config)
    compare(config, lambda batch: Host(settings, config, batch).loss(), tolerance, dtype)


@PRECISIONS
@pytest.mark.parametrize("name", [name for name in STOCK if name in OURS])
def test_it_is_stock_verls_loss(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """Both through `ppo_loss`, in micro-batches, but for geo_mean, which is a mean over the rows of each."""
    config = STOCK[name]
    ours, theirs = plugin(config), actor(verl_settings(config, LIMIT))
    size = None if config.surrogate == "gmpo" else 5
    compare(
        config,
        lambda batch: Host(theirs, config, batch).loss(size),
        tolerance,
        dtype,
        ours=lambda batch: Host(ours, config, batch).loss(size),
    )


@pytest.mark.parametrize("name", ["luspo", "gspo", "grpo", "dapo", "cispo", "sapo"])
def test_stock_losses_by_their_names(name: str) -> None:
    """luspo is gspo with seq-mean-token-sum, gspo with seq-mean-token-mean, and so on: the names are written out here."""
    mode, aggregation = {
        "luspo": ("gspo", "seq-mean-token-sum"),
        "gspo": ("gspo", "seq-mean-token-mean"),
        "grpo": ("vanilla", "seq-mean-token-mean"),
        "dapo": ("vanilla", "token-mean"),
        "cispo": ("cispo", "token-mean"),
        "sapo": ("sapo", "seq-mean-token-mean"),
    }[name]
    config = resolve(name)
    theirs = actor(verl_settings(config))
    assert (theirs.policy_loss.loss_mode, theirs.loss_agg_mode) == (mode, aggregation)
    assert (plugin(config).policy_loss.loss_mode, plugin(config).loss_agg_mode) == (verl_loss_name(config), aggregation)


@pytest.mark.parametrize("name", OURS)
def test_neither_micro_batches_nor_ranks_change_it(name: str) -> None:
    config = OURS[name]
    settings, batch = plugin(config), make_batch(config, 3, torch.float64)
    whole = Host(settings, config, batch).loss()
    expected = gradient(whole, batch)
    for size, ranks in SPLITS:
        split = Host(settings, config, batch).loss(size, ranks)
        assert float(split.detach()) == pytest.approx(float(whole.detach()), rel=1e-12, abs=1e-14)
        assert relative(gradient(split, batch), expected) <= 1e-12


@pytest.mark.parametrize("name", OURS)
def test_padding_is_never_read(name: str) -> None:
    config, wider = OURS[name], 7
    if config.kl_coefficient or config.entropy_coefficient:
        pytest.skip("verl's own terms")
    batch = make_batch(config, 4, torch.float64)
    whole, _ = called(config, batch)
    expected = gradient(whole, batch)

    def padded(values: torch.Tensor, value: float) -> torch.Tensor:
        return torch.nn.functional.pad(values, (0, wider), value=value)

    changed = {
        "old_log_prob": padded(batch.old_logprobs, float("nan")),
        "log_prob": padded(batch.logprobs, float("inf")),
        "advantages": padded(batch.advantages[:, None] * batch.mask, float("nan")),
        "response_mask": padded(batch.mask.double(), 0.0),
    }
    loss, metrics = called(config, batch, **changed)
    assert float(loss.detach()) == pytest.approx(float(whole.detach()), rel=1e-12)
    assert relative(gradient(loss, batch), expected) <= 1e-12
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())


@pytest.mark.parametrize("name", ["luspo", "gspo", "grpo", "dapo", "dr_grpo"])
def test_empty_rows_count_in_verls_constant_number_of_sequences(name: str) -> None:
    """Failed rollouts and rows added to fill a batch: verl's own losses divide by the same N."""
    config = resolve(name)
    batch = make_batch(config, 5, torch.float64)
    batch.mask[[2, 7]] = False
    ours = Host(plugin(config), config, batch).loss()
    theirs = Host(actor(verl_settings(config, LIMIT)), config, batch).loss()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)
    assert relative(gradient(ours, batch), gradient(theirs, batch)) <= 1e-12
    # Without them the value is larger by their share, but for a mean over tokens.
    kept = torch.arange(12)[batch.mask.any(dim=-1)]
    alone = policy_loss(
        config,
        batch.logprobs[kept],
        batch.old_logprobs[kept],
        batch.advantages[kept],
        batch.mask[kept],
        max_response_length=LIMIT,
    )
    share = 1.0 if name == "dapo" else 12 / 10
    assert float(alone.loss.detach()) == pytest.approx(float(ours.detach()) * share, rel=1e-12)


@pytest.mark.parametrize("name", CARRIED)
def test_a_micro_batch_of_empty_rows_is_zero(name: str) -> None:
    config = resolve(name)
    batch = make_batch(config, 1, torch.float64)
    batch.mask[:] = False
    loss, metrics = called(config, batch, bare(config, dp_size=2, batch_num_tokens=30, global_batch_size=8))
    assert float(loss.detach()) == 0.0
    assert not gradient(loss, batch).any()
    assert metrics["actor/ratio/mean"] == 1.0
    assert set(metrics.values()) <= {0.0, 1.0}


def test_rollout_weights_multiply_the_tokens() -> None:
    for name in ("grpo", "dapo", "cispo", "sapo", "gspo", "luspo"):
        config = resolve(name)
        batch = make_batch(config, 2, torch.float64)
        generator = torch.Generator().manual_seed(0)
        weights = 0.5 + torch.rand(batch.mask.shape, generator=generator, dtype=torch.float64)
        if config.by_sequence:
            weights = weights[:, :1].expand_as(weights)
        ours = Host(plugin(config), config, batch, weights).loss(5)
        theirs = Host(actor(verl_settings(config)), config, batch, weights).loss(5)
        assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)
        assert relative(gradient(ours, batch), gradient(theirs, batch)) <= 1e-12
        assert float((ours - Host(plugin(config), config, batch).loss(5)).detach().abs()) > 1e-3


def test_a_sequence_ratio_is_weighted_by_the_mean_of_its_tokens_weights() -> None:
    """Weights that differ within a response: verl's gspo gives each token its own; the value is the same."""
    config = resolve("luspo")
    batch = make_batch(config, 2, torch.float64)
    weights = 0.5 + torch.rand(batch.mask.shape, dtype=torch.float64)
    ours = Host(plugin(config), config, batch, weights).loss()
    theirs = Host(actor(verl_settings(config)), config, batch, weights).loss()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)
    mean = (weights * batch.mask).sum(dim=1, keepdim=True) / batch.mask.sum(dim=1, keepdim=True)
    by_row = Host(plugin(config), config, batch, mean.expand_as(weights)).loss()
    assert relative(gradient(ours, batch), gradient(by_row, batch)) <= 1e-12


def test_without_verls_counts_the_rows_are_all_there_is() -> None:
    config = resolve("luspo")
    batch = make_batch(config, 0, torch.float64)
    alone = policy_loss(config, batch.logprobs, batch.old_logprobs, batch.advantages, batch.mask).loss
    assert float(called(config, batch)[0].detach()) == pytest.approx(float(alone.detach()), rel=1e-14)
    for info in ({"dp_size": 2}, {"dp_size": 1, "global_batch_size": 12}):
        with pytest.raises(ValueError, match="needs both global_batch_size and batch_num_tokens"):
            called(config, batch, bare(config, **info))


def test_metrics_average_over_equal_micro_batches() -> None:
    for name in ("luspo", "grpo"):
        config = resolve(name)
        batch = make_batch(config, 3, torch.float64)
        batch.mask[:] = True
        batch.lengths[:] = batch.mask.shape[1]
        whole = policy_loss(config, batch.logprobs, batch.old_logprobs, batch.advantages, batch.mask).diagnostics
        parts: dict[str, list[float]] = defaultdict(list)
        host = Host(plugin(config), config, batch)
        for start in range(0, 12, 3):
            for key, metric in host.micro_batch(range(start, start + 3))[1].items():
                parts[key].append(metric.aggregate() if hasattr(metric, "aggregate") else metric)
        for key in ("objective/clip_low_fraction", "objective/clip_high_fraction", "ratio/mean", "policy/kl_old"):
            assert sum(parts[f"actor/{key}"]) / 4 == pytest.approx(whole[key], rel=1e-9)
            assert whole[key] > 0
        assert sum(parts["actor/pg_loss"]) == pytest.approx(whole["objective/loss"], rel=1e-12)


def test_what_verls_configuration_contradicts_is_refused() -> None:
    def said(name: str, parts: dict[str, Any] | None = None, **changed: Any) -> str:
        config = resolve(name, **parts or {})
        with pytest.raises(ValueError, match=r"set |use |is not one of ") as caught:
            called(config, make_batch(config, 0, torch.float64), **changed)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "actor.loss_agg_mode=seq-mean-token-sum" in said("luspo", loss_agg_mode="token-mean")
    assert "loss_agg_mode=token-mean" in said("dapo", loss_agg_mode="seq-mean-token-mean")
    without = bare(resolve("dr_grpo"))
    without.loss_scale_factor = None
    assert "loss_scale_factor" in said("dr_grpo", settings=without)
    uneven = torch.randn(12, 3, dtype=torch.float64)
    assert "algorithm.adv_estimator=grpo" in said("luspo", advantages=uneven)
    wide = bare(resolve("gspo"))
    wide.clip_ratio_low = 1.5
    assert "clip_low = 1.5" in said("gspo", settings=wide)
    parts = {"advantage": "group_mean", "ratio": "sequence", "surrogate": "clip", "aggregation": "token-mean"}
    assert "token-sum" in said("custom", parts | {"clip_low": 0.1, "clip_high": 0.1}, loss_agg_mode="token-sum")


def test_verls_default_clip_range_on_a_sequence_ratio_is_said(caplog: pytest.LogCaptureFixture) -> None:
    config = resolve("luspo", clip_low=0.2, clip_high=0.2)
    with caplog.at_level(logging.WARNING, logger="luspo"):
        called(config, make_batch(config, 0, torch.float64))
    (record,) = caplog.records
    assert "clip_ratio_low" in record.message


@pytest.mark.parametrize("version", ["0.7.1", "0.8.0", "0.9.0", "0.9.0.dev1"])
def test_older_releases_are_refused(
    version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import verl

    from luspo_cli.verl_plugin.policy_loss import register

    monkeypatch.setattr(verl, "__version__", version)
    with pytest.raises(ImportError, match=rf"verl {version} is too old.*0\.9\.1"):
        register()
    assert any(version in record.message for record in caplog.records)
